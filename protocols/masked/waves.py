"""The even part of an activation function as a sum of cosines: no round.

cos(w (m - lam)) = cos(w m) cos(w lam) + sin(w m) sin(w lam) is linear in the dealt cosine and sine of the mask, and a ring
is a period by itself: x modulo the period is the low bits of m and lam. So E(x) = sum_j a_j cos(2 pi j x / period) takes two
dealt numbers a harmonic, j odd (`curves`); a small amplitude takes fewer of their fraction bits. Any number of parties.

Rounds: 0. Offline, result of K bits: 2 (K - floor(log2(a_1 / a_j))) bits of each harmonic j. Error: that of the curve and,
for each harmonic, 2^-14 2^-p a_1 and 2^-13 2^-p at most, for a period of 2^p; a_1 is below 2^p / 8.
Leaks: nothing, it is local (docs/security.md, "Waves").
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor

from mpc import wide
from mpc.ring import RING_BITS
from mpc.wide import Wide, Words
from protocols.masked import curves
from protocols.masked.context import Context, require
from protocols.masked.lifted import blank, plus_public, sharing
from protocols.masked.shares import Masked, Shared, WideShared
from protocols.masked.wide import deal

DEALT_BITS = 13  # fraction bits of the first harmonic's cosines of the mask, in a period of 1
PUBLIC_BITS = 12  # of an amplitude times the public cosine, likewise
AT_ONCE = 1 << 17  # numbers whose cosines are looked up at once: some MiB


def fraction_bits(period: int) -> int:
    """Return the fraction bits of a sum of waves of period 2^period."""
    return DEALT_BITS + PUBLIC_BITS + 2 * period


def _at(x: Tensor, j: int | Tensor, bits: int) -> Tensor:
    """Return cos and sin of 2 pi j x / 2^bits with `AMPLITUDE_BITS` fraction bits, [2, ...]."""
    pairs = _circle(bits, x.device).take((j * x) & ((1 << bits) - 1))
    if x.device.type != "cpu":
        return torch.stack([(pairs << 32) >> 32, pairs >> 32])
    return pairs.unsqueeze(-1).view(torch.int32).movedim(-1, 0).to(torch.int64)


@cache
def _circle(bits: int, device: torch.device) -> Tensor:
    """Return cos and sin of 2 pi k / 2^bits side by side as two halves of a word, int64 [2^bits]: one look at both."""
    cosines = curves.cosines(bits, device)
    return torch.stack([cosines, cosines.roll((1 << bits) // 4)], -1).view(torch.int64)[:, 0]


def _cut(x: Tensor, count: int) -> Tensor:
    """Return x / 2^count, rounded."""
    return (x + (1 << (count - 1))) >> count


def _factors(x: Tensor, found: tuple[tuple[int, int], ...], period: int, circle: int) -> Iterator[Tensor]:
    """Yield a_j times cos and sin of each harmonic at public x, [2, ...]: of few elements all harmonics are made at once."""
    step = max(1, AT_ONCE // max(1, x.numel()))
    every = _columns(found, x.device).reshape(2, -1, *[1] * x.dim())
    for start in range(0, len(found), step):
        j, a = every[:, start : start + step]
        yield from _cut(_at(x, j, circle) * a, 2 * curves.AMPLITUDE_BITS - PUBLIC_BITS - period).unbind(1)


@cache
def _columns(pairs: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
    return torch.tensor(pairs).t().to(device)


def waves(c: Context, kind: str, x: Masked, period: int, bits: int) -> Shared | WideShared:
    """Return [E(x)] of the even part of `kind` modulo 2^bits with `fraction_bits`, for |x| < 2^period / 2 - half."""
    circle, frac = period + x.frac, fraction_bits(period)
    require(3 <= circle <= x.bits, kind, f"a period of 2^{period} with {x.frac} fraction bits in a ring of {x.bits}")
    found = curves.amplitudes(kind, period)
    largest = max(abs(a) for _, a in found)
    total: Any = None
    values = c.evaluating and not x.m.is_meta
    factors = _factors(x.m, found, period, circle)
    for j, a in found:
        shift = (largest // abs(a)).bit_length() - 1
        spared = curves.AMPLITUDE_BITS - DEALT_BITS - period + shift

        def known(j: int = j, count: int = spared) -> Words:
            return wide.widened(_cut(_at(x.lam, j, circle), count), bits - shift)  # noqa: B023

        dealt = deal(c, f"{kind} waves", (2, *x.shape), bits - shift, known)
        if not values:
            continue
        lifted = Wide.of(dealt) if bits > RING_BITS and isinstance(dealt, Tensor) else dealt
        part = (lifted * next(factors)).sum(0) << shift
        total = part if total is None else total + part
    if total is None:
        return blank(c, x.shape, bits, frac)
    return plus_public(c, sharing(total, bits, frac), 1 << (period - 3 + frac))
