"""Quest: pages of 16 tokens, the k pages whose upper bound of the score is highest, per head and token; nothing is evicted.

Source: Tang et al., "Quest: Query-Aware Sparsity for Efficient Long-Context LLM Inference", ICML 2024, section 3.3; its
first two layers attend to everything. The unfilled last page always counts. The bound is the true one, with maxima.

Leaks: to parties and dealer how many pages count, not which (docs/security.md, "Policies").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from models.architecture import Architecture
from models.cache import CachePolicy, KVCache
from models.policies.clusters import describe, extended, similarities, similarity_limit
from models.policies.selecting import attend_to, chooses, layout, remember, reuse
from models.policies.settings import budget_tokens, no_windows, ratio, text_of, whole
from protocols.suite import Suite, Value


@dataclass(frozen=True)
class Quest(CachePolicy):
    """budget: share of all tokens so far that a token attends to. page: tokens of a page. skip: first layers without."""

    budget: float = 0.1
    page: int = 16
    skip: int = 2
    name: ClassVar[str] = "quest"

    def __post_init__(self) -> None:
        ratio(self.name, "budget", self.budget)
        whole(self.name, "page", self.page, 1)
        whole(self.name, "skip", self.skip, 0)

    @property
    def spec(self) -> str:
        """Text form."""
        return text_of(self)

    def check(self, architecture: Architecture, prompt_tokens: int) -> None:
        """No sliding windows."""
        no_windows(self.name, architecture, prompt_tokens)

    def pattern(self) -> tuple[int, int]:
        """The first layers attend to everything."""
        return self.skip, 1

    async def after_prefill(self, suite: Suite, cache: KVCache, layer: int, received: Value | None) -> None:
        """Describe the full pages."""
        await self._describe(suite, cache, layer)

    async def after_append(self, suite: Suite, cache: KVCache, layer: int) -> None:
        """Describe a page that is full now."""
        await self._describe(suite, cache, layer)

    async def _describe(self, suite: Suite, cache: KVCache, layer: int) -> None:
        entry = cache.layers[layer]
        if layer < self.skip or self.budget == 1 or not chooses(cache, layer, self.spec, 1, 0):
            return
        old = entry.state.get("pages")
        known = old.count * self.page if old is not None else 0
        full = entry.length // self.page * self.page
        if full > known:
            k, _ = entry.keys_and_values()
            new = await describe(suite, k[:, known:full], self.page, None)
            entry.state["pages"] = await extended(suite, old, new)

    async def attend(self, suite: Suite, cache: KVCache, layer: int, q: Value) -> Value:
        """Bounds, top-k, attention to the chosen pages and the unfilled one."""
        entry = cache.layers[layer]
        plan = layout(entry.length, self.page, 0, 0, budget_tokens(self.budget, cache.seen + 1))
        if layer < self.skip or plan.everything:
            return await attend_to(suite, entry, q, plan, None)
        shared = reuse(cache, layer, self.spec, 1, 0, plan)
        if shared is not None:
            return await attend_to(suite, entry, q, plan, shared)
        bounds = await similarities(suite, q, entry.state["pages"], 0, plan.candidates)
        chosen = await suite.mask_for_reuse(await suite.top_k(bounds, plan.count, 2 * similarity_limit(suite, q.shape[1])))
        remember(cache, layer, self.spec, plan, chosen)
        return await attend_to(suite, entry, q, plan, chosen)
