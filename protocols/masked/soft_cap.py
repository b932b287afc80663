"""The soft cap c tanh(x / c) of a masked value as a sum of sines: no round.

A tanh that changes its sign every half period P / 2 is tanh for |x| < P / 4, up to e^(-P / (2 c)), and has the closed form

    c tanh(x / c) = sum over odd j of a_j sin(2 pi j x / P),   a_j = (4 pi c^2 / P) / sinh(pi^2 j c / P)

and a ring is a period by itself, so x modulo P is the low bits of m and lam. sin(w (m - lam)) is linear in the dealt cosine
and sine of the mask. P is a power of two, at least four times the bound of |x| and 32 c: some 40 harmonics for c = P / 40,
fewer where c is larger. Amplitudes are decimal numbers and the turns' tables integers, equal on every machine.

Rounds: 0. Offline, result of K bits: 2 (K - floor(log2(a_1 / a_j))) bits of each harmonic j. Range: |x| < P / 4. Error:
below 2^-12 for P up to 256 c, some 200 harmonics; it grows with their number.
Leaks: nothing, it is local (docs/security.md, "Soft caps"). The series: Poisson summation of sech^2.
"""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor

from mpc import wide
from mpc.ring import RING_BITS
from mpc.wide import Wide, Words
from protocols.masked import curves
from protocols.masked.context import Context, require
from protocols.masked.lifted import blank, sharing
from protocols.masked.shares import Masked, Shared, WideShared
from protocols.masked.wide import deal

DEALT_BITS = 22  # fraction bits of the first harmonic's cosines of the mask
PUBLIC_BITS = 18  # of an amplitude times the public cosine
FRAC = DEALT_BITS + PUBLIC_BITS
COARSE = 13  # bits of a turn that one table names; another has the rest
PERIOD_OF_CAP = 32  # P / c at least: the next repetition is e^-8 below at P / 4, where tanh is 1 within e^-16
LARGEST_CAP = 224  # amplitudes times cosines fit a word, and exponents between two caps a ring
SMALLEST = Decimal("1.5e-5")  # an amplitude that counts
_PI = Decimal("3.141592653589793238462643383279502884197169")


def period_bits(cap: float, bound: int) -> int:
    """Return log2 of the period for |x| < 2^bound."""
    return max(bound + 2, math.ceil(math.log2(PERIOD_OF_CAP * cap)))


@cache
def amplitudes(cap: float, period: int) -> tuple[tuple[int, int], ...]:
    """Return (j, a_j) with `curves.AMPLITUDE_BITS` fraction bits."""
    with localcontext() as context:
        context.prec = 40
        ratio = _PI * Decimal(cap) / Decimal(2**period)
        found = []
        for j in range(1, 1 << period, 2):
            grown = (_PI * j * ratio).exp()
            a = 8 * ratio * Decimal(cap) / (grown - 1 / grown)
            if a < SMALLEST:
                break
            found.append((j, int((a * 2**curves.AMPLITUDE_BITS).to_integral_value())))
    return tuple(found)


@cache
def _fine(bits: int, count: int, device: torch.device) -> Tensor:
    """Return cosines and sines of 2 pi k / 2^bits for k < count, small angles, `AMPLITUDE_BITS` fraction bits [2, count]."""
    with localcontext() as context:
        context.prec = 40
        unit, scale = 2 * _PI / 2**bits, 2**curves.AMPLITUDE_BITS
        turns = [(unit * k) ** 2 for k in range(count)]
        cos = [int((scale * (1 - t / 2 + t * t / 24 - t**3 / 720)).to_integral_value()) for t in turns]
        sin = [int((scale * unit * k * (1 - t / 6 + t * t / 120)).to_integral_value()) for k, t in enumerate(turns)]
    return torch.tensor([cos, sin], dtype=torch.int64).to(device)


def turned(x: Tensor, j: int, bits: int) -> Tensor:
    """Return cos and sin of 2 pi j x / 2^bits with `AMPLITUDE_BITS` fraction bits, [2, ...], by two tables."""
    coarse = min(COARSE, bits)
    places = (j * x) & ((1 << bits) - 1)
    high, low = places >> (bits - coarse), places & ((1 << (bits - coarse)) - 1)
    table, quarter = curves.cosines(coarse, x.device), 1 << (coarse - 2)
    c, s = (table[k].to(torch.int64) for k in (high, (high - quarter) & ((1 << coarse) - 1)))
    if bits == coarse:
        return torch.stack([c, s])
    fine = _fine(bits, 1 << (bits - coarse), x.device)
    c2, s2 = fine[0][low], fine[1][low]
    return torch.stack([c * c2 - s * s2, s * c2 + c * s2]) >> curves.AMPLITUDE_BITS


def _cut(x: Tensor, count: int) -> Tensor:
    """Return x / 2^count, rounded."""
    return (x + (1 << (count - 1))) >> count


def soft_cap(c: Context, x: Masked, cap: float, period: int, bits: int) -> Shared | WideShared:
    """Return [cap tanh(x / cap)] modulo 2^bits with `FRAC` fraction bits, for |x| < 2^period / 4."""
    circle = period + x.frac
    require(cap < LARGEST_CAP, "soft cap", f"a cap of {cap} is not below {LARGEST_CAP}")
    require(3 <= circle <= x.bits, "soft cap", f"a period of 2^{period} with {x.frac} fraction bits in a ring of {x.bits}")
    found = amplitudes(cap, period)
    total: Any = None
    for j, a in found:
        shift = (found[0][1] // a).bit_length() - 1
        spared = curves.AMPLITUDE_BITS - DEALT_BITS + shift

        def known(j: int = j, count: int = spared) -> Words:
            return wide.widened(_cut(turned(x.lam, j, circle), count), bits - shift)  # noqa: B023

        dealt = deal(c, "soft cap", (2, *x.shape), bits - shift, known)
        if not c.evaluating or x.m.is_meta:
            continue
        cos, sin = turned(x.m, j, circle)
        public = _cut(torch.stack([sin, -cos]) * a, 2 * curves.AMPLITUDE_BITS - PUBLIC_BITS)
        lifted = Wide.of(dealt) if bits > RING_BITS and isinstance(dealt, Tensor) else dealt
        part = (lifted * public).sum(0) << shift
        total = part if total is None else total + part
    return blank(c, x.shape, bits, FRAC) if total is None else sharing(total, bits, FRAC)
