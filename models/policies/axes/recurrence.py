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
ROOM = 8  # bits of a gap that its comparison with others may need


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
        """Take in all observed queries at once, see `token`."""

        async def take_in() -> None:
            await self.token(suite, state, seen)

        return [("hits", take_in)]

    async def token(self, suite: Suite, state: EvictionState, seen: Seen) -> None:
        """Take in what Q queries pay to the cached tokens: a comparison, a scan that tells each of them the time of the last
        hit before it, and the maximum of what lies between hits. Rounds of log2 Q steps twice, of few for one query."""
        assert isinstance(state, RecurrenceState)
        assert seen.mass is not None
        each = seen.mass if seen.each else seen.mass.sum(0, keepdim=True)
        heads = seen.most if seen.each else seen.most * seen.mass.shape[0]
        queries, cached = each.shape
        earlier, known = state.longest, 0 if state.longest is None else state.longest.shape[1]
        received = suite.with_bound(each, heads + 1)
        hits = await suite.less_than_zero(-received + self.alpha * heads, HIT_BITS)
        age = await self._ages(suite, state, hits)
        bound, times = state.most + 1, torch.arange(1, queries + 1)
        hit = hits.permute(1, 0)  # [S, Q]
        marks = suite.concat([hit[:, :1] * 0 + 1.0, hit], 1)  # as if there had been a hit before them, so long ago
        before = suite.with_bound(suite.concat([-age, hit * times], 1), bound)
        last = await suite.copy_scan(marks, before)
        gaps = await suite.select(hit, suite.with_bound(-last[:, :-1] + times.double(), bound), ROOM)
        most = gaps if queries == 1 else await suite.max(gaps)
        found = (suite.with_bound(x.permute(1, 0), bound) for x in (-last[:, -1:] + float(queries), most))
        state.age, longest = await suite.together(*map(suite.mask_for_cache, found))
        if earlier is not None:
            if cached > known:
                earlier = suite.concat([earlier, suite.public(0.0, (1, cached - known))], 1)
            over = suite.with_bound(longest - earlier, bound)
            more = await suite.select(await suite.less_than_zero(-over, 0), over)
            longest = await suite.mask_for_cache(suite.with_bound(earlier + more, bound))
        state.longest = longest

    async def _ages(self, suite: Suite, state: RecurrenceState, hits: Value) -> Value:
        """Return the ages of all tokens before the queries of `hits` [Q, S], of new tokens negative till they are cached:
        integers [S, 1], with no fraction bits, in a ring with room for what they will be."""
        queries, cached = hits.shape
        known = 0 if state.age is None else state.age.shape[1]
        new = cached - known
        state.most += max(new, queries)
        bound = state.most + 1.0
        ages = (hits[:1, known:] * 0 + 1.0) * torch.arange(new - 1 - queries, -1 - queries, -1)[None]
        if state.age is not None:
            room, passed = (suite.public(x, (1, known)) for x in (bound, float(new - queries)))
            age = await suite.recast(state.age + passed + room - room, 0)
            ages = suite.concat([age, ages], 1) if new else age
        return suite.with_bound(ages, bound).permute(1, 0)

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
