"""Scorers: how important a cached token is, in secret.

A scorer is configuration. What it keeps of a layer between calls lies in the layer's `EvictionState`: values [G, S], one a
cached token, move along when tokens go.

Leaks: nothing; what follows from scores is opened by no one (docs/security.md, "Policies").
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

from models.architecture import Architecture
from models.cache import LayerState, Stage
from models.learned import Learned
from models.observation import Observation, Seen
from models.policies.eviction import Kept, Scores, pooled, zeros
from models.policies.settings import budget_tokens
from protocols.suite import Suite, Value


@dataclass
class EvictionState(LayerState):
    """kept: public number of tokens that stay. groups: of key/value heads. most: public, the most attention that a token can
    have got from the queries that its score counts. learned: of the layer. scores [G, S], secret: what a scorer keeps of
    each cached token, masked for reuse. threshold [1, 1], secret: of a merger (`models.policies.axes.similar`). members:
    layers that keep the same tokens, this one among them; votes [G, S], secret: at the first, what tokens got in those so
    far, until the last one is through. reading: what the reader keeps."""

    kept: int = 0
    groups: int = 0
    most: int = 0
    learned: Learned | None = None
    scores: Value | None = None
    threshold: Value | None = None
    members: tuple[int, ...] = ()
    votes: Value | None = None
    reading: LayerState = field(default_factory=LayerState)

    def parts(self) -> tuple[LayerState, ...]:
        return self, self.reading

    def __copy__(self) -> Self:
        return replace(self, reading=copy.copy(self.reading))


class Scorer(ABC):
    """How important a token is. sees_all: whether every query of a prompt counts. every_token: whether every decoded token's
    attention counts, and not only that of tokens after which some go. decodes: whether it can score while decoding. probes:
    see `CachePolicy.probes`."""

    sees_all: ClassVar[bool] = False
    every_token: ClassVar[bool] = False
    decodes: ClassVar[bool] = True

    @property
    def probes(self) -> int:
        return 0

    @property
    def for_good(self) -> str:
        """Return the name of what it keeps of each token in `EvictionState.scores`, where that depends on no later token's
        query but by adding to it, and is all that it keeps; else empty. Public."""
        return ""

    def begin(self, suite: Suite, state: EvictionState, scores: Value, most: int) -> None:
        """Take scores [G, S] of tokens in front of a prompt, masked, which got `most` (public) attention at most; local."""
        state.scores = scores

    @property
    def own_layers(self) -> int:
        """Return behind how many layers all are asked the same; public."""
        return 0

    def learned(self, architecture: Architecture) -> dict[str, tuple[int, ...]]:
        """Return the shapes of what it has learned of each layer, by part (`models.learned`)."""
        return {}

    @abstractmethod
    def observation(self, tokens: int, layer: int) -> Observation:
        """Return what it asks of the attention of a prompt of `tokens` tokens; public."""

    def new_state(self) -> EvictionState:
        """Return what it keeps of a layer, as it is before the prompt."""
        return EvictionState()

    def batch(self, suite: Suite, state: EvictionState, seen: Seen) -> list[Stage]:
        """Return the steps of taking in what a batch of the prompt says."""
        return []

    def ready(self, suite: Suite, state: EvictionState, seen: Seen) -> list[Stage]:
        """Return the steps of making scores, once tokens are to go."""
        return []

    async def token(self, suite: Suite, state: EvictionState, seen: Seen) -> None:
        """Take in what a decoded token's query says."""
        return None

    @abstractmethod
    def scores(self, suite: Suite, state: EvictionState, seen: Seen, kept: Kept) -> Scores:
        """Return the scores [G, n] of the tokens that `kept` chooses from, after `batch` or `token`, and `ready`; local."""

    def rows(self, state: EvictionState) -> Sequence[Value]:
        """Return the secret values that move with the tokens, each [G, S], or [1, S] where one set is kept for all heads."""
        return ()

    def moved(self, suite: Suite, state: EvictionState, rows: Sequence[Value]) -> None:
        """Take the values of the tokens that are left, in the order of `rows`; local."""
        return None

    def after(self, suite: Suite, state: EvictionState) -> list[Stage]:
        """Return the steps of keeping what a prompt's batch left, once tokens have gone."""
        return []


