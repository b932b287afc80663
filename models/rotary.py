"""Cosines and sines of rotary positions, equal to the last bit on every host.

All parties multiply shares with these public numbers. If two parties held values that differ in one bit, their products
would differ by that bit times a uniform ring element, and the result would be noise. Library sines differ between
processors, so only operations that IEEE 754 rounds in one way are used here: decimal exponentials for the frequencies,
float32 products for the angles (as the checkpoints were trained), float64 additions and products for the series.

Source: Su et al., "RoFormer" (arXiv 2104.09864); Peng et al., "YaRN" (arXiv 2309.00071), for the scalings "yarn" and
"dynamic"; Cody and Waite for the reduction modulo pi/2.
"""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from functools import lru_cache

import torch
from torch import Tensor

from models.architecture import Rotary
from mpc.trigonometry import cos_sin

_PI = 3.141592653589793
_PI_DIGITS = Decimal("3.141592653589793238462643383279502884197169")


@lru_cache(maxsize=16)
def frequencies(rotary: Rotary, channels: int, length: int = 1) -> Tensor:
    """Return the angle per position for each pair of the channels of a head, float32 [C / 2]: 0 for those that do not turn.

    length: tokens of the sequence so far, which scaling "dynamic" alone depends on.

    >>> frequencies(Rotary(theta=10_000.0), channels=4)
    tensor([1.0000, 0.0100])
    """
    pairs, rest = range(rotary.turning(channels) // 2), (channels - rotary.turning(channels)) // 2
    channels = rotary.turning(channels)
    with localcontext() as context:
        context.prec = 40
        log = Decimal(rotary.theta).ln() + _stretch(rotary, channels, length)
        plain = [float((-log * 2 * i / channels).exp()) for i in pairs]
        slowed = _ramp(rotary, channels) if rotary.scaling == "yarn" else [_slowed(rotary, f) for f in plain]
    scaled = [part * (f / rotary.factor) + (1 - part) * f for part, f in zip(slowed, plain, strict=True)]
    if rotary.factors:
        scaled = [f / factor for f, factor in zip(plain, rotary.factors, strict=True)]
    return torch.tensor(scaled + [0.0] * rest, dtype=torch.float64).to(torch.float32)


def _stretch(rotary: Rotary, channels: int, length: int) -> Decimal:
    """Return what "dynamic" adds to ln(theta): a power of the growth beyond the positions that the model was trained for."""
    if rotary.scaling != "dynamic" or length <= rotary.original_positions:
        return Decimal(0)
    factor = Decimal(rotary.factor)
    return (factor * length / rotary.original_positions - (factor - 1)).ln() * channels / (channels - 2)


def _slowed(rotary: Rotary, frequency: float) -> float:
    """Return the part of a frequency that is divided by `rotary.factor`, 0 to 1."""
    if rotary.scaling in ("default", "dynamic", "factors"):
        return 0.0
    if rotary.scaling == "linear":
        return 1.0
    turns = rotary.original_positions * frequency / (2 * _PI)
    low, high = rotary.low_frequency_factor, rotary.high_frequency_factor
    return 1 - min(max((turns - low) / (high - low), 0.0), 1.0)


def _ramp(rotary: Rotary, channels: int) -> list[float]:
    """Return yarn's part of each frequency that is divided by `rotary.factor`: 0 for the fast ones, 1 for the slow ones."""

    def pair(turns: float) -> Decimal:
        """Return where a pair of channels turns this often within the original positions, counted in pairs."""
        ratio = Decimal(rotary.original_positions) / (Decimal(turns) * 2 * _PI_DIGITS)
        return channels * ratio.ln() / (2 * Decimal(rotary.theta).ln())

    first, last = pair(rotary.beta_fast), pair(rotary.beta_slow)
    if rotary.truncate:
        first, last = Decimal(math.floor(first)), Decimal(math.ceil(last))
    low, high = float(max(first, Decimal(0))), float(min(last, Decimal(channels - 1)))
    high += 0.001 if low == high else 0.0
    return [min(max((i - low) / (high - low), 0.0), 1.0) for i in range(channels // 2)]


def cosines_and_sines(
    rotary: Rotary, channels: int, first: int, count: int, length: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return (cos, sin) for positions first .. first + count - 1, float64 [count, C], both halves of the channels alike.

    length: tokens of the sequence so far, by default up to the last of these positions. `rotary.attention_factor` is not
    in them: it is in the query weights.
    """
    seen = (first + count if length is None else length) if rotary.scaling == "dynamic" else 1
    position = torch.arange(first, first + count, dtype=torch.float32)
    angle = (position[:, None] * frequencies(rotary, channels, seen)).to(torch.float64)
    cos, sin = cos_sin(angle)
    return torch.cat([cos, cos], -1), torch.cat([sin, sin], -1)
