"""The even part of an activation function by segments: one-hot bits with the dealer's sign, one round.

The digit of x that names the segment is read by a signed one-hot vector (`signed_one_hot`), so every party holds shares of
sigma a_i for the coefficients a_i of that segment. The public position gamma = m_lo / 2^l within a segment shifts the
polynomial: with t = gamma - rho, rho = lam_lo / 2^l,

    sum_i a_i t^i = sum_e v_e (-rho)^e,   v_e = sum_(i >= e) a_i C(i, e) gamma^(i - e)

so sigma v_e is local. It is opened, masked, in a ring as small as its values, and multiplied by sigma (-rho)^e, which the
dealer knows (`lifted.sum_known`). A borrow reads the segment above with t < 0, for which it is fitted too.

Rounds: 1. Online: the sum of the rings of sigma v_e, 43 bits for degree 2. Offline: 2^width bits and (degree + 2) K +
(what those rings lack of K) for a result of K bits; with more than two parties 2^width times some 40 bits in place of
2^width. Error: that of the curve and 2^-15 for each v_e.
Leaks: nothing; masks are fresh (docs/security.md, "Segments").
Sources: SIGMA (Gupta et al. 2024); Boyle, Gilboa, Ishai 2019.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from protocols.masked import curves
from protocols.masked.context import Context, require
from protocols.masked.lifted import Known, plus_public, sum_known
from protocols.masked.shares import Masked, Shared, WideShared
from protocols.masked.signed_one_hot import SignedOneHot, signed_look_up, signed_one_hot
from protocols.masked.truncation import open_cut
from protocols.schedule import together

VALUE_BITS = 15  # fraction bits of v_e when it is opened
POSITION_BITS = 12  # fraction bits of gamma's powers, and of rho's at most


def position_bits(kind: str, frac: int) -> int:
    """Return the fraction bits of rho."""
    s = curves.SEGMENTS[kind]
    return min(POSITION_BITS, frac + s.period - s.width)


def result_frac(kind: str, frac: int) -> int:
    """Return the fraction bits of the result, for an x with so many."""
    return VALUE_BITS + position_bits(kind, frac)


def _rings(kind: str) -> list[int]:
    """Return the ring of each v_e, lifted on the way."""
    return [math.floor(math.log2(most * 2.0**VALUE_BITS + 2)) + 3 for most in curves.ranges(kind)]


def _shifted_values(c: Context, kind: str, hot: SignedOneHot, gamma: Tensor) -> list[Shared]:
    """Return [sigma v_e] with 22 + 12 fraction bits. gamma: 12 fraction bits, public."""
    degree = curves.SEGMENTS[kind].degree
    cut = curves.COEFFICIENT_BITS + POSITION_BITS - VALUE_BITS
    rings = [bits + cut for bits in _rings(kind)]
    if not c.evaluating or gamma.is_meta:
        return [Shared(c.blank(hot.shape), bits, VALUE_BITS + cut) for bits in rings]
    found = signed_look_up(c, hot, curves.coefficients(kind, gamma.device), max(rings)).x
    out = []
    for e, bits in enumerate(rings):
        value, power = found[e] << POSITION_BITS, torch.full_like(gamma, 1 << POSITION_BITS)
        for i in range(e + 1, degree + 1):
            power = (power * gamma + (1 << (POSITION_BITS - 1))) >> POSITION_BITS
            value = value + found[i] * (math.comb(i, e) * power)
        out.append(Shared(value, bits, VALUE_BITS + cut))
    return out


async def segments(c: Context, kind: str, x: Masked, bits: int) -> Shared | WideShared:
    """Return [E(x)] of the even part of `kind` modulo 2^bits with `result_frac` fraction bits, x read modulo the period. 1
    round."""
    s, r = curves.SEGMENTS[kind], position_bits(kind, x.frac)
    low = x.frac + s.period - s.width
    require(low > 0 and low + s.width <= x.bits, kind, f"{1 << s.width} segments with {x.frac} fraction bits in 2^{x.bits}")
    rings = _rings(kind)
    cut = curves.COEFFICIENT_BITS + POSITION_BITS - VALUE_BITS
    hot = signed_one_hot(c, x, low, s.width, max(rings) + cut)
    gamma = x.m
    if c.evaluating and not x.m.is_meta:
        gamma = ((x.m & ((1 << low) - 1)) << POSITION_BITS) >> low
    values = _shifted_values(c, kind, hot, gamma)
    opened = await together(*(open_cut(c, value, cut) for value in values))

    def power(e: int) -> Known:
        def known() -> Tensor:
            rho = (x.lam & ((1 << low) - 1)).to(torch.float64) / 2.0**low
            return hot.sign() * torch.round((-rho) ** e * 2.0**r).to(torch.int64)

        return known

    terms = [(v, power(e)) for e, v in enumerate(opened)]
    found = sum_known(c, f"{kind} segments", terms, result_frac(kind, x.frac), bits)
    return plus_public(c, found, curves.rounded(curves.middle_of(kind), found.frac))
