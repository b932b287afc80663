"""Weights whose blocks lie at the ranks of a party (`mpc.ranks`): the same products, with a part of them in each rank.

Rounds, bytes and offline bytes between parties: those of a weight that is whole. Error: none.
Leaks: nothing to other parties; the ranks of a party are that party (docs/security.md, "Ranks of a party").
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mpc.ranks import Ranks, SplitMatrix
from mpc.ring import RING_BITS
from mpc.shape_tensor import shape_tensor
from protocols.masked.product import FixedWeight

SMALL = 1 << 14  # elements of a matrix that is not worth a message


class SplitWeight(FixedWeight):
    """A matrix of weights at several ranks, for a party. turned: it is used transposed.

    What is no product with rows gathers all of it, which is right and slow.
    """

    def __init__(self, m: SplitMatrix, own: SplitMatrix, frac: int, bits: int, turned: bool = False) -> None:
        self._m, self._own, self._turned = m, own, turned
        shape = m.shape[::-1] if turned else m.shape
        super().__init__(shape_tensor(shape), shape_tensor(shape), shape_tensor(shape), frac, bits)

    @classmethod
    def empty(cls, ranks: Ranks, shape: tuple[int, int], dtype: torch.dtype, form: tuple[int, int]) -> SplitWeight:
        """Return a weight to be filled with `put`. form: fraction bits, and the bits that it is kept modulo."""
        return cls(ranks.matrix(shape, dtype), ranks.matrix(shape, dtype), *form)

    @property
    def bytes_here(self) -> int:
        return self._m.own.values.nbytes + self._own.own.values.nbytes

    def put(self, rows: slice, m: Tensor, own: Tensor) -> None:
        """Fill some rows."""
        self._m.put(rows, m)
        self._own.put(rows, own)

    def times_own(self, rows: Tensor, bits: int, rows_bits: int = RING_BITS) -> Tensor:
        return self._times(self._own, rows, bits)

    def times_m(self, rows: Tensor, bits: int) -> Tensor:
        return self._times(self._m, rows, bits)

    def _times(self, matrix: SplitMatrix, rows: Tensor, bits: int) -> Tensor:
        return matrix.times(rows.reshape(-1, rows.shape[-1]), bits, self._turned).reshape(*rows.shape[:-1], self.shape[1])

    def whole(self) -> FixedWeight:
        m, own = (matrix.whole().t() if self._turned else matrix.whole() for matrix in (self._m, self._own))
        return FixedWeight(m, own, self.lam, self.frac, self.bits)

    def move(self, f: Callable[[Tensor], Tensor]) -> FixedWeight:
        """Return the weight itself or its transposed form where f makes these, without a copy."""
        there = torch.empty_strided(self.shape, (1, self.shape[0]), device="meta")
        moved = f(there)
        if moved.shape == there.shape and moved.stride() == there.stride():
            return self
        if moved.shape == there.t().shape and moved.stride() == there.t().stride():
            return SplitWeight(self._m, self._own, self.frac, self.bits, not self._turned)
        return self.whole().move(f)
