"""TOVA: after every token the one that this token attends to least is dropped, one choice for all heads of a layer.

Source: Oren et al., "Transformers are Multi-State RNNs", EMNLP 2024, section 3 (token omission via attention): the last
query's attention averaged over heads. After the prompt the last query's attention decides for the whole budget, as in the
authors' code.

Leaks: to parties and dealer how many tokens stay, not which (docs/security.md, "Policies").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from models.architecture import Architecture
from models.cache import CachePolicy, KVCache
from models.policies.eviction import drop_least, keep_rows
from models.policies.settings import budget_tokens, no_windows, ratio, text_of
from protocols.suite import Suite, Value


@dataclass(frozen=True)
class TOVA(CachePolicy):
    """budget: share of the prompt's tokens that a layer keeps; 1 keeps everything."""

    budget: float = 0.1
    name: ClassVar[str] = "tova"

    def __post_init__(self) -> None:
        ratio(self.name, "budget", self.budget)

    @property
    def spec(self) -> str:
        """Text form."""
        return text_of(self)

    def check(self, architecture: Architecture, prompt_tokens: int) -> None:
        """No sliding windows."""
        no_windows(self.name, architecture, prompt_tokens)

    def observed_queries(self, tokens: int, layer: int) -> int:
        """The last one's."""
        return 1 if self.budget < 1 else 0

    async def after_prefill(self, suite: Suite, cache: KVCache, layer: int, received: Value | None) -> None:
        """Keep what the last query attends to most."""
        if received is None:
            return
        entry = cache.layers[layer]
        tokens = entry.length
        kept = entry.state["kept"] = budget_tokens(self.budget, tokens)
        if kept < tokens:
            heads = received.shape[0] * cache.group
            await keep_rows(suite, entry, received.sum(0, keepdim=True), kept, heads + 1, 0, tokens)

    async def attend(self, suite: Suite, cache: KVCache, layer: int, q: Value) -> Value:
        """Attend to everything; then the least attended goes."""
        entry = cache.layers[layer]
        k, v = entry.keys_and_values()
        if self.budget == 1 or entry.length <= entry.state["kept"]:
            return await suite.attention(q, k, v, None)
        everyone = torch.ones(q.shape[1], dtype=torch.bool, device=suite.public_device)
        out, received = await suite.attention_with_mass(q, k, v, None, everyone)
        bound = q.shape[0] * q.shape[1] + 1
        scores = suite.with_bound(received.sum(0, keepdim=True), bound)
        await drop_least(suite, entry, scores, bound, 0, entry.length - 1)
        return out
