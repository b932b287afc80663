"""Values of the suite `crypten`: additive shares in Z_2^64 with a public number of fraction bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from mpc.errors import ConfigurationError, RangeError
from mpc.fixed_point import encode
from mpc.ledger import NO_OPERATION, current, operation
from mpc.shape_tensor import broadcast
from protocols.crypten.binding.library import plain, wrapped
from protocols.row_tensors import Fill, RowTensors
from protocols.suite import Value


def on_device(x: Tensor, device: torch.device) -> Tensor:
    """Return x on `device`; without content where the program has none."""
    return x if x.device == device else x.to(device)


class Lineage:
    """Stands for rows to which others are appended; nothing but itself."""


class CryptenValue(Value):
    """A secret. share: this party's int64 share [any] (meta at the dealer); party: its index; bounded: by its making.

    The class `ArithmeticSharedTensor` of CrypTen is the border: `tensor` wraps the share, `from_tensor` reads one.
    """

    __slots__ = ("bounded", "fraction_bits", "lineage", "party", "share")

    def __init__(self, share: Tensor, fraction_bits: int, party: int, bounded: bool = False) -> None:
        self.share = share
        self.fraction_bits = fraction_bits
        self.party = party
        self.bounded = bounded
        self.lineage = Lineage()  # of cached rows: the same as long as rows are only appended

    @property
    def tensor(self) -> Any:
        """The same share as CrypTen's `ArithmeticSharedTensor`, its encoder holding the fraction bits."""
        from crypten.mpc.primitives import ArithmeticSharedTensor

        return ArithmeticSharedTensor.from_shares(wrapped(self.share), precision=self.fraction_bits)

    @classmethod
    def from_tensor(cls, tensor: Any, party: int) -> CryptenValue:
        """Make a value from an `ArithmeticSharedTensor` or an `MPCTensor` in arithmetic form."""
        inner = getattr(tensor, "_tensor", tensor)
        inner = inner if hasattr(inner, "encoder") else tensor
        return cls(plain(inner.share), int(inner.encoder._precision_bits), party)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(shape={list(self.shape)}, ring=2^64, fraction_bits={self.fraction_bits})"

    @property
    def shape(self) -> torch.Size:
        """Public shape."""
        return self.share.shape

    def _held(self) -> tuple[Tensor, ...]:
        """All that this party holds."""
        return (self.share,)

    def _again(self, held: Sequence[Tensor]) -> CryptenValue:
        return self._view(held[0])

    def row_tensors(self) -> RowTensors | None:
        held = self._held()
        if any(t.is_meta for t in held) or len(self.shape) != 3:
            return None
        shape, lineage, bare = self.shape, self.lineage, self._again([t.new_empty(0) for t in held])

        def empty(count: int) -> Fill:
            whole = (shape[0], count, shape[2])
            made = [torch.empty(whole, dtype=t.dtype, device=t.device) for t in bare._held()]

            def filled(start: int) -> CryptenValue:
                return bare._again([t[:, start:] for t in made])

            return tuple(made), filled

        return RowTensors(lineage, 0, held, empty)

    def like(self, share: Tensor) -> CryptenValue:
        """Return another share with the same fraction bits."""
        return CryptenValue(share, self.fraction_bits, self.party)

    def _view(self, share: Tensor) -> CryptenValue:
        return CryptenValue(share, self.fraction_bits, self.party, self.bounded)

    def raised(self, fraction_bits: int) -> Tensor:
        """Return the share with more fraction bits: exact."""
        return self.share if fraction_bits == self.fraction_bits else self.share << (fraction_bits - self.fraction_bits)

    def _combine(self, other: Value | Tensor | float, sign: int) -> CryptenValue:
        if isinstance(other, CryptenValue):
            bits = max(self.fraction_bits, other.fraction_bits)
            left, right = self.raised(bits), other.raised(bits)
            return CryptenValue(left + right if sign > 0 else left - right, bits, self.party)
        if isinstance(other, Value):
            raise ConfigurationError(f"a value of another suite cannot be added to {self!r}")
        shape = broadcast(self.shape, torch.as_tensor(other).shape)
        if self.party != 0 or self.share.is_meta:
            return self._view(self.share.expand(shape))
        public = on_device(encode(other, self.fraction_bits), self.share.device)
        return self.like(self.share + public if sign > 0 else self.share - public)

    def __add__(self, other: Value | Tensor | float) -> CryptenValue:
        return self._combine(other, 1)

    __radd__ = __add__

    def __sub__(self, other: Value | Tensor | float) -> CryptenValue:
        return self._combine(other, -1)

    def __rsub__(self, other: Value | Tensor | float) -> CryptenValue:
        return -self + other

    def __neg__(self) -> CryptenValue:
        return self.like(-self.share)

    def __mul__(self, factor: int | Tensor) -> CryptenValue:
        if isinstance(factor, Tensor):
            if factor.is_floating_point():
                raise RangeError("a value is multiplied by integers only; use `await suite.scale(x, factor)` for reals")
            return self.like(self.share * on_device(factor.to(torch.int64), self.share.device))
        if not isinstance(factor, int):
            raise RangeError(f"a value is multiplied by integers only, got {factor!r}; use `await suite.scale(x, factor)`")
        return self.like(self.share * factor)

    __rmul__ = __mul__

    def __getitem__(self, index: Any) -> CryptenValue:
        return self._view(self.share[index])

    def reshape(self, *shape: int) -> CryptenValue:
        return self._view(self.share.reshape(shape))

    def permute(self, *dims: int) -> CryptenValue:
        return self._view(self.share.permute(dims))

    def expand(self, *shape: int) -> CryptenValue:
        return self._view(self.share.expand(shape))

    def sum(self, dim: int, keepdim: bool = False) -> CryptenValue:
        return self.like(self.share.sum(dim, keepdim=keepdim))

    def cumsum(self, dim: int) -> CryptenValue:
        return self.like(self.share.cumsum(dim))


