"""Quest: pages of 16 tokens, the k pages whose upper bound of the score is highest, per head and token; nothing is evicted.

Source: Tang et al., "Quest: Query-Aware Sparsity for Efficient Long-Context LLM Inference", ICML 2024, section 3.3; its
first two layers attend to everything. The unfilled last page always counts. The bound is the true one, with maxima.

Leaks: to parties and dealer how many pages count, not which (docs/security.md, "Policies").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from models.architecture import Architecture
from models.cache import CachePolicy, KVCache, Place, Sharing, Stage
from models.observation import Seen
from models.policies.clusters import Clusters, describe, extended, similarities, similarity_limit
from models.policies.selecting import ChoosingState, attend_to, chooser_of, layout, made_or_taken
from models.policies.settings import budget_tokens, no_windows, ratio, text_of, whole
from protocols.suite import Suite, Value


@dataclass
class QuestState(ChoosingState):
    """pages: descriptions of the full ones, at layers that choose."""

    pages: Clusters | None = None


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
        return text_of(self)

    def check(self, architecture: Architecture, prompt_tokens: int) -> None:
        no_windows(self.name, architecture, prompt_tokens)

    def pattern(self) -> tuple[int, int]:
        return self.skip, 1

    @property
    def append_only(self) -> bool:
        return True

    def verifies(self, rows: int) -> bool:
        """Whether all pages count: else a row would choose from pages that its own step has filled."""
        return self.budget == 1

    def new_state(self, place: Place) -> QuestState:
        return QuestState(chooser_of(place, Sharing(), self.skip))

    def prompt_stages(self, suite: Suite, cache: KVCache, layer: int, seen: Seen) -> list[Stage]:
        async def describe_pages() -> None:
            await self._describe(suite, cache, layer)

        return [("pages", describe_pages)]

    async def after_append(self, suite: Suite, cache: KVCache, layer: int) -> None:
        """Describe a page that is full now."""
        await self._describe(suite, cache, layer)

    async def _describe(self, suite: Suite, cache: KVCache, layer: int) -> None:
        entry = cache.layers[layer]
        state = entry.state_of(QuestState)
        if layer < self.skip or self.budget == 1 or state.chooser != layer:
            return
        known = state.pages.count * self.page if state.pages is not None else 0
        full = entry.length // self.page * self.page
        if full > known:
            k, _ = entry.keys_and_values()
            new = await describe(suite, k[:, known:full], self.page, None)
            state.pages = await extended(suite, state.pages, new)

    async def attend(self, suite: Suite, cache: KVCache, layer: int, q: Value) -> Value:
        """Attend to the pages with the highest bounds, or to those that another layer chose, and to the unfilled one."""
        entry = cache.layers[layer]
        plan = layout(entry.length, self.page, 0, 0, budget_tokens(self.budget, cache.seen + 1))
        if layer < self.skip or plan.everything:
            return await super().attend(suite, cache, layer, q)

        async def choose() -> Value:
            pages = entry.state_of(QuestState).pages
            assert pages is not None
            bounds = await similarities(suite, q, pages, 0, plan.candidates)
            return await suite.mask_for_reuse(await suite.top_k(bounds, plan.count, 2 * similarity_limit(suite, q.shape[1])))

        return await attend_to(suite, entry, q, plan, made_or_taken(cache, layer, plan, choose))
