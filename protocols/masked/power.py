"""1/x and 1/sqrt(x) of a positive scalar of unknown magnitude: three rounds, relative error below 2^-14.

1. For thresholds 2^p (p = low, low + 2, ..., high) decide x < 2^p up to a factor of two: m >> p must be lam >> p or one
   more. Both candidates are known to the dealer, so the parties add up digit mismatches (dealt one-hot vectors, small ring)
   and open the two masked counts: round 1. A count is zero for at most one candidate.
2. The thresholds give a one-hot exponent; x times the matching power of four, in [0.25, 2) 2^high, and the factor that
   undoes it are opened together: round 2.
3. A piecewise polynomial of the normalised value, times the factor (no round), is the result, Shared: the caller opens it,
   usually round 3, together with something else.

Range: 2^low <= x < 2^high ring units (outside it the result is meaningless); x.bits >= high + 2.
Leaks: nothing; counts, normalised value and factor are opened under fresh uniform masks (docs/security.md, "Powers").
Sources as in the gates used.
"""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor

from mpc import ring
from protocols.masked.context import Context, open_value, require
from protocols.masked.one_hot import deal_scaled, look_up
from protocols.masked.piecewise import Piecewise, evaluate, normalised_power
from protocols.masked.shares import Masked, Shared
from protocols.masked.truncation import open_cut
from protocols.schedule import together

DIGIT = 6
MANTISSA_BITS = 18  # fraction bits kept of the normalised value
RELATIVE_BITS = 18  # coefficients of the power's polynomial are rounded to this relative precision
GAMMA_BITS = 12  # of the public powers in it


def _thresholds(low: int, high: int) -> list[int]:
    return list(range(low + (high - low) % 2, high, 2))


def _candidate_digits(lam: Tensor, shift: int, bits: int, count: int) -> Tensor:
    """Return the digits of lam >> shift and (lam >> shift) + 1 modulo 2^(bits - shift): [2, count, ...]."""
    base = ring.shift_right(lam, shift, bits)
    out = []
    for step in (0, 1):
        value = ring.reduce(base + step, bits - shift)
        out.append(torch.stack([ring.shift_right(value, i * DIGIT, 64) & ((1 << DIGIT) - 1) for i in range(count)]))
    return torch.stack(out)


@cache
def _digit_cuts(ps: tuple[int, ...], count: int, bits: int) -> tuple[Tensor, Tensor]:
    """Shift and mask of digit i above threshold p in a ring of `bits` bits: [thresholds, count] each."""
    shifts = torch.tensor([[p + i * DIGIT for i in range(count)] for p in ps])
    return shifts.clamp(max=63), (1 << (bits - shifts).clamp(0, DIGIT)) - 1


