"""The client's own randomness and choices: Gumbel noise for sampling on shares, and picking from logits it may see."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mpc.errors import ConfigurationError
from mpc.random import Prg, new_seed

HIGHEST_TEMPERATURE = 100.0


def gumbel(shape: Sequence[int], prg: Prg | None = None) -> Tensor:
    """Gumbel(0, 1) noise, float64, from 53 random bits each; between -3.7 and 37.5. Secret.

    argmax(logits / t + gumbel) is a sample of softmax(logits / t) (Gumbel 1954; Maddison et al. 2014).
    """
    source = prg if prg is not None else Prg(new_seed())
    uniform = (source.ring(shape, 53).to(torch.float64) + 1) * 2.0**-53
    exponential = (-torch.log(uniform)).clamp(min=2.0**-54)
    return -torch.log(exponential)


def check_temperature(temperature: float) -> float:
    """The temperature itself. Raises `ConfigurationError` unless 0 < temperature <= 100."""
    if not (math.isfinite(temperature) and 0 < temperature <= HIGHEST_TEMPERATURE):
        raise ConfigurationError(
            f"temperature must be above 0 and at most {HIGHEST_TEMPERATURE:g}, got {temperature:g}; "
            "for the most likely token use decoding 'greedy'"
        )
    return float(temperature)


def check_filters(top_k: int | None, top_p: float | None) -> None:
    """Raise `ConfigurationError` unless top_k >= 1 and 0 < top_p <= 1, where given."""
    if top_k is not None and top_k < 1:
        raise ConfigurationError(f"top_k must be at least 1, got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ConfigurationError(f"top_p must be above 0 and at most 1, got {top_p:g}")


def choose(
    logits: Tensor,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    prg: Prg | None = None,
) -> int:
    """A token from logits [V]: the most likely one without a temperature, else a sample.

    top_k keeps the k largest logits; top_p the fewest most likely tokens whose probabilities reach p.
    """
    if temperature is None:
        return int(logits.argmax())
    scaled = logits.to(torch.float64) / temperature
    order = torch.argsort(scaled, descending=True, stable=True)
    keep = len(order) if top_k is None else min(top_k, len(order))
    if top_p is not None:
        reached = torch.softmax(scaled[order[:keep]], 0).cumsum(0)
        keep = min(keep, int((reached < top_p).sum()) + 1)
    kept = order[:keep]
    return int(kept[(scaled[kept] + gumbel(kept.shape, prg)).argmax()])
