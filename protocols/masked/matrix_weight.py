"""Weights whose matrices are not tensors of words: on a device signed digits of 8 bits (`mpc.device.digits`), at the host
pieces (`mpc.pieced_matrix`). The same products, and no other copy of the weight.

Rounds, bytes and offline bytes: those of any weight. Error: none.
Leaks: nothing; which digits a product reads depends on its ring alone (docs/security.md, "Suite masked").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

from mpc import joint_products, ring
from mpc.device.digits import DigitMatrix
from mpc.pieced_matrix import PiecedMatrix
from mpc.shape_tensor import shape_tensor
from protocols.masked.product import FixedWeight

M = TypeVar("M", DigitMatrix, PiecedMatrix)


class MatrixWeight(FixedWeight, Generic[M]):
    """A matrix of weights. A party has W + lam and its share of W, the dealer has lam; what a role has not is None. What is
    no product with rows gets words, which take as much memory again as long as they are held.
    """

    def __init__(self, m: M | None, own: M | None, lam: M | None, form: tuple[int, int]) -> None:
        self._m: M | None = m
        self._own: M | None = own
        self._lam: M | None = lam
        shape = next(x.shape for x in (m, lam) if x is not None)
        super().__init__(shape_tensor(shape), shape_tensor(shape), shape_tensor(shape), *form)

    @property
    def bytes_here(self) -> int:
        return sum(x.nbytes for x in (self._m, self._own, self._lam) if x is not None)

    def put(self, rows: slice, m: Tensor, own: Tensor) -> None:
        if self._m is not None and self._own is not None:
            self._m[rows], self._own[rows] = m, own

    def put_mask(self, rows: slice, lam: Tensor) -> None:
        if self._lam is not None:
            self._lam[rows] = lam

    def times_own(self, rows: Tensor, bits: int, rows_bits: int = ring.RING_BITS) -> Tensor:
        return _times(self._own, rows, bits, rows_bits)

    def times_m(self, rows: Tensor, bits: int) -> Tensor:
        return _times(self._m, rows, bits)

    def times_mask(self, rows: Tensor, bits: int, rows_bits: int = ring.RING_BITS) -> Tensor:
        return _times(self._lam, rows, bits, rows_bits)

    def whole(self) -> FixedWeight:
        m, own, lam = (shape_tensor(self.shape) if x is None else x.words() for x in (self._m, self._own, self._lam))
        return FixedWeight(m, own, lam, self.frac, self.bits)


class DigitWeight(MatrixWeight[DigitMatrix]):
    """A matrix of weights on a device."""

    @classmethod
    def empty(
        cls, shape: Sequence[int], place: tuple[torch.dtype, torch.device], form: tuple[int, int], party: bool
    ) -> DigitWeight:
        """Return a weight to be filled, a party's or the dealer's. form: fraction bits, and the bits that it is kept
        modulo."""

        def matrix(here: bool) -> DigitMatrix | None:
            return DigitMatrix.empty(shape, *place) if here else None

        return cls(matrix(party), matrix(party), matrix(not party), form)

    def move(self, f: Callable[[Tensor], Tensor]) -> DigitWeight:
        def moved(x: DigitMatrix | None) -> DigitMatrix | None:
            return None if x is None else x.moved(f)

        return DigitWeight(moved(self._m), moved(self._own), moved(self._lam), (self.frac, self.bits))


class PiecedWeight(MatrixWeight[PiecedMatrix]):
    """A matrix of weights at the host that a row passes in pieces. Once it has been moved it stays in one piece."""

    @classmethod
    def empty(cls, shape: Sequence[int], dtype: torch.dtype, form: tuple[int, int], party: bool) -> PiecedWeight:
        """As `DigitWeight.empty`."""

        def matrix(here: bool) -> PiecedMatrix | None:
            return PiecedMatrix.empty(shape, dtype) if here else None

        return cls(matrix(party), matrix(party), matrix(not party), form)

    def move(self, f: Callable[[Tensor], Tensor]) -> FixedWeight:
        for matrix in (self._m, self._own, self._lam):
            if matrix is not None:
                matrix.join()
        return self.whole().move(f)


def _times(matrix: DigitMatrix | PiecedMatrix | None, rows: Tensor, bits: int, rows_bits: int = ring.RING_BITS) -> Tensor:
    assert matrix is not None, "a product with what this role does not have"
    return joint_products.matmul(rows, matrix, bits, rows_bits)
