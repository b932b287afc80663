"""Reciprocal and reciprocal square root of positive numbers of unknown size.

CrypTen's Newton iterations start from a fixed guess and converge on 0.0003 to 95 (reciprocal) and 0.04 to 170 (square
root). Here all powers of two (four) are compared with x at once, which gives x's exponent as a secret one-hot vector; x is
brought into a fixed interval by one product, and the scale is undone by another.

Leaks: nothing (docs/security.md, "Reciprocals, crypten").
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from mpc.errors import RangeError
from protocols.crypten import comparison
from protocols.crypten.arithmetic import add_public, mul, rescale, square, truncate
from protocols.crypten.binding.library import CryptenSession

# fraction bits of numbers in [1/4, 2] between the steps below; products of them stay below 2^62
WORKING_BITS = 28

# minimax relative error on the interval widened by 1 %: 1/x on [1, 2) 0.0622, 1/sqrt(x) on [1/4, 1) 0.0254
RECIPROCAL_LINE = (1.41154464, -0.46895108)
RSQRT_PARABOLA = (2.67090618, -3.27387651, 1.62178875)


def _fixed(value: float, bits: int) -> int:
    return round(value * 2.0**bits)


def one_hot_factor(s: CryptenSession, below: Tensor, factors: Sequence[int]) -> Tensor:
    """Return the sum_j e_j factors[j] for the secret one-hot e of x's interval; local.

    below: additive [J, ...], the monotone [x < threshold_j]; factors: J + 1 integers from the lowest interval upwards.
    """
    steps = torch.tensor([a - b for a, b in pairwise(factors)], dtype=torch.int64)
    total = (below * steps.to(below.device).reshape(-1, *([1] * (below.dim() - 1)))).sum(0)
    return add_public(s, total, factors[-1])


def below_powers(s: CryptenSession, x: Tensor, low: int, high: int) -> Tensor:
    """Return the additive bits [x < 2^(low + j)], j = 1 .. high - low - 1, for x in [2^low, 2^high): [J, *x.shape].

    Thresholds may be off by 1 %: harmless, the interval that x is brought to grows by as much.
    """
    thresholds = [1 << (low + j) for j in range(1, high - low)]
    drop = max(0, low - 8)
    width = next(w for w in comparison.WIDTHS if w > high - drop)
    if width == 64:
        drop = 0
    return comparison.to_arithmetic(s, comparison.less_than(s, x, thresholds, width, drop))


def reciprocal(s: CryptenSession, x: Tensor, fraction_bits: int, low: int, high: int, wanted: int) -> Tensor:
    """Return 1 / x with `wanted` fraction bits, for x in [2^low, 2^high) in ring units (high <= 62, public bounds).

    Error: 2^-24 relative, plus 2^-wanted. 20 rounds (21 when the range exceeds 22 bits); 200 bytes per element, and 12 (24
    for such a range) per power of two of the range.

    Goldschmidt's iteration: with u in [1, 2), y = line(u), e = 1 - u y, |e| < 0.063:
    1/u = y (1 + e)(1 + e^2)(1 + e^4) up to e^8.
    """
    if not 0 <= low < high <= 62:
        raise RangeError(f"a reciprocal needs 0 <= low < high <= 62, got {low} and {high}")
    work = WORKING_BITS
    steps = high - low - 1
    factor: Tensor | None = None
    if steps:
        factor = one_hot_factor(s, below_powers(s, x, low, high), [1 << (steps - j) for j in range(steps + 1)])
        x = mul(x, factor)
    u = rescale(s, x, high - 1, work)
    guess = add_public(s, u * _fixed(RECIPROCAL_LINE[1], 24), _fixed(RECIPROCAL_LINE[0], work + 24))
    y = truncate(s, guess, 24)
    e = add_public(s, -truncate(s, mul(u, y), work), 1 << work)
    for _ in range(2):
        both = mul(torch.stack([e, y]), torch.stack([e, add_public(s, e, 1 << work)]))
        e, y = truncate(s, both, work).unbind(0)
    y = truncate(s, mul(y, add_public(s, e, 1 << work)), work)
    if factor is not None:
        y = mul(y, factor)
    # x was brought up by factor, so 1/x = y factor 2^(fraction_bits - low - steps)
    return rescale(s, y, work + low + steps - fraction_bits, wanted)


def rsqrt_unit(s: CryptenSession, u: Tensor) -> Tensor:
    """Return 1 / sqrt(u) for u in [1/4, 1), both with `WORKING_BITS` fraction bits. Relative error 2^-19. 11 rounds, 168
    bytes.

    Newton's iteration y <- y (3 - u y^2) / 2, twice, from a parabola (relative error 0.0254).
    """
    work = WORKING_BITS
    constant, linear, quadratic = (_fixed(c, 24) for c in RSQRT_PARABOLA)
    u2 = truncate(s, square(u), work)
    y = truncate(s, add_public(s, u * linear + u2 * quadratic, constant << work), 24)
    for _ in range(2):
        both = truncate(s, mul(torch.stack([y, y]), torch.stack([y, u])), work)
        y2, uy = both.unbind(0)
        y = truncate(s, y * (3 << work) - mul(y2, uy), work + 1)
    return y
