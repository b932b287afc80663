"""Cosines and sines that are equal to the last bit on every machine.

Parties multiply shares by public cosines. If two of them held values that differ in one bit, the result would be off by that
bit times a uniform ring element: noise. Library sines differ between processors, so only operations that IEEE 754 rounds in
one way are used: float64 sums and products, element by element, in a fixed order. At the host: a device may contract them.

Source: Cody and Waite for the reduction modulo pi / 2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# pi/2 in three parts of 33 bits: n * part is exact for |n| < 2^20
_HALF_PI = (1.57079632673412561417e00, 6.07710050630396597660e-11, 2.02226624871116645580e-21)
_PI = 3.141592653589793


def _series(x: Tensor, coefficients: list[float]) -> Tensor:
    """Evaluate a polynomial by Horner's rule, lowest coefficient first."""
    out = torch.full_like(x, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        out = out * x + c
    return out


def cos_sin(angle: Tensor) -> tuple[Tensor, Tensor]:
    """Return cosine and sine in float64, error below 1e-15, for |angle| < 10^6 at the host."""
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
