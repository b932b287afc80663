"""StreamingLLM: the first tokens (attention sinks) and a window of recent ones. Nothing secret is decided.

Source: Xiao et al., "Efficient Streaming Language Models with Attention Sinks", ICLR 2024, section 3.2. There positions are
counted within the cache; here keys keep the position at which they were cached, as in every policy of this package.

Leaks: to parties and dealer all that it decides, which follows from lengths (docs/security.md, "Policies").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from models.architecture import Architecture
from models.cache import KVCache, LayerCache, LayerState, Place, Stage
from models.observation import Seen
from models.policies.eviction import EvictingPolicy
from models.policies.settings import budget_tokens, no_windows, ratio, text_of, whole
from mpc.errors import ConfigurationError
from protocols.suite import Suite, Value


@dataclass
class StreamingState(LayerState):
    """kept: public number of tokens that stay."""

    kept: int = 0


@dataclass(frozen=True)
class StreamingLLM(EvictingPolicy):
    """budget: share of the prompt's tokens that is kept, sinks included; 1 keeps everything. sinks: first tokens that always
    stay."""

    budget: float = 0.1
    sinks: int = 4
    name: ClassVar[str] = "streaming-llm"

    def __post_init__(self) -> None:
        ratio(self.name, "budget", self.budget)
        whole(self.name, "sinks", self.sinks, 0)

    @property
    def spec(self) -> str:
        return text_of(self)

    def check(self, architecture: Architecture, prompt_tokens: int) -> None:
        """Refuse a budget that does not hold the sinks and one recent token."""
        no_windows(self.name, architecture, prompt_tokens)
        kept = self.stays(prompt_tokens, 0)
        if kept <= self.sinks and kept < prompt_tokens:
            raise ConfigurationError(
                f"policy {self.name}: budget = {self.budget} keeps {kept} of {prompt_tokens} tokens, which does not hold "
                f"sinks = {self.sinks} and a recent one; raise budget or lower sinks"
            )

    def verifies(self, rows: int) -> bool:
        return True

    def new_state(self, place: Place) -> StreamingState:
        return StreamingState()

    def stays(self, tokens: int, layer: int) -> int:
        return budget_tokens(self.budget, tokens)

    def least_batch(self) -> tuple[str, int]:
        return f"sinks = {self.sinks} and a recent token", self.sinks + 1

    def eviction_stages(self, suite: Suite, cache: KVCache, layer: int, seen: Seen, kept: int) -> list[Stage]:
        entry = cache.layers[layer]
        entry.state_of(StreamingState).kept = kept

        async def cut() -> None:
            self._cut(suite, entry)

        return [("sinks and window", cut)]

    async def after_append(self, suite: Suite, cache: KVCache, layer: int) -> None:
        """Drop the oldest token of the window."""
        self._cut(suite, cache.layers[layer])

    async def attend_drafted(self, suite: Suite, cache: KVCache, layer: int, q: Value) -> Value:
        """Attend, with each token, to the sinks and to the window that ends with it."""
        entry, rows = cache.layers[layer], cache.drafted
        if self.budget == 1:
            return await super().attend_drafted(suite, cache, layer, q)
        k, v = entry.keys_and_values()
        recent = entry.state_of(StreamingState).kept - self.sinks
        query = torch.arange(entry.length - rows, entry.length)[:, None]
        key = torch.arange(entry.length)[None, :]
        mask = (key <= query) & ((key < self.sinks) | (query - key < recent))
        return await suite.attention(q, k, v, mask.repeat(cache.group, 1))

    async def after_kept(self, suite: Suite, cache: KVCache, layer: int, rows: int) -> None:
        """Drop what the window has left behind."""
        self._cut(suite, cache.layers[layer])

    def _cut(self, suite: Suite, entry: LayerCache) -> None:
        kept = entry.state_of(StreamingState).kept
        if self.budget == 1 or entry.length <= kept:
            return
        k, v = entry.keys_and_values()
        recent = kept - self.sinks
        start = entry.length - recent
        if self.sinks:
            entry.k, entry.v = (suite.concat([x[:, : self.sinks], x[:, start:]], 1) for x in (k, v))
        else:
            entry.k, entry.v = k[:, start:], v[:, start:]