async def _below(c: Context, x: Masked, low: int, high: int, bits: int) -> tuple[Shared, Shared]:
    """Return for each threshold [x < 2^p] modulo 2^64 and [x < 2^p] x modulo 2^bits, [thresholds, ...]. One round."""
    ps = _thresholds(low, high)
    digits = -(-(x.bits - ps[0]) // DIGIT)
    count_bits = 4
    require(digits < 1 << count_bits, "power", f"a ring of {x.bits} bits has too many digits")
    shape = (2, len(ps), digits, *x.shape)

    def candidates() -> Tensor:
        return torch.stack([_candidate_digits(x.lam, p, x.bits, digits) for p in ps], 1)

    # mismatch counts: sum over digits of 1 - [digit of m = candidate's digit]
    lam_digits = candidates() if c.tape.dealing else c.blank(shape)
    dealt = deal_scaled(c, "threshold digits", lam_digits, DIGIT, count_bits, [lambda: torch.ones_like(lam_digits)])[0]
    if c.evaluating:
        shifts, masks = _digit_cuts(tuple(ps), digits, x.bits)
        axes = (len(ps), digits, *[1] * x.m.dim())
        m_digits = (x.m >> shifts.to(x.m.device).reshape(axes)) & masks.to(x.m.device).reshape(axes)
        m_digits = m_digits[None].expand(shape)
        match = look_up(dealt, m_digits).sum(2)
        mismatch = Shared(-match, count_bits, 0)
        mismatch = c.add_public(mismatch, torch.full(mismatch.shape, digits))
    else:
        mismatch = Shared(c.blank((2, len(ps), *x.shape)), count_bits, 0)
    counts = await open_value(c, mismatch)
    ones = deal_scaled(c, "threshold bits", counts.lam, count_bits, 64, [lambda: torch.ones_like(counts.lam)])[0]
    scaled = deal_scaled(c, "threshold bits times mask", counts.lam, count_bits, bits, [lambda: x.lam.expand(counts.shape)])[
        0
    ]
    shape = (len(ps), *x.shape)
    if not c.evaluating:
        return Shared(c.blank(shape), 64, 0), Shared(c.blank(shape), bits, x.frac)
    # a count is zero where lam = m; at most one of the two candidates has none
    bit = look_up(ones, counts.m).sum(0)
    bit_lam = look_up(scaled, counts.m).sum(0)
    return Shared(bit, 64, 0), Shared(x.m * bit - bit_lam, bits, x.frac)


async def power(c: Context, x: Masked, low: int, high: int, exponent: float, constant: float = 1.0) -> Shared:
    """Return [constant * x^exponent], exponent -1 or -1/2, x read in real units (x.frac fraction bits). 2 rounds.

    low, high: 2^low <= x < 2^high in ring units. The result is Shared modulo 2^64 with as many fraction bits as keep a
    relative error below 2^-14 at the smallest result, constant (2^high)^exponent.
    """
    require(exponent in (-1.0, -0.5), "power", f"the exponent must be -1 or -0.5, got {exponent}")
    require(x.bits >= high + 1, "power", f"a ring of {x.bits} bits cannot hold values up to 2^{high} normalised")
    ps = [*_thresholds(low, high), high]
    # x^e = t^e 2^(e (high - x.frac)) up^-e for x = t 2^high / up; up^-e is an integer for powers of four
    factor = constant * 2.0 ** (exponent * (high - x.frac))
    step = 1 if exponent == -0.5 else 2
    frac = RELATIVE_BITS + GAMMA_BITS - math.floor(math.log2(factor))
    largest = factor * 2.0 ** ((high - ps[0]) // 2 * step + 1)
    require(frac + math.log2(largest) < 63, "power", f"a range of 2^{low} to 2^{high} is too wide")
    below, below_x = await _below(c, x, low, high, high + 1)
    up = [1 << (high - p) for p in ps]
    back = [1 << ((high - p) // 2 * step) for p in ps]
    normal = _weighted(c, below_x, c.shared(x).to_ring(high + 1), up)
    one = c.public(torch.ones(x.shape, dtype=torch.int64, device=c.device), 64, 0)
    undo = _weighted(c, below, one, back)
    t, masked_undo = await together(open_cut(c, normal, high - MANTISSA_BITS), open_value(c, undo))
    f = normalised_power(exponent)
    scaled = Piecewise(f.name, f.low, f.width, f.coefficients * factor)
    return evaluate(c, scaled, Masked(t.m, t.lam, t.bits, MANTISSA_BITS), 64, frac, masked_undo, GAMMA_BITS)


def _weighted(c: Context, below: Shared, top: Shared, weights: list[int]) -> Shared:
    """Return the sum_p e_p weights[p] where e_p = b_p - b_(p-2) is one-hot, b_high = `top`."""
    if not c.evaluating:
        return Shared(c.blank(top.shape), below.bits, below.frac)
    steps = torch.tensor([a - b for a, b in pairwise(weights)], device=below.x.device)
    parts = below.x * steps.reshape(-1, *[1] * (below.x.dim() - 1))
    return Shared(top.x * weights[-1] + parts.sum(0), below.bits, below.frac)
