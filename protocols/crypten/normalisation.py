"""1 / sqrt(variance + epsilon) and 1 / sqrt(mean square + epsilon) of rows of any size.

CrypTen's inv_sqrt has the wrong sign at 256, and a public epsilon of 1e-5 encodes to 0. Here a row is opened once under a
mask and squared twice: at all its fraction bits, which is exact while its norm is below 2^(31 - bits), and at `COARSE_BITS`,
where norms up to 2^26 fit. Rows below 2^(30 - bits) take the first sum, larger ones the second: an outlier of 2^18 costs a
small row beside it nothing.

Leaks: nothing (docs/security.md, "Norms, crypten").
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from mpc import ring
from mpc.errors import RangeError
from protocols.crypten import comparison
from protocols.crypten.arithmetic import add_public, mul, rescale, truncate
from protocols.crypten.binding.library import CryptenSession
from protocols.crypten.comparison import Comparison
from protocols.crypten.reciprocal import WORKING_BITS, one_hot_factor, rsqrt_unit
from protocols.suite import Norm

COARSE_BITS = 5
"""Fraction bits of the coarse copy of a row: what a norm of 2^(30 - 20) and more needs for a relative error of 1e-5."""
TOP = 30  # both sums are compared below 4^30, and brought to [4^29, 4^30)
MEAN_BITS = 30
INVERSE_BITS = 16  # of 1 / deviation below its smallest value
NOISE = 1 + 2.0**-5  # what roundings add to a coarse sum at most, for a norm of 2^4


def centre(s: CryptenSession, x: Tensor, fraction_bits: int, bound: int) -> Tensor:
    """Return x minus its mean over the last axis [..., D]; the mean is rounded to one unit. 1 round, 8 bytes per row.

    bound: log2 of the rows' norms; it takes bits from 1 / D where more than 61 would be needed.
    """
    width = x.shape[-1]
    largest = fraction_bits + bound - (width.bit_length() - 1) // 2
    bits = min(MEAN_BITS, 61 - largest)
    mean = truncate(s, x.sum(-1, keepdim=True) * round(2.0**bits / width), bits)
    return x - mean


def sums_of_squares(s: CryptenSession, x: Tensor, cut: int) -> tuple[Tensor, Tensor]:
    """Return over the last axis, [..., D] -> [..., 1], the sum of x^2 and that of (x / 2^cut)^2, both modulo 2^64.

    |x| < 2^62, 1 < cut <= 16. The first is exact; in the second every x / 2^cut is the integer below or above, the nearer
    one more often. 1 round, 8 bytes per element: one opening m = x + 2^62 + r serves both.

    With b = r >> cut and c the highest bit of r, x / 2^cut is (m >> cut) - 2^(62-cut) - b + 2^(64-cut) c (1 - msb(m)), as in
    `arithmetic.truncate_together`. In its square the terms with c and with b c have the factor 2^(65-cut), so both are dealt
    modulo 2^(cut-1); the one with c^2 vanishes.
    """
    sums = (*x.shape[:-1], 1)
    r = s.tape.random("square mask", x.shape)
    b = ring.shift_right(r, cut, 64)

    def squares() -> Tensor:
        return torch.stack([r.square().sum(-1, keepdim=True), b.square().sum(-1, keepdim=True)])

    squared = s.held(s.tape.dependent("squared masks", (2, *sums), squares))
    high = s.held(s.tape.dependent("square high part", x.shape, lambda: b))
    top = s.held(s.tape.dependent("square top bit", x.shape, lambda: ring.shift_right(r, 63, 64), cut - 1))
    mixed = s.held(s.tape.dependent("square mixed part", x.shape, lambda: ring.shift_right(r, 63, 64) * b, cut - 1))
    shifted = x + (1 << 62) if s.party == 0 else x
    m = s.open(shifted + s.held(r))
    if s.channel is None:
        return s.without_content(sums), s.without_content(sums)
    public = m - (1 << 62)
    coarse = ring.shift_right(m, cut, 64) - (1 << (62 - cut))
    wrapped = (m >= 0).to(torch.int64) << (65 - cut)
    exact_sum = squared[0] - (public * s.held(r)).sum(-1, keepdim=True) * 2
    coarse_sum = squared[1] + ((coarse * top - mixed) * wrapped - coarse * high * 2).sum(-1, keepdim=True)
    if s.party == 0:
        exact_sum = exact_sum + public.square().sum(-1, keepdim=True)
        coarse_sum = coarse_sum + coarse.square().sum(-1, keepdim=True)
    return exact_sum, coarse_sum


@dataclass(frozen=True, repr=False)
class Rows:
    """Rows that are normalised: a share [..., D], its fraction bits, log2 of what their norms stay below, and the kind of
    range flag that is set beyond."""

    share: Tensor
    fraction_bits: int
    bound: int
    flag: str = "residual"


def rsqrt_mean_square(s: CryptenSession, rows: Rows, epsilon: float) -> tuple[Tensor, int]:
    """Return 1 / sqrt(mean(x^2) + epsilon) over the last axis, [..., D] -> [..., 1], and its number of fraction bits.

    Right for every row whose norm is below 2^bound, or 2^(30 - fraction_bits) if that is more; what lies below 2^-2f for
    f = `fraction_bits` does not count. Relative error below 5e-5. A norm of 2^bound or more, 2^(bound + 1/40)
    at the latest, sets the range flag, for certain up to 2^26; beyond, the sum wraps.
    25 rounds; 8 bytes per element and about 700 per row.
    """
    x, fraction_bits, bound = rows.share, rows.fraction_bits, rows.bound
    width, crossing = x.shape[-1], TOP - fraction_bits
    offset = max(1, round(epsilon * width * 4.0**fraction_bits))
    if not 0 < epsilon * width < 4.0**crossing:
        raise RangeError(f"epsilon must be positive and small, got {epsilon}")
    least, top = (offset.bit_length() - 1) // 2 - fraction_bits, max(bound, crossing)
    exact, coarse = sums_of_squares(s, x, fraction_bits - COARSE_BITS)
    exact = add_public(s, exact, offset)
    fine_steps, coarse_steps = range(least + 1, crossing), range(crossing, bound)
    limit = round(4.0 ** (bound + COARSE_BITS) * NOISE)
    below, coarse_below = comparison.less_than_together(
        s,
        [
            Comparison(exact, [4 ** (k + fraction_bits) for k in fine_steps]),
            Comparison(coarse, [*(4 ** (k + COARSE_BITS) for k in coarse_steps), limit, 0]),
        ],
    )
    if s.ranges is not None:
        s.ranges.note(rows.flag, coarse_below[-2] ^ coarse_below[-1])
    # a row with a norm in [2^k, 2^(k+1)) is multiplied by 4^(29-k), its inverse root by 2^(top-1-k)
    fine_places, coarse_places = range(least, crossing), range(crossing, top)
    up = [4 ** (crossing - 1 - k) for k in fine_places]
    back = [2 ** (top - 1 - k) for k in fine_places]
    if not coarse_steps:
        fine = comparison.to_arithmetic(s, below)
        unit = mul(exact, one_hot_factor(s, fine, up))
        inverse = one_hot_factor(s, fine, back)
    else:
        one, fine, large = comparison.to_arithmetic_under(s, coarse_below[0], below, coarse_below[1:-2])
        coarse_up = [0, *(4 ** (TOP - 1 - COARSE_BITS - k) for k in coarse_places)]
        coarse_back = [0, *(2 ** (top - 1 - k) for k in coarse_places)]
        large = torch.cat([one[None], large])
        factors = torch.stack([_under(one, fine, up), one_hot_factor(s, large, coarse_up)])
        unit = mul(torch.stack([exact, coarse]), factors).sum(0)
        inverse = _under(one, fine, back) + one_hot_factor(s, large, coarse_back)
    y = rsqrt_unit(s, rescale(s, unit, 2 * TOP, WORKING_BITS))
    exponent = math.ceil(math.log2(width) / 2)
    bits = min(WORKING_BITS, 2 * TOP - (top - 1 - least))
    y = truncate(s, y * round(math.sqrt(width) * 2.0 ** (WORKING_BITS - exponent)), 2 * WORKING_BITS - bits)
    wanted = min(INVERSE_BITS + top, 2 * TOP - fraction_bits - exponent)
    return rescale(s, mul(y, inverse), bits + top - exponent, wanted), wanted


def _under(condition: Tensor, below: Tensor, factors: list[int]) -> Tensor:
    """Return condition times `one_hot_factor`, from the condition and its product with every bit; local."""
    total = condition * factors[-1]
    for bit, (a, b) in zip(below.unbind(0), pairwise(factors), strict=True):
        total = total + bit * (a - b)
    return total


def rsqrt_moment(s: CryptenSession, rows: Rows, norm: Norm) -> tuple[Tensor, Tensor, int]:
    """Return (x, 1 / sqrt(moment + epsilon), its fraction bits); for "layer" x is returned centred."""
    if norm.kind == "layer":
        rows = replace(rows, share=centre(s, rows.share, rows.fraction_bits, rows.bound))
    inverse, bits = rsqrt_mean_square(s, rows, norm.epsilon)
    return rows.share, inverse, bits
