"""The static eviction of MPCache's authors, as their code does it: for comparison, in plaintext alone.

Source: the function `forward` of llama_flash_attn_monkey_patch_compression.py in the authors' repository
zwxandy/MPCache. What it does otherwise than `models.policies.mpcache`:

* scores of the last queries are not divided by the square root of the channels, so that a softmax is nearly one-hot;
* their softmax runs over all tokens, those behind a query too (no causal mask);
* a token stays when its probability, averaged over heads, reaches a threshold for any of these queries. How many stay
  depends on the prompt, layer by layer, and would be public on shares; their thresholds are set by data set (1e-20, 1e-8,
  1e-4 and 1e-3, which leave 50, 30, 20 and 15 % of their prompts).

Leaks: would tell that number to all, hence refused on shares (docs/security.md, "Policies").
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from models.cache import LayerCache
from protocols.plain.suite import PlainValue, tensor_of


def important(queries: Tensor, keys: Tensor, threshold: float) -> Tensor:
    """Return which tokens stay, bool [S]. queries [G, R, n, C], divided by sqrt(C) already; keys [G, S, C]."""
    scores = queries @ keys[:, None].transpose(-1, -2) * math.sqrt(queries.shape[-1])  # [G, R, n, S]
    return (torch.softmax(scores, -1).mean((0, 1)) >= threshold).any(0)


def keep_important(entry: LayerCache, observed: int, threshold: float) -> None:
    """Drop a layer's other tokens, by the prompt's last `observed` queries."""
    if entry.prompt_queries is None:
        raise RuntimeError("scoring=authors needs the prompt's queries, which `mpcache quality --tasks` notes")
    k, v = map(tensor_of, entry.keys_and_values())
    stay = important(entry.prompt_queries[:, :, entry.length - observed :], k, threshold)
    entry.k, entry.v = PlainValue(k[:, stay]), PlainValue(v[:, stay])
