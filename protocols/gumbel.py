"""Gumbel noise, which makes the arg-max of scores a sample: argmax(logits + t gumbel) follows softmax(logits / t).

In a session the dealer draws it, from the operating system's generator and for each token anew, and deals it in shares: it
knows the noise and never a logit, and nobody who knows a logit or the choice knows the noise. Sources: Gumbel 1954; Maddison
et al. 2014.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mpc.errors import ConfigurationError
from mpc.fixed_point import encode
from mpc.random import Prg, new_seed

HIGHEST_TEMPERATURE = 100.0
LARGEST = 37.5
"""No noise of 53 random bits is larger in size, before it is multiplied by the temperature."""


def gumbel(shape: Sequence[int], prg: Prg | None = None) -> Tensor:
    """Return gumbel(0, 1) noise, float64, from 53 random bits each; between -3.7 and 37.5. Secret.

    prg: by default a fresh one of its own, from 256 bits of the operating system.
    """
    source = prg if prg is not None else Prg(new_seed())
    uniform = (source.ring(shape, 53).to(torch.float64) + 1) * 2.0**-53
    exponential = (-torch.log(uniform)).clamp(min=2.0**-54)
    return -torch.log(exponential)


def scaled_gumbel(
    shape: Sequence[int], temperature: float, fraction_bits: int, bits: int = 64, device: torch.device | str = "cpu"
) -> Tensor:
    """Return fresh noise times a public temperature, rounded to `fraction_bits` fraction bits in Z_2^bits, int64. Secret.

    Raises `RangeError` instead of wrapping where the ring is too small.
    """
    return encode(gumbel(shape) * temperature, fraction_bits, bits).to(device)


def check_temperature(temperature: float) -> float:
    """Return the temperature itself. Raises `ConfigurationError` unless 0 < temperature <= 100, where no ring can wrap."""
    if not (math.isfinite(temperature) and 0 < temperature <= HIGHEST_TEMPERATURE):
        raise ConfigurationError(
            f"temperature must be above 0 and at most {HIGHEST_TEMPERATURE:g}, got {temperature:g}; "
            "for the most likely token use decoding 'greedy'"
        )
    return float(temperature)
