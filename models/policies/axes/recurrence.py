"""Scores by recurrence: tokens that are looked at again and again stay, as long as it is not longer ago than usual.

Leaks: nothing; what follows from scores is opened by no one (docs/security.md, "Policies").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from models.cache import Stage
from models.observation import Observation, Seen
from models.policies.axes.scorers import EvictionState, Scorer
from models.policies.eviction import Kept, Scores
from protocols.suite import Suite, Value

HIT_BITS = 20  # fraction bits of attention that is compared with alpha


@dataclass
class RecurrenceState(EvictionState):
    """age [1, S]: queries since a token's last hit, or since it was cached; longest [1, S]: most of them between two hits.
    Secret integers, masked for reuse; most (public): what neither exceeds."""

    age: Value | None = None
    longest: Value | None = None


@dataclass(frozen=True)
class Recurrence(Scorer):
    """A hit is attention above alpha, mean over all query heads of the layer. On one, the longest gap grows to the age if
    that is more, and the age is 0. Score: 2 s(-age / gap) + 2 s(-1 / gap), s the logistic function, gap the longest one or
    1; that is 2 - tanh(age / 2 gap) - tanh(1 / 2 gap). Of a prompt's queries the last `observed` ones count.

    Scores are right within 2^-11 in suites on shares: tokens whose scores are closer may change places.
    Source: LazyEviction, Zhang et al., 2025.
    """

    alpha: float
    observed: int
    every_token: ClassVar[bool] = True

    def new_state(self) -> RecurrenceState:
        return RecurrenceState()

    def observation(self, tokens: int, layer: int) -> Observation:
        return Observation(self.observed, each=True)

    def batch(self, suite: Suite, state: EvictionState, seen: Seen) -> list[Stage]:
        """Take in one query after the other: 4 rounds each."""

        async def take_in() -> None:
            await self.token(suite, state, seen)

        return [("hits", take_in)]

    async def token(self, suite: Suite, state: EvictionState, seen: Seen) -> None:
        assert isinstance(state, RecurrenceState)
        assert seen.mass is not None
        each = seen.mass if seen.each else seen.mass.sum(0, keepdim=True)
        heads = seen.most if seen.each else seen.most * seen.mass.shape[0]
        queries, cached = each.shape
        self._grow(suite, state, cached, queries)
        for n in range(queries):
            await self._hit(suite, state, suite.with_bound(each[n : n + 1], heads + 1), self.alpha * heads)

    def _grow(self, suite: Suite, state: RecurrenceState, cached: int, queries: int) -> None:
        """Let the ages be those before the last `queries` queries, of new tokens negative till they are cached."""
        known = 0 if state.age is None else state.age.shape[1]
        new = cached - known
        ages = suite.public(torch.arange(new - 1 - queries, -1 - queries, -1.0)[None])
        none = suite.public(torch.zeros(1), (1, new))
        state.most += max(new, queries)
        if state.age is not None and state.longest is not None:
            ages = suite.concat([state.age + float(new - queries), ages], 1)
            none = suite.concat([state.longest, none], 1)
        state.age, state.longest = (suite.with_bound(x, state.most + 1) for x in (ages, none))

    async def _hit(self, suite: Suite, state: RecurrenceState, received: Value, least: float) -> None:
        """Take in what a query pays to the cached tokens, [1, S], all heads added."""
        longest = state.longest
        assert state.age is not None
        assert longest is not None
        age = suite.with_bound(state.age + 1.0, state.most + 1)
        hit, longer = await suite.together(
            suite.less_than_zero(-received + least, HIT_BITS), suite.less_than_zero(longest - age, 0)
        )
        gone, both = await suite.together(suite.select(hit, age), suite.select(hit, longer))
        more = await suite.select(both, suite.with_bound(age - longest, state.most + 1))
        found = (suite.with_bound(x, state.most + 1) for x in (age - gone, longest + more))
        state.age, state.longest = await suite.together(*map(suite.mask_for_cache, found))

    def ready(self, suite: Suite, state: EvictionState, seen: Seen) -> list[Stage]:
        """Return the step of making scores: a division and a hyperbolic tangent."""

        async def recurrence() -> None:
            assert isinstance(state, RecurrenceState)
            age, longest = state.age, state.longest
            assert age is not None
            assert longest is not None
            never = await suite.less_than_zero(longest - 1.0, 0)
            shape = (1, age.shape[1], 1)
            twice = suite.with_bound(longest + never, state.most + 1).reshape(*shape) * 2
            sums = suite.concat([age.reshape(*shape), suite.public(torch.ones(1), shape)], 2)
            halves = await suite.averaged(sums, twice, age, (2.0, 2.0 * state.most + 2))
            terms = await suite.tanh(suite.with_bound(halves, state.most + 1))
            state.scores = -(await suite.rounded(terms)).sum(2)

        return [("recurrence", recurrence)]

    def scores(self, suite: Suite, state: EvictionState, seen: Seen, kept: Kept) -> Scores:
        found, state.scores = state.scores, None
        assert found is not None
        return Scores(found[:, kept.start : kept.stop], 4.0)

    def rows(self, state: EvictionState) -> Sequence[Value]:
        assert isinstance(state, RecurrenceState)
        assert state.age is not None
        assert state.longest is not None
        return (state.age, state.longest)

    def moved(self, suite: Suite, state: EvictionState, rows: Sequence[Value]) -> None:
        assert isinstance(state, RecurrenceState)
        state.age, state.longest = (suite.with_bound(x, state.most + 1) for x in rows)

    def after(self, suite: Suite, state: EvictionState) -> list[Stage]:
        """Mask what moved for reuse. One round."""

        async def remember() -> None:
            moved = [suite.with_bound(x, state.most + 1) for x in self.rows(state)]
            self.moved(suite, state, await suite.together(*map(suite.mask_for_cache, moved)))

        return [("ages", remember)]
