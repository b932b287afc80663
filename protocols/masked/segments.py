"""Where an activation function is curved: by segments, read by one-hot bits with the dealer's sign, times a bit. One round.

P(x) = f(x) - x is a polynomial on each segment. With x moved so that what is curved starts at 0, two digits of x are read: a
bracket's, in units of 2^u, whose bit `inside` says that it is one of the first 2^o (`brackets`), and the segment's, which
starts below the unit and ends with o of the unit's bits. The latter is read by a signed one-hot vector
(`signed_one_hot`), each of whose places names the mask's digit, so at each place a party knows

* whether the segments within a unit borrow from the units, and
* the o bits of m_unit - lam_unit, so all of it where it is one of the first 2^o.

Hence the segment of x is known exactly at each place, but for the borrow from below a segment, wherever inside holds: in
[-2^u, 2^(u + o)), each with its own polynomial. Elsewhere something else is read, and inside is 0 whatever borrows: it and
the segment are read from the same bits of the mask.

So every party holds shares of sigma a_i for the coefficients a_i of that segment. The public position gamma = m_lo / 2^l
within a segment shifts the polynomial: with t = gamma - rho, rho = lam_lo / 2^l,

    inside P = inside sum_e v_e (-rho)^e,   v_e = sum_(i >= e) a_i C(i, e) gamma^(i - e)

sigma v_e is local. It is opened, masked, in a ring as small as its values, while the bit is; then it is multiplied by inside
sigma (-rho)^e, a table of two entries that the dealer knows, read at the opened bit (`lifted.sum_known`). A borrow
from below reads the segment above with t < 0, for which it is fitted too.

Without the bit P is opened by itself, behind a veil (`veiled`).

Rounds: 1. Online: the sum of the rings of sigma v_e, 46 bits for degree 2. Offline: 2^width bits, and 2 (degree + 2) K less
what factors have fewer fraction bits, and 2 (what the rings lack of it), for a result of K bits, half of these without the
bit and less by what is cut of K; with more than two parties 2^width times some 40 bits in place of 2^width.
Error: that of the curve, and 2^-15 for each v_e and each power of rho.
Leaks: nothing; masks are fresh (docs/security.md, "Segments").
Sources: SIGMA (Gupta et al. 2024); Boyle, Gilboa, Ishai 2019.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from protocols.masked import curves, veiled
from protocols.masked.comparison import Bit
from protocols.masked.context import Context, require
from protocols.masked.lifted import Factor, sum_known
from protocols.masked.opened_bits import choice
from protocols.masked.shares import Masked, Shared, WideShared
from protocols.masked.signed_one_hot import SignedOneHot, signed_look_up, signed_one_hot
from protocols.masked.truncation import open_cut
from protocols.masked.veiled import Veiled
from protocols.schedule import together

VALUE_BITS = 15  # fraction bits of v_e when it is opened
GAMMA_BITS = 12  # fraction bits of gamma's powers
RHO_BITS = 12  # of the powers of rho at most
RHO_ERROR = 15  # a power's rounding times its v_e stays below 2^-15
CUT = curves.COEFFICIENT_BITS + GAMMA_BITS - VALUE_BITS


@cache
def rings(kind: str) -> tuple[int, ...]:
    """Return the ring of each v_e, lifted on the way."""
    return tuple(math.floor(math.log2(most * 2.0**VALUE_BITS + 2)) + 3 for most in curves.ranges(kind))


@cache
def rho_bits(kind: str, low: int) -> tuple[int, ...]:
    """Return the fraction bits of rho^e, rho a number of `low` bits: fewer where v_e is small, none of 1."""
    wanted = [RHO_ERROR - 1 + math.ceil(math.log2(most)) for most in curves.ranges(kind)]
    return tuple(max(0, min(RHO_BITS, e * low, bits)) for e, bits in enumerate(wanted))


@dataclass(frozen=True)
class Segment:
    """What was opened of x's segment: v_e sigma, and sigma (-rho)^e."""

    kind: str
    terms: Sequence[tuple[Masked, Factor]]

    @property
    def frac(self) -> int:
        """Fraction bits of P."""
        return max(v.frac + factor.frac for v, factor in self.terms)

    def value(self, c: Context, bits: int) -> Veiled:
        """Return P(x) modulo 2^bits where the digit names x's segment, behind a veil; local."""
        return veiled.sum_known(c, f"{self.kind} segments", self.terms, bits)

    def times(self, c: Context, bit: Bit, bits: int) -> Shared | WideShared:
        """Return [bit P(x)] modulo 2^bits; local. bit: of one opened bit, 0 where the digit does not name x's segment."""
        return sum_known(c, f"{self.kind} segments", self.terms, bits, choice(bit))


def _shifted_values(c: Context, kind: str, hot: SignedOneHot, gamma: Tensor) -> list[Shared]:
    """Return [sigma v_e] with 22 + 12 fraction bits. gamma: 12 fraction bits, public."""
    degree = curves.SEGMENTS[kind].degree
    if not c.evaluating or gamma.is_meta:
        return [Shared(c.blank(hot.shape), bits + CUT, VALUE_BITS + CUT) for bits in rings(kind)]
    found = signed_look_up(c, hot, curves.coefficients(kind, gamma.device), max(rings(kind)) + CUT).x
    out = []
    for e, bits in enumerate(rings(kind)):
        value, power = found[e] << GAMMA_BITS, torch.full_like(gamma, 1 << GAMMA_BITS)
        for i in range(e + 1, degree + 1):
            power = (power * gamma + (1 << (GAMMA_BITS - 1))) >> GAMMA_BITS
            value = value + found[i] * (math.comb(i, e) * power)
        out.append(Shared(value, bits + CUT, VALUE_BITS + CUT))
    return out


async def segment(c: Context, kind: str, x: Masked) -> Segment:
    """Open what is needed of x's segment. 1 round."""
    s = curves.SEGMENTS[kind]
    low = x.frac + s.period - s.width
    require(low > 0 and low + s.width <= x.bits, kind, f"{1 << s.width} segments with {x.frac} fraction bits in 2^{x.bits}")
    moved = x.add_public(curves.HALF[kind] << x.frac)
    hot = signed_one_hot(c, moved, low, s.width, max(rings(kind)) + CUT)
    gamma = moved.m
    if c.evaluating and not gamma.is_meta:
        gamma = ((gamma & ((1 << low) - 1)) << GAMMA_BITS) >> low
    opened = await together(*(open_cut(c, value, CUT) for value in _shifted_values(c, kind, hot, gamma)))

    def power(e: int, bits: int) -> Factor:
        @cache
        def known() -> Tensor:
            rho = (x.lam & ((1 << low) - 1)).to(torch.float64) / 2.0**low
            return hot.sign() * torch.round((-rho) ** e * 2.0**bits).to(torch.int64)

        return Factor(known, bits)

    return Segment(kind, [(v, power(e, rho_bits(kind, low)[e])) for e, v in enumerate(opened)])
