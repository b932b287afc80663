"""The client's choice from logits that it may see (decoding "logits"), with randomness of its own."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from mpc.random import Prg
from protocols.gumbel import gumbel


def seeded(seed: int) -> Prg:
    """Return a generator for a sample that its client wants to repeat. The client alone uses what it gives."""
    return Prg(hashlib.sha256(f"mpcache sample {seed}".encode()).digest())


def choose(
    logits: Tensor,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    prg: Prg | None = None,
) -> int:
    """Return a token from logits [V]: the most likely one without a temperature, else a sample.

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