@dataclass(frozen=True)
class Accumulated(Scorer):
    """Attention that a token has got from all queries so far. Source: H2O, Zhang et al., NeurIPS 2023, section 4."""

    sees_all: ClassVar[bool] = True
    every_token: ClassVar[bool] = True

    @property
    def for_good(self) -> str:
        return "attention" if type(self) is Accumulated else ""

    def begin(self, suite: Suite, state: EvictionState, scores: Value, most: int) -> None:
        state.scores, state.most = suite.with_bound(scores, most + 1), most

    def observation(self, tokens: int, layer: int) -> Observation:
        return Observation(tokens)

    def batch(self, suite: Suite, state: EvictionState, seen: Seen) -> list[Stage]:
        """Add up: a round to mask what a later batch says."""
        if state.scores is None:
            state.scores, state.most = seen.mass, seen.most
            return []

        async def add_up() -> None:
            await self.token(suite, state, seen)

        return [("scores of all batches", add_up)]

    async def token(self, suite: Suite, state: EvictionState, seen: Seen) -> None:
        """Add what a query, or a batch's queries, say to what those before them said. One round."""
        assert seen.mass is not None
        self.heard(suite, state, await suite.mask_for_cache(suite.with_bound(seen.mass, seen.most + 1)), seen.most)

    def heard(self, suite: Suite, state: EvictionState, new: Value, most: int) -> None:
        """Add what cached tokens got, [G, S], `most` (public) at most; local."""
        earlier = state.scores
        assert earlier is not None
        before = suite.concat([earlier, zeros(suite, new.shape[0], new.shape[1] - earlier.shape[1])], -1)
        state.most += most
        state.scores = suite.with_bound(before + new, state.most + 1)

    def scores(self, suite: Suite, state: EvictionState, seen: Seen, kept: Kept) -> Scores:
        assert state.scores is not None
        return Scores(state.scores[:, kept.start : kept.stop], state.most + 1)

    def rows(self, state: EvictionState) -> Sequence[Value]:
        assert state.scores is not None
        return (state.scores,)

    def moved(self, suite: Suite, state: EvictionState, rows: Sequence[Value]) -> None:
        (scores,) = rows
        state.scores = suite.with_bound(scores, state.most + 1)

    def after(self, suite: Suite, state: EvictionState) -> list[Stage]:
        """Mask the scores for reuse. One round."""

        async def remember() -> None:
            assert state.scores is not None
            state.scores = await suite.mask_for_cache(suite.with_bound(state.scores, state.most + 1))

        return [("scores", remember)]


class NoScores(Scorer):
    """Nothing is scored: places alone say who stays."""

    decodes: ClassVar[bool] = False

    def observation(self, tokens: int, layer: int) -> Observation:
        return Observation()

    def scores(self, suite: Suite, state: EvictionState, seen: Seen, kept: Kept) -> Scores:
        raise RuntimeError("nothing is scored where places alone say who stays")


@dataclass(frozen=True)
class WindowVotes(Scorer):
    """Attention from the prompt's last `window` queries, below 1 a share of them, that of `kernel // 2` neighbours on each
    side added. following: tokens behind each one that its score counts for, too.

    Source: SnapKV, Li et al., NeurIPS 2024, section 4.1.
    """

    window: float
    kernel: int = 1
    following: int = 0
    decodes: ClassVar[bool] = False

    def observation(self, tokens: int, layer: int) -> Observation:
        return Observation(int(self.window) if self.window >= 1 else budget_tokens(self.window, tokens))

    def scores(self, suite: Suite, state: EvictionState, seen: Seen, kept: Kept) -> Scores:
        assert seen.mass is not None
        half = self.kernel // 2
        votes = pooled(suite, seen.mass[:, kept.start : kept.stop], half, half)
        return Scores(votes, seen.most + 1, self.following)


@dataclass(frozen=True)
class HeadVotes(WindowVotes):
    """As `WindowVotes`, but of some query heads of each layer alone. heads: (layer, query head); a layer that it does not
    name asks all of them.

    Source: Lin et al., "CompressKV", 2025, and its code.
    """

    heads: tuple[tuple[int, int], ...] = ()

    @property
    def own_layers(self) -> int:
        return 1 + max((layer for layer, _ in self.heads), default=-1)

    def observation(self, tokens: int, layer: int) -> Observation:
        return Observation(int(self.window), tuple(head for of, head in self.heads if of == layer) or None)


@dataclass(frozen=True)
class LastQuery(Scorer):
    """Attention from the last query alone. Source: TOVA, Oren et al., EMNLP 2024, section 3."""

    def observation(self, tokens: int, layer: int) -> Observation:
        return Observation(1)

    def scores(self, suite: Suite, state: EvictionState, seen: Seen, kept: Kept) -> Scores:
        assert seen.mass is not None
        return Scores(seen.mass[:, kept.start : kept.stop], seen.most + 1)
