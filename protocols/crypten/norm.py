"""1 / sqrt(variance + epsilon) and 1 / sqrt(mean square + epsilon) of rows.

CrypTen's inv_sqrt has the wrong sign at 256, and a public epsilon of 1e-5 encodes to 0.
"""

from __future__ import annotations

import math

from torch import Tensor

from mpc.crypten_binding import CryptenSession
from mpc.errors import RangeError
from protocols.crypten.arithmetic import add_public, square, truncate
from protocols.crypten.normalise import rsqrt
from protocols.suite import Norm

EXTRA_BITS = 8
SUM_BITS = 62
MEAN_BITS = 30


def centre(s: CryptenSession, x: Tensor) -> Tensor:
    """x minus its mean over the last axis [..., D]; the mean is rounded to one unit. 1 round, 8 bytes per row."""
    width = x.shape[-1]
    mean = truncate(s, x.sum(-1, keepdim=True) * round(2.0**MEAN_BITS / width), MEAN_BITS)
    return x - mean


def rsqrt_mean_square(s: CryptenSession, x: Tensor, fraction_bits: int, epsilon: float) -> Tensor:
    """1 / sqrt(mean(x^2) + epsilon) over the last axis, [..., D] -> [..., 1], `fraction_bits` + 8 fraction bits.

    The sum of squares is exact, no element is truncated: with f fraction bits the row's norm must stay below 2^(31 - f)
    (32 768 at 16) and anything above 2^-f counts. Relative error below 1e-4 while the result is above 2^-10.
    25 rounds; 8 bytes per element and about 660 per row.
    """
    width = x.shape[-1]
    offset = max(1, round(epsilon * width * 4.0**fraction_bits))
    if not 0 < epsilon * width < 2.0 ** (SUM_BITS - 2 - 2 * fraction_bits):
        raise RangeError(f"epsilon must be positive and small, got {epsilon}")
    total = add_public(s, square(x).sum(-1, keepdim=True), offset)
    low = (offset.bit_length() - 1) // 2 * 2
    scale = math.sqrt(width) * 2.0**fraction_bits
    return rsqrt(s, total, low, SUM_BITS, scale, fraction_bits + EXTRA_BITS)


def rsqrt_moment(s: CryptenSession, x: Tensor, fraction_bits: int, norm: Norm) -> tuple[Tensor, Tensor]:
    """(x, 1 / sqrt(moment + epsilon)); for "layer" x is returned centred."""
    if norm.kind == "layer":
        x = centre(s, x)
    return x, rsqrt_mean_square(s, x, fraction_bits, norm.epsilon)