class CryptenWeight(CryptenValue):
    """A fixed secret W with a mask b for all its products: W - b is opened once, b is known to the dealer alone.

    It belongs to no session: later sessions of the same parties (and of the same dealer) go on with it.
    difference: public W - b (a party's). mask: b (the dealer's). Elsewhere None.
    """

    __slots__ = ("difference", "mask")

    def __init__(
        self, share: Tensor, fraction_bits: int, party: int, difference: Tensor | None, mask: Tensor | None
    ) -> None:
        super().__init__(share, fraction_bits, party)
        self.difference = difference
        self.mask = mask

    @property
    def element_bytes(self) -> int:
        """Return what an element takes: its share and W - b."""
        return 16

    def _held(self) -> tuple[Tensor, ...]:
        return tuple(t for t in (self.share, self.difference, self.mask) if t is not None)

    def _again(self, held: Sequence[Tensor]) -> CryptenValue:
        difference = None if self.difference is None else held[1]
        return CryptenWeight(held[0], self.fraction_bits, self.party, difference, None)

    def _moved(self, move: Callable[[Tensor], Tensor]) -> CryptenWeight:
        difference = None if self.difference is None else move(self.difference)
        mask = None if self.mask is None else move(self.mask)
        return CryptenWeight(move(self.share), self.fraction_bits, self.party, difference, mask)

    def __getitem__(self, index: Any) -> CryptenWeight:
        return self._moved(lambda x: x[index])

    def reshape(self, *shape: int) -> CryptenWeight:
        return self._moved(lambda x: x.reshape(shape))

    def permute(self, *dims: int) -> CryptenWeight:
        return self._moved(lambda x: x.permute(dims))


def label(name: str) -> AbstractContextManager[None]:
    """Book costs under `name`, unless the caller has already said what it is computing."""
    return operation(name) if current()[1] == NO_OPERATION else nullcontext()


def own_value(x: Value) -> CryptenValue:
    """Return a value of this suite. Raises `ConfigurationError` for another suite's."""
    if not isinstance(x, CryptenValue):
        raise ConfigurationError(f"suite 'crypten' computes on its own values, got {type(x).__name__}")
    return x
