"""Arithmetic in Z_2^k for 64 < k <= 128, on pairs of int64 tensors.

Element-wise products of fixed-point numbers need more than a word before they are cut: 64 bits that stay and 20 to 40 that
go. An element is `low + 2^64 high`, low read as unsigned; additions and products wrap modulo 2^128, `reduce` brings a
result back to Z_2^k. Operators are those of tensors, so that a formula reads the same in both widths (`widened`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from mpc import ring
from mpc.ring import RING_BITS

WIDE_BITS = 128
_HALF = (1 << 32) - 1


class Wide:
    """Elements modulo 2^128 as two words: low (its bits, unsigned) and high.

    >>> x = Wide.of(torch.tensor([3, -3]))
    >>> y = (x << 70) * torch.tensor(5)
    >>> (y >> 64).low.tolist(), shifted(y, 70, 128).tolist()
    ([960, -960], [15, 288230376151711729])
    """

    __slots__ = ("high", "low")

    def __init__(self, low: Tensor, high: Tensor) -> None:
        self.low = low
        self.high = high

    @classmethod
    def of(cls, x: Tensor) -> Wide:
        """Return signed words, widened."""
        return cls(x, x >> 63)

    @classmethod
    def of_unsigned(cls, x: Tensor) -> Wide:
        """Return canonical elements of Z_2^64 (any bits), widened."""
        return cls(x, torch.zeros_like(x))

    @property
    def shape(self) -> torch.Size:
        """Shape of the elements."""
        return self.low.shape

    def map(self, move: Callable[[Tensor], Tensor]) -> Wide:
        """Apply what only moves elements to both words."""
        return Wide(move(self.low), move(self.high))

    def __add__(self, other: Words | int) -> Wide:
        y = _wide(self.low * 0 + other if isinstance(other, int) else other)
        low = self.low + y.low
        return Wide(low, self.high + y.high + below(low, y.low))

    def __neg__(self) -> Wide:
        return Wide(-self.low, ~self.high + (self.low == 0).to(torch.int64))

    def __sub__(self, other: Words) -> Wide:
        y = _wide(other)
        return Wide(self.low - y.low, self.high - y.high - below(self.low, y.low))

    def __mul__(self, other: Words) -> Wide:
        if not isinstance(other, Wide):
            return Wide(self.low * other, _high_of_product(self.low, other) + _where(self.low, other) + self.high * other)
        high = _high_of_product(self.low, other.low) + _where(self.low, other.low) + _where(other.low, self.low)
        return Wide(self.low * other.low, high + self.high * other.low + self.low * other.high)

    def __lshift__(self, count: int) -> Wide:
        if count == 0:
            return self
        if count >= RING_BITS:
            return Wide(torch.zeros_like(self.low), self.low << (count - RING_BITS) if count < WIDE_BITS else self.low * 0)
        return Wide(self.low << count, (self.high << count) | ring.shift_right(self.low, RING_BITS - count, RING_BITS))

    def __rshift__(self, count: int) -> Wide:
        """Shift with the sign, by less than 128."""
        if count == 0:
            return self
        if count >= RING_BITS:
            return Wide.of(self.high >> (count - RING_BITS))
        return Wide(ring.shift_right(self.low, count, RING_BITS) | (self.high << (RING_BITS - count)), self.high >> count)

    def sum(self, dim: int, keepdim: bool = False) -> Wide:
        """Return the sum along an axis of fewer than 2^31 elements."""
        low, middle = self.low & _HALF, ring.shift_right(self.low, 32, RING_BITS)
        total = Wide.of(low.sum(dim, keepdim=keepdim)) + (Wide.of(middle.sum(dim, keepdim=keepdim)) << 32)
        return total + Wide(torch.zeros_like(total.low), self.high.sum(dim, keepdim=keepdim))


Words = Tensor | Wide


def _wide(x: Words) -> Wide:
    return x if isinstance(x, Wide) else Wide.of(x)


def widened(x: Tensor, bits: int) -> Words:
    """Return signed words as elements of Z_2^bits: themselves up to 64 bits."""
    return x if bits <= RING_BITS else Wide.of(x)


def widened_unsigned(x: Tensor, bits: int) -> Words:
    """Return canonical elements of a smaller ring as elements of Z_2^bits."""
    return x if bits <= RING_BITS else Wide.of_unsigned(x)


def reduce(x: Words, bits: int) -> Words:
    """Return the canonical form in Z_2^bits."""
    if isinstance(x, Wide):
        return Wide(x.low, ring.reduce(x.high, bits - RING_BITS)) if bits > RING_BITS else ring.reduce(x.low, bits)
    return ring.reduce(x, bits)


def shifted(x: Words, count: int, bits: int) -> Tensor:
    """Return floor(x / 2^count) of the canonical x in Z_2^bits, which must fit a word: canonical in Z_2^(bits - count)."""
    if not isinstance(x, Wide):
        return ring.shift_right(x, count, bits)
    if count >= RING_BITS:
        return ring.shift_right(x.high, count - RING_BITS, bits - RING_BITS)
    whole = x.low if count == 0 else ring.shift_right(x.low, count, RING_BITS) | (x.high << (RING_BITS - count))
    return ring.reduce(whole, min(bits - count, RING_BITS))


def below(a: Tensor, b: Tensor) -> Tensor:
    """Return [a < b] of unsigned words."""
    if a.device.type == "cpu":
        found = np.less(a.numpy().view(np.uint64), b.numpy().view(np.uint64))
        return torch.from_numpy(np.asarray(found).view(np.int8)).to(torch.int64)
    least = torch.iinfo(torch.int64).min
    return ((a ^ least) < (b ^ least)).to(torch.int64)


def _where(word: Tensor, value: Tensor) -> Tensor:
    """Return value where a word's top bit is set: what reading it as signed has taken away."""
    return (word >> 63) & value


def _high_of_product(a: Tensor, b: Tensor) -> Tensor:
    """Return the high word of the product of signed words."""
    a0, a1, b0, b1 = a & _HALF, a >> 32, b & _HALF, b >> 32
    lowest = a0 * b0
    lowest >>= 32
    lowest &= _HALF
    middle, other, high = a0 * b1, a1 * b0, a1 * b1
    middle += lowest
    other += middle & _HALF
    middle >>= 32
    other >>= 32
    high += middle
    high += other
    return high
