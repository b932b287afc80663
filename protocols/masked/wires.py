"""The two kinds of value of masked evaluation, and what can be done with them locally.

`Shared` [x]: party i holds [x]_i in Z_2^bits; the shares add up to x.
`Masked` <x>: every party knows m = x + lam mod 2^bits; lam is uniform, known to the dealer alone, and the parties hold an
additive sharing of it. Masked -> Shared is local; Shared -> Masked is an opening (protocols/masked/opening.py).

The same objects live at all roles. At a party m is a public tensor and lam its share of the mask; at the dealer m is a meta
tensor (it never learns it) and lam the whole mask; in cost estimation both are meta tensors. A Shared tensor is a share at a
party and a meta tensor elsewhere.

x carries `frac` fraction bits. Sources: Beaver 1991; Ben-Efraim et al. 2019 (Turbospeedz); Patra et al. 2021 (ABY2.0).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mpc import ring
from mpc.errors import RangeError


@dataclass(frozen=True)
class Shared:
    """An additive sharing modulo 2^bits with `frac` fraction bits."""

    x: Tensor
    bits: int
    frac: int

    @property
    def shape(self) -> torch.Size:
        """Public shape."""
        return self.x.shape

    def map(self, f: Callable[[Tensor], Tensor]) -> Shared:
        """Apply a linear map with public coefficients (indexing, reshaping, sums, ...) to the shares."""
        return Shared(ring.reduce(f(self.x), self.bits), self.bits, self.frac)

    def to_ring(self, bits: int) -> Shared:
        """The same value modulo a smaller power of two; local."""
        if bits > self.bits:
            raise RangeError(f"a sharing modulo 2^{self.bits} cannot be read modulo 2^{bits} without a lift")
        return self if bits == self.bits else Shared(ring.reduce(self.x, bits), bits, self.frac)

    def shift_left(self, count: int) -> Shared:
        """The same value with `count` more fraction bits; local and exact."""
        return Shared(ring.reduce(self.x << count, self.bits), self.bits, self.frac + count)

    def add(self, other: Shared) -> Shared:
        """Sum of two sharings with the same fraction bits, in the smaller ring."""
        if other.frac != self.frac:
            raise RangeError(f"cannot add sharings with {self.frac} and {other.frac} fraction bits")
        bits = min(self.bits, other.bits)
        return Shared(ring.reduce(self.x + other.x, bits), bits, self.frac)

    def negate(self) -> Shared:
        """-x."""
        return self.map(torch.neg)

    def __repr__(self) -> str:
        return f"Shared(shape={list(self.shape)}, ring=2^{self.bits}, fraction bits={self.frac})"


@dataclass(frozen=True)
class Masked:
    """A masked value: m = x + lam modulo 2^bits, with `frac` fraction bits."""

    m: Tensor
    lam: Tensor
    bits: int
    frac: int

    @property
    def shape(self) -> torch.Size:
        """Public shape."""
        return self.lam.shape

    def map(self, f: Callable[[Tensor], Tensor]) -> Masked:
        """Apply a linear map with public coefficients to m and lam."""
        return Masked(ring.reduce(f(self.m), self.bits), ring.reduce(f(self.lam), self.bits), self.bits, self.frac)

    def to_ring(self, bits: int) -> Masked:
        """The same value modulo a smaller power of two; local."""
        if bits > self.bits:
            raise RangeError(f"a value masked modulo 2^{self.bits} cannot be read modulo 2^{bits} without a lift")
        if bits == self.bits:
            return self
        return Masked(ring.reduce(self.m, bits), ring.reduce(self.lam, bits), bits, self.frac)

    def add(self, other: Masked) -> Masked:
        """Sum; the mask of the sum is the sum of the masks."""
        if other.frac != self.frac:
            raise RangeError(f"cannot add masked values with {self.frac} and {other.frac} fraction bits")
        bits = min(self.bits, other.bits)
        return Masked(ring.reduce(self.m + other.m, bits), ring.reduce(self.lam + other.lam, bits), bits, self.frac)

    def add_public(self, value: Tensor | int) -> Masked:
        """x plus public ring elements (already scaled)."""
        if self.m.is_meta:
            return self
        return Masked(ring.reduce(self.m + value, self.bits), self.lam, self.bits, self.frac)

    def __repr__(self) -> str:
        return f"Masked(shape={list(self.shape)}, ring=2^{self.bits}, fraction bits={self.frac})"
