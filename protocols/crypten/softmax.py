"""Exponential function and softmax.

CrypTen's softmax is wrong once sum exp(x - max) passes 256, its exp explodes below -512.

Leaks: nothing (docs/security.md, "Softmax, crypten").
"""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor

from mpc.errors import RangeError
from protocols.crypten import comparison, ranges
from protocols.crypten.arithmetic import add_public, mul, square, truncate
from protocols.crypten.binding.library import CryptenSession
from protocols.crypten.maximum import maximum
from protocols.crypten.reciprocal import reciprocal

EXP_BITS = 30
SQUARINGS = 6
LOWEST = -64
MAXIMUM_BITS = 8  # fraction bits in which scores are compared


def _quartic(bits: int) -> tuple[int, int, int, int]:
    """Return constants of exp(y) = q^2 + d y + e + O(y^4 / 2400), q = (13/64) ((y + h)^2 + g), in ring units.

    With A = (13/64)^2 near 1/24, the terms up to y^3 are exp's: h = 1 / (24 A), A (6 h^2 + 2 g) = 1/2, and d, e are what
    is left, computed from the rounded h and g. Fraction bits of h, g, d, e: bits, 2 bits, 60 - bits, 60.
    """
    leading = Fraction(13, 64) ** 2
    h = Fraction(round(2**bits / (24 * leading)), 2**bits)
    g = Fraction(round((Fraction(1, 2) / leading - 6 * h**2) / 2 * 4**bits), 4**bits)
    d = 1 - leading * 4 * h * (h**2 + g)
    e = 1 - leading * (h**2 + g) ** 2
    return round(h * 2**bits), round(g * 4**bits), round(d * 2 ** (2 * EXP_BITS - bits)), round(e * 4**EXP_BITS)


def exp_negative(s: CryptenSession, x: Tensor, fraction_bits: int) -> Tensor:
    """Return exp(x) with 30 fraction bits for x in [-2^17, 1/4], `fraction_bits` <= 20.

    | x | error |
    | --- | --- |
    | -1 to 1/4 | 3e-7 relative |
    | -8 to -1 | 2e-5 relative |
    | -2^17 to -8 | 1e-8 absolute |

    22 rounds, 144 bytes per element. A polynomial of degree 4 in x / 2^6 made of two squares, squared 6 times. x below -64
    is set to -64 first, by a comparison in 16 bits: at 30 fraction bits both are zero.
    """
    far = comparison.less_than(s, x, [LOWEST << fraction_bits], 16, fraction_bits + 2)

    def watched(opened: Tensor, mask: Tensor) -> None:
        ranges.watch(s, "score", opened, mask, fraction_bits, ranges.SCORE_LIMIT)

    beyond, _ = comparison.select(s, far, add_public(s, x, -(LOWEST << fraction_bits)), watched)
    x = x - beyond[0]
    bits = fraction_bits + SQUARINGS
    h, g, d, e = _quartic(bits)
    inner = add_public(s, square(add_public(s, x, h)), g) * 13
    q = truncate(s, inner, 2 * bits + 6 - EXP_BITS)
    y = truncate(s, add_public(s, square(q) + x * d, e), EXP_BITS)
    for _ in range(SQUARINGS):
        y = truncate(s, square(y), EXP_BITS)
    return y


def softmax(s: CryptenSession, x: Tensor, fraction_bits: int, mask: Tensor | None = None) -> Tensor:
    """Return the softmax over the last axis [..., n] with `fraction_bits` fraction bits, |x| < 2^15, n <= 2^16.

    mask: public bool, broadcastable to x; positions where it is False get exactly 0 and cost nothing. A row that is False
    everywhere raises `RangeError`. Error below 5e-5 whatever the spread of x and however many terms are equal.

    The maximum is taken in units of 2^-8, so the largest exponent is between 0 and parties log2(n) 2^-8.
    """
    count = x.shape[-1]
    keep: Tensor | None = None
    index: Tensor | None = None
    if mask is not None:
        keep = mask.cpu().expand(x.shape)
        rows = keep.sum(-1)
        if int(rows.min()) == 0:
            raise RangeError(f"softmax over a row without any position: the mask {list(mask.shape)} has a row of False")
        count = int(rows.max())
        if bool(keep.all()):
            keep = None
    if count > 1 << 16:
        raise RangeError(f"softmax takes at most 65536 terms, got {count}")
    top = maximum(s, x, keep, bits=32, drop=max(0, fraction_bits - MAXIMUM_BITS))
    terms = x - top
    if keep is not None:
        index = keep.reshape(-1).nonzero()[:, 0]
        index = index if s.channel is None else index.to(x.device)
        terms = terms.reshape(-1)[index]
    powers = exp_negative(s, terms, fraction_bits)
    if index is not None:
        sums = _scatter(s, powers, index, x.shape).sum(-1, keepdim=True)
    else:
        sums = powers.sum(-1, keepdim=True)
    # the sum lies in [1, 1.25 count]; a little less than 1 by rounding is within the interval's margin
    high = EXP_BITS + (count + (count >> 2)).bit_length()
    inverse = reciprocal(s, sums, EXP_BITS, EXP_BITS, high, EXP_BITS)
    if index is not None:
        inverse = inverse.expand(x.shape).reshape(-1)[index]
    result = truncate(s, mul(powers, inverse), 2 * EXP_BITS - fraction_bits)
    return result if index is None else _scatter(s, result, index, x.shape)


def _scatter(s: CryptenSession, values: Tensor, index: Tensor, shape: torch.Size) -> Tensor:
    if s.channel is None:
        return s.without_content(shape)
    out = torch.zeros(shape.numel(), dtype=torch.int64, device=values.device)
    out[index] = values
    return out.reshape(shape)
