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
from models.cache import KVCache, LayerState, Place, Stage
from models.policies.eviction import EvictingPolicy, Eviction, Kept, Scores, Seen, drop_least, zeros
from models.policies.settings import budget_tokens, no_windows, ratio, text_of
from mpc.errors import ConfigurationError
from protocols.suite import Suite, Value


@dataclass
class H2OState(LayerState):
    """kept: public number of tokens that stay. queries: public, all that have given attention so far. scores [G, S], secret:
    attention that each cached token has got from them."""

    kept: int = 0
    queries: int = 0
    scores: Value | None = None


@dataclass(frozen=True)
class H2O(EvictingPolicy):
    """budget: share of the prompt's tokens that a head keeps; 1 keeps everything. recent: share of the budget for recent
    tokens."""

    budget: float = 0.1
    recent: float = 0.5
    name: ClassVar[str] = "h2o"
    sees_all: ClassVar[bool] = True

    def __post_init__(self) -> None:
        ratio(self.name, "budget", self.budget)
        ratio(self.name, "recent", self.recent)

    @property
    def spec(self) -> str:
        return text_of(self)

    def check(self, architecture: Architecture, prompt_tokens: int) -> None:
        """Refuse a budget that does not hold a heavy hitter and a recent token."""
        no_windows(self.name, architecture, prompt_tokens)
        kept = self.stays(prompt_tokens)
        if kept < prompt_tokens and kept - budget_tokens(self.recent, kept) < 1:
            raise ConfigurationError(
                f"policy {self.name}: budget = {self.budget} keeps {kept} of {prompt_tokens} tokens, recent = {self.recent} "
                "leaves none of them to heavy hitters; raise budget or lower recent"
            )

    def verifies(self, rows: int) -> bool:
        """Whether nothing is evicted: else every token drops another one, which cannot be taken back."""
        return self.budget == 1

    def new_state(self, place: Place) -> H2OState:
        return H2OState()

    def observed_queries(self, tokens: int, layer: int) -> int:
        return tokens if self.budget < 1 else 0

    def stays(self, tokens: int) -> int:
        return budget_tokens(self.budget, tokens)

    def least_batch(self) -> tuple[str, int]:
        return "a heavy hitter and a recent token", 2

    def eviction_stages(self, suite: Suite, cache: KVCache, layer: int, seen: Seen, kept: int) -> list[Stage]:
        if seen.mass is None:
            return []
        entry = cache.layers[layer]
        state, tokens = entry.state_of(H2OState), entry.length
        state.kept = kept
        recent = budget_tokens(self.recent, kept)
        state.queries += seen.queries
        bound, older = state.queries * cache.group + 1, tokens - recent
        mass, earlier = seen.mass, state.scores
        scores = Scores(mass[:, :older], bound)
        eviction = Eviction(suite, [entry], scores, Kept(0, older, kept - recent), extra=mass)

        async def add_up() -> None:
            assert earlier is not None
            new = await suite.mask_for_cache(suite.with_bound(mass, seen.queries * cache.group + 1))
            before = suite.concat([earlier, zeros(suite, mass.shape[0], tokens - earlier.shape[1])], -1)
            total = suite.with_bound(before + new, bound)
            eviction.scores, eviction.extra = Scores(total[:, :older], bound), total

        async def remember() -> None:
            assert eviction.extra is not None
            state.scores = await suite.mask_for_cache(suite.with_bound(eviction.extra, bound))

        batches: list[Stage] = [] if earlier is None else [("scores of all batches", add_up)]
        return [*batches, *eviction.stages(), ("scores", remember)]

    async def attend(self, suite: Suite, cache: KVCache, layer: int, q: Value) -> Value:
        """Attend to the budget and the new token; then the lowest score goes."""
        entry = cache.layers[layer]
        k, v = entry.keys_and_values()
        if self.budget == 1:
            return await suite.attention(q, k, v, None)
        state = entry.state_of(H2OState)
        assert state.scores is not None
        everyone = torch.ones(q.shape[1], dtype=torch.bool)
        out, mass = await suite.attention_with_mass(q, k, v, None, everyone)
        mass = await suite.mask_for_cache(suite.with_bound(mass, cache.group + 1))
        state.queries += 1
        bound = state.queries * cache.group + 1
        before = suite.concat([state.scores, zeros(suite, state.scores.shape[0], 1)], -1)
        scores = suite.with_bound(before + mass, bound)
        if entry.length > state.kept:
            heavy = state.kept - budget_tokens(self.recent, state.kept)
            scores = suite.with_bound(await drop_least(suite, entry, Scores(scores, bound), heavy), bound)
        state.scores = scores
        return out
