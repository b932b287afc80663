"""The two kinds of value of masked evaluation, and what can be done with them locally.

`Shared` [x]: party i holds [x]_i in Z_2^bits; the shares add up to x. `WideShared`: the same in more than 64 bits.
`Masked` <x>: every party knows m = x + lam mod 2^bits; lam is uniform, known to the dealer alone, and the parties hold an
additive sharing of it. Masked -> Shared is local; Shared -> Masked is an opening (protocols/masked/context.py).

The same objects live at all roles. At a party m is a public tensor and lam its share of the mask; at the dealer m is a shape
tensor (it never learns it) and lam the whole mask; in cost estimation both are shape tensors. A Shared tensor is a share at
a party and a shape tensor elsewhere (`mpc.shape_tensor`). A party in a preprocessing pass (`mpc.preprocessing`) holds shape
tensors for m, and its own lam.

Which words stand for an element: m and lam are canonical, 0 <= m < 2^bits (for 64 bits the word itself). A share is any
int64 that is congruent to it modulo 2^bits: sums and products wrap harmlessly, so it is cut once, where it is packed.

lam may be computed late: what a map makes of it is computed when it is first asked for. Comparisons, tables and digits
look at m alone, so at a party most of these maps never run.

x carries `frac` fraction bits. Sources: Beaver 1991; Ben-Efraim et al. 2019 (Turbospeedz); Patra et al. 2021 (ABY2.0).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mpc import ring
from mpc.errors import RangeError
from mpc.ring import RING_BITS
from mpc.wide import WIDE_BITS, Wide, Words


@dataclass(frozen=True)
class Shared:
    """An additive sharing modulo 2^bits with `frac` fraction bits. x: any words congruent to the share."""

    x: Tensor
    bits: int
    frac: int

    @property
    def shape(self) -> torch.Size:
        """Public shape."""
        return self.x.shape

    def map(self, f: Callable[[Tensor], Tensor]) -> Shared:
        """Apply a linear map with public coefficients (indexing, reshaping, sums, ...) to the shares."""
        return Shared(f(self.x), self.bits, self.frac)

    def to_ring(self, bits: int) -> Shared:
        """Return the same value modulo a smaller power of two; local."""
        if bits > self.bits:
            raise RangeError(f"a sharing modulo 2^{self.bits} cannot be read modulo 2^{bits} without a lift")
        return self if bits == self.bits else Shared(self.x, bits, self.frac)

    def shift_left(self, count: int) -> Shared:
        """Return the same value with `count` more fraction bits, in a ring that is as much larger; local and exact."""
        return self if count == 0 else Shared(self.x << count, min(self.bits + count, RING_BITS), self.frac + count)

    def with_frac(self, frac: int) -> Shared:
        """Return the same ring elements, read with other fraction bits."""
        return Shared(self.x, self.bits, frac)

    def add(self, other: Shared) -> Shared:
        """Return the sum of two sharings with the same fraction bits, in the smaller ring."""
        if other.frac != self.frac:
            raise RangeError(f"cannot add sharings with {self.frac} and {other.frac} fraction bits")
        return Shared(self.x + other.x, min(self.bits, other.bits), self.frac)

    def negate(self) -> Shared:
        """Return -x."""
        return self.map(torch.neg)

    def __repr__(self) -> str:
        return f"Shared(shape={list(self.shape)}, ring=2^{self.bits}, fraction bits={self.frac})"


@dataclass(frozen=True)
class WideShared:
    """An additive sharing modulo 2^bits, 64 < bits <= 128: a product before it is cut. x: congruent to the share."""

    x: Wide
    bits: int
    frac: int

    @property
    def shape(self) -> torch.Size:
        """Public shape."""
        return self.x.shape

    def move(self, f: Callable[[Tensor], Tensor]) -> WideShared:
        """Apply what only moves elements (indexing, reshaping)."""
        return WideShared(self.x.map(f), self.bits, self.frac)

    def narrow(self) -> Shared:
        """Return the same value modulo 2^64; local. For values that fit there before they are cut."""
        return Shared(self.x.low, RING_BITS, self.frac)

    def to_ring(self, bits: int) -> Shared | WideShared:
        """Return the same value modulo a smaller power of two; local."""
        if bits > self.bits:
            raise RangeError(f"a sharing modulo 2^{self.bits} cannot be read modulo 2^{bits} without a lift")
        return WideShared(self.x, bits, self.frac) if bits > RING_BITS else self.narrow().to_ring(bits)

    def add(self, other: WideShared) -> WideShared:
        """Return the sum of two sharings with the same fraction bits, in the smaller ring."""
        if other.frac != self.frac:
            raise RangeError(f"cannot add sharings with {self.frac} and {other.frac} fraction bits")
        return WideShared(self.x + other.x, min(self.bits, other.bits), self.frac)

    def shift_left(self, count: int) -> WideShared:
        """Return the same value with `count` more fraction bits, in a ring that is as much larger; local and exact."""
        return self if count == 0 else WideShared(self.x << count, min(self.bits + count, WIDE_BITS), self.frac + count)

    def times(self, factor: Tensor, bits: int) -> WideShared:
        """Return the product with public integers that are read with `bits` fraction bits."""
        return WideShared(self.x * factor, self.bits, self.frac + bits)

    def __repr__(self) -> str:
        return f"WideShared(shape={list(self.shape)}, ring=2^{self.bits}, fraction bits={self.frac})"


class Masked:
    """A masked value: m = x + lam modulo 2^bits, with `frac` fraction bits. lam: a tensor, or what computes it.

    lowest: x is at least that, in ring units, and below lowest + 2^(bits - 1), where it is lifted to a larger ring; if it is
    not said, -2^(bits - 2). lifted: what was dealt to lift it (`protocols.masked.lifted`). wraps: how often the parties'
    canonical shares of lam go around 2^bits when they are added as integers, whole at the dealer, which is told it when a
    value is opened that will be lifted (`protocols.masked.truncation`); None where nobody asked.
    """

    __slots__ = ("__weakref__", "_lam", "_wraps", "bits", "frac", "lifted", "lowest", "m")

    def __init__(
        self,
        m: Tensor,
        lam: Tensor | Callable[[], Tensor],
        bits: int,
        frac: int,
        lowest: int | None = None,
        wraps: Tensor | Callable[[], Tensor] | None = None,
    ) -> None:
        self.m = m
        self._lam = lam
        self.bits = bits
        self.frac = frac
        self.lowest = lowest
        self.lifted: tuple[int, Words] | None = None
        self._wraps = wraps

    @property
    def lam(self) -> Tensor:
        """The mask (dealer) or this party's share of it."""
        if callable(self._lam):
            self._lam = self._lam()
        return self._lam

    @property
    def dealt_for(self) -> bool:
        """Whether something was dealt for this very object, which a copy of it would have dealt once more."""
        return self.lifted is not None or self._wraps is not None

    def _wraps_known(self) -> Tensor:
        found = self.wraps
        assert found is not None
        return found

    @property
    def wraps(self) -> Tensor | None:
        """How often shares of lam go around, at the dealer; a shape tensor elsewhere."""
        if callable(self._wraps):
            self._wraps = self._wraps()
        return self._wraps

    @property
    def shape(self) -> torch.Size:
        """Public shape."""
        return self.m.shape

    def map(self, f: Callable[[Tensor], Tensor]) -> Masked:
        """Apply a linear map with public coefficients to m and lam."""
        bits = self.bits
        return Masked(ring.reduce(f(self.m), bits), lambda: ring.reduce(f(self.lam), bits), bits, self.frac)

    def move(self, f: Callable[[Tensor], Tensor]) -> Masked:
        """As `map`, for an f that only moves elements (indexing, reshaping, joining with zeros): nothing needs a cut."""
        wraps = None if self._wraps is None else lambda: f(self._wraps_known())
        return Masked(f(self.m), lambda: f(self.lam), self.bits, self.frac, self.lowest, wraps)

    def starting(self, lowest: int) -> Masked:
        """Return the same value, known to be at least so many ring units."""
        return Masked(self.m, lambda: self.lam, self.bits, self.frac, lowest, self._wraps)

    def beside(self, other: Masked) -> Masked:
        """Return both, joined along the last axis; same ring and fraction bits."""
        if (other.bits, other.frac) != (self.bits, self.frac):
            raise RangeError(f"cannot join {self} and {other}: rings or fraction bits differ")
        return Masked(torch.cat([self.m, other.m], -1), lambda: torch.cat([self.lam, other.lam], -1), self.bits, self.frac)

    def to_ring(self, bits: int) -> Masked:
        """Return the same value modulo a smaller power of two; local."""
        if bits > self.bits:
            raise RangeError(f"a value masked modulo 2^{self.bits} cannot be read modulo 2^{bits} without a lift")
        if bits == self.bits:
            return self
        return Masked(ring.reduce(self.m, bits), lambda: ring.reduce(self.lam, bits), bits, self.frac)

    def with_frac(self, frac: int) -> Masked:
        """Return the same ring elements, read with other fraction bits."""
        return Masked(self.m, lambda: self.lam, self.bits, frac)

    def add(self, other: Masked) -> Masked:
        """Return the sum; the mask of the sum is the sum of the masks."""
        if other.frac != self.frac:
            raise RangeError(f"cannot add masked values with {self.frac} and {other.frac} fraction bits")
        bits = min(self.bits, other.bits)
        m = ring.reduce(self.m + other.m, bits)
        return Masked(m, lambda: ring.reduce(self.lam + other.lam, bits), bits, self.frac)

    def add_public(self, value: Tensor | int) -> Masked:
        """Return x plus public ring elements (already scaled)."""
        if self.m.is_meta:
            return self
        return Masked(ring.reduce(self.m + value, self.bits), self._lam, self.bits, self.frac)

    def __repr__(self) -> str:
        return f"Masked(shape={list(self.shape)}, ring=2^{self.bits}, fraction bits={self.frac})"
