"""H2O: half of the budget for heavy hitters, tokens with the largest accumulated attention, half for recent ones.

Source: Zhang et al., "H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models", NeurIPS 2023,
section 4 and algorithm 1: scores add up over all queries, a token is evicted at every step, per head. The token that leaves
the recent window competes with the heavy hitters; the lowest of them goes.

Leaks: to parties and dealer how many tokens stay, not which (docs/security.md, "Policies").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from models.architecture import Architecture
from models.cache import CachePolicy, KVCache
from models.policies.eviction import drop_least, keep_rows, zeros
from models.policies.settings import budget_tokens, no_windows, ratio, text_of
from mpc.errors import ConfigurationError
from protocols.suite import Suite, Value


@dataclass(frozen=True)
class H2O(CachePolicy):
    """budget: share of the prompt's tokens that a head keeps; 1 keeps everything. recent: share of the budget for recent
    tokens."""

    budget: float = 0.1
    recent: float = 0.5
    name: ClassVar[str] = "h2o"

    def __post_init__(self) -> None:
        ratio(self.name, "budget", self.budget)
        ratio(self.name, "recent", self.recent)

    @property
    def spec(self) -> str:
        """Text form."""
        return text_of(self)

    def check(self, architecture: Architecture, prompt_tokens: int) -> None:
        """The budget must hold a heavy hitter and a recent token."""
        no_windows(self.name, architecture, prompt_tokens)
        kept = budget_tokens(self.budget, prompt_tokens)
        if kept < prompt_tokens and kept - budget_tokens(self.recent, kept) < 1:
            raise ConfigurationError(
                f"policy {self.name}: budget = {self.budget} keeps {kept} of {prompt_tokens} tokens, recent = {self.recent} "
                "leaves none of them to heavy hitters; raise budget or lower recent"
            )

    def observed_queries(self, tokens: int, layer: int) -> int:
        """All."""
        return tokens if self.budget < 1 else 0

    async def after_prefill(self, suite: Suite, cache: KVCache, layer: int, received: Value | None) -> None:
        """Keep the heaviest of what is not recent, and the recent ones."""
        if received is None:
            return
        entry = cache.layers[layer]
        tokens = entry.length
        kept = budget_tokens(self.budget, tokens)
        entry.state["kept"] = kept
        if kept >= tokens:
            entry.state["scores"] = await suite.mask_for_cache(suite.with_bound(received, tokens * cache.group + 1))
            return
        recent = budget_tokens(self.recent, kept)
        bound = tokens * cache.group + 1
        older = tokens - recent
        scores = await keep_rows(suite, entry, received[:, :older], kept - recent, bound, 0, older, received)
        assert scores is not None
        entry.state["scores"] = await suite.mask_for_cache(suite.with_bound(scores, bound))

    async def attend(self, suite: Suite, cache: KVCache, layer: int, q: Value) -> Value:
        """Attend to the budget and the new token; then the lowest score goes."""
        entry = cache.layers[layer]
        k, v = entry.keys_and_values()
        if self.budget == 1:
            return await suite.attention(q, k, v, None)
        everyone = torch.ones(q.shape[1], dtype=torch.bool, device=suite.public_device)
        out, received = await suite.attention_with_mass(q, k, v, None, everyone)
        old: Value = entry.state["scores"]
        received = await suite.mask_for_cache(suite.with_bound(received, cache.group + 1))
        bound = (cache.seen + 1) * cache.group + 1
        scores = suite.with_bound(suite.concat([old, zeros(suite, old.shape[0], 1)], -1) + received, bound)
        kept = entry.state["kept"]
        if entry.length > kept:
            heavy = kept - budget_tokens(self.recent, kept)
            scores = suite.with_bound(await drop_least(suite, entry, scores, bound, 0, heavy), bound)
        entry.state["scores"] = scores
        return out
