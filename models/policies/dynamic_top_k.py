"""Token-level dynamic top-k: every step scores all tokens and attends to the highest ones. The paper's strawman.

Source: Zeng et al., "MPCache", NeurIPS 2025, section 3 (top-k "directly applied"). Nothing is evicted; each key/value head
chooses for itself, the scores of a group's heads are summed. The others' scores are lowered by `PENALTY`, so that they
weigh less than a unit of fixed point: tokens cannot leave the computation without gathering, which is its weakness.

Leaks: to parties and dealer how many tokens count, not which (docs/security.md, "Policies").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from models.architecture import Architecture
from models.cache import CachePolicy, KVCache
from models.policies.selecting import PENALTY, attend_each
from models.policies.settings import budget_tokens, no_windows, ratio, text_of
from protocols.suite import Suite, Value


@dataclass(frozen=True)
class DynamicTopK(CachePolicy):
    """budget: share of all tokens so far that a token attends to."""

    budget: float = 0.1
    name: ClassVar[str] = "dynamic-top-k"

    def __post_init__(self) -> None:
        ratio(self.name, "budget", self.budget)

    @property
    def spec(self) -> str:
        return text_of(self)

    def check(self, architecture: Architecture, prompt_tokens: int) -> None:
        no_windows(self.name, architecture, prompt_tokens)

    @property
    def append_only(self) -> bool:
        return True

    def verifies(self, rows: int) -> bool:
        return True

    async def attend_drafted(self, suite: Suite, cache: KVCache, layer: int, q: Value) -> Value:
        """Choose with each token by itself."""
        return await attend_each(self, suite, cache, layer, q)

    async def attend(self, suite: Suite, cache: KVCache, layer: int, q: Value) -> Value:
        """Attend to the tokens with the highest scores."""
        k, v = cache.layers[layer].keys_and_values()
        groups, tokens = k.shape[0], k.shape[1]
        count = budget_tokens(self.budget, cache.seen + 1)
        if count >= tokens:
            return await suite.attention(q, k, v, None)
        scores = await suite.scores(q, k)
        total = suite.relative(scores[:, 0] if q.shape[1] == 1 else scores.sum(1))
        keep = await suite.keep_largest(total, count, suite.similarity_bound * q.shape[1])
        bias = suite.with_bound(keep * PENALTY + float(-PENALTY), PENALTY)
        return await suite.biased_attention(q, k, v, bias.reshape(groups, 1, tokens))
