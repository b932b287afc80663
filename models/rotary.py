"""Cosines and sines of rotary positions, equal to the last bit on every host.

All parties multiply shares with these public numbers. If two parties held values that differ in one bit, their products
would differ by that bit times a uniform ring element, and the result would be noise. Library sines differ between
processors, so only operations that IEEE 754 rounds in one way are used here: decimal exponentials for the frequencies,
float32 products for the angles (as the checkpoints were trained), float64 additions and products for the series.

Source: Su et al., "RoFormer" (arXiv 2104.09864); Cody and Waite for the reduction modulo pi/2.
"""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from functools import lru_cache

import torch
from torch import Tensor

from models.architecture import Rotary

# pi/2 in three parts of 33 bits: n * part is exact for |n| < 2^20
_HALF_PI = (1.57079632673412561417e00, 6.07710050630396597660e-11, 2.02226624871116645580e-21)
_PI = 3.141592653589793


@lru_cache(maxsize=16)
def frequencies(rotary: Rotary, channels: int) -> Tensor:
    """Angle per position for each pair of channels, float32 [C / 2]."""
    with localcontext() as context:
        context.prec = 40
        log = Decimal(rotary.theta).ln()
        plain = [float((-log * 2 * i / channels).exp()) for i in range(channels // 2)]
    return torch.tensor([_scaled(rotary, f) for f in plain], dtype=torch.float64).to(torch.float32)


def _scaled(rotary: Rotary, frequency: float) -> float:
    """One frequency after `rotary.scaling`."""
    if rotary.scaling == "default":
        return frequency
    slow = frequency / rotary.factor
    if rotary.scaling == "linear":
        return slow
    turns = rotary.original_positions * frequency / (2 * _PI)
    low, high = rotary.low_frequency_factor, rotary.high_frequency_factor
    smooth = min(max((turns - low) / (high - low), 0.0), 1.0)
    return (1 - smooth) * slow + smooth * frequency


def cosines_and_sines(rotary: Rotary, channels: int, first: int, count: int) -> tuple[Tensor, Tensor]:
    """(cos, sin) for positions first .. first + count - 1, float64 [count, C], both halves of the channels alike."""
    position = torch.arange(first, first + count, dtype=torch.float32)
    angle = (position[:, None] * frequencies(rotary, channels)).to(torch.float64)
    cos, sin = _cos_sin(angle)
    return torch.cat([cos, cos], -1), torch.cat([sin, sin], -1)


def _series(x: Tensor, coefficients: list[float]) -> Tensor:
    """Horner's rule, lowest coefficient first."""
    out = torch.full_like(x, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        out = out * x + c
    return out


def _cos_sin(angle: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine in float64, error below 1e-15, for |angle| < 10^6."""
    turns = torch.round(angle * (2 / _PI))
    rest = angle
    for part in _HALF_PI:
        rest = rest - turns * part
    square = rest * rest
    cos = _series(square, [(-1) ** k / math.factorial(2 * k) for k in range(10)])
    sin = rest * _series(square, [(-1) ** k / math.factorial(2 * k + 1) for k in range(9)])
    quarter = turns.to(torch.int64) & 3
    odd = (quarter & 1).bool()
    cos, sin = torch.where(odd, sin, cos), torch.where(odd, cos, sin)
    return torch.where((quarter == 1) | (quarter == 2), -cos, cos), torch.where(quarter >= 2, -sin, sin)
