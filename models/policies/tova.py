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
from models.cache import KVCache, LayerState, Place, Stage
from models.policies.eviction import EvictingPolicy, Eviction, Kept, Scores, Seen, drop_least
from models.policies.settings import budget_tokens, no_windows, ratio, text_of
from protocols.suite import Suite, Value


@dataclass
class TOVAState(LayerState):
    """kept: public number of tokens that stay."""

    kept: int = 0


@dataclass(frozen=True)
class TOVA(EvictingPolicy):
    """budget: share of the prompt's tokens that a layer keeps; 1 keeps everything."""

    budget: float = 0.1
    name: ClassVar[str] = "tova"

    def __post_init__(self) -> None:
        ratio(self.name, "budget", self.budget)

    @property
    def spec(self) -> str:
        return text_of(self)

    def check(self, architecture: Architecture, prompt_tokens: int) -> None:
        no_windows(self.name, architecture, prompt_tokens)

    @property
    def one_set_for_all_heads(self) -> bool:
        return True

    def verifies(self, rows: int) -> bool:
        """Whether nothing is evicted: else every token drops another one, which cannot be taken back."""
        return self.budget == 1

    def new_state(self, place: Place) -> TOVAState:
        return TOVAState()

    def observed_queries(self, tokens: int, layer: int) -> int:
        return 1 if self.budget < 1 else 0

    def stays(self, tokens: int) -> int:
        return budget_tokens(self.budget, tokens)

    def least_batch(self) -> tuple[str, int]:
        return "its one query", 1

    def eviction_stages(self, suite: Suite, cache: KVCache, layer: int, seen: Seen, kept: int) -> list[Stage]:
        if seen.mass is None:
            return []
        entry = cache.layers[layer]
        entry.state_of(TOVAState).kept = kept
        scores = Scores(seen.mass.sum(0, keepdim=True), seen.mass.shape[0] * cache.group + 1)
        return Eviction(suite, [entry], scores, Kept(0, entry.length, kept)).stages()

    async def attend(self, suite: Suite, cache: KVCache, layer: int, q: Value) -> Value:
        """Attend to everything; then the least attended goes."""
        entry = cache.layers[layer]
        k, v = entry.keys_and_values()
        if self.budget == 1 or entry.length <= entry.state_of(TOVAState).kept:
            return await suite.attention(q, k, v, None)
        everyone = torch.ones(q.shape[1], dtype=torch.bool)
        out, mass = await suite.attention_with_mass(q, k, v, None, everyone)
        bound = q.shape[0] * q.shape[1] + 1
        scores = suite.with_bound(mass.sum(0, keepdim=True), bound)
        await drop_least(suite, entry, Scores(scores, bound), entry.length - 1)
        return out
