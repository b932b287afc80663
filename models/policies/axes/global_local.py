"""Scores by all queries and by the last ones, whichever says more of a token.

Leaks: nothing; what follows from scores is opened by no one (docs/security.md, "Policies").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from models.cache import Stage
from models.observation import Observation, Seen
from models.policies.axes.scorers import Accumulated, EvictionState
from models.policies.eviction import Kept, Scores, zeros
from protocols.suite import Suite, Value

COMPARED = 28  # bits of scores that are compared, above and below the point


@dataclass
class GlobalLocalState(EvictionState):
    """late [G, S], secret: what each cached token got from the last queries, of `most_late` (public) at most. balanced: the
    scores, once they are made. widened: whether merged keys (`models.policies.axes.classes`) have a bound of their own."""

    late: Value | None = None
    most_late: int = 0
    balanced: Value | None = None
    widened: bool = False


@dataclass(frozen=True)
class GlobalLocal(Accumulated):
    """The larger of two means: of the attention from all queries so far, and of that from the last `window` ones of the
    prompt, or those since tokens last went.

    In whole numbers: for sums g and l over Q and W queries, the larger of g W / c and l Q / c, c the largest number that
    divides both. Source: EMS, Li et al., 2024, section 3.2: l, or g times (sum of l) / (sum of g), which is W / Q, since a
    query pays 1 in all, until tokens have gone.
    """

    window: int

    def new_state(self) -> GlobalLocalState:
        return GlobalLocalState()

    def observation(self, tokens: int, layer: int) -> Observation:
        return Observation(tokens, late=self.window)

    def batch(self, suite: Suite, state: EvictionState, seen: Seen) -> list[Stage]:
        """Add up as `Accumulated`; of the last queries the batch's own count."""
        stages = super().batch(suite, state, seen)

        async def turn_to_the_last() -> None:
            assert isinstance(state, GlobalLocalState)
            state.late, state.most_late = seen.late, seen.most_late

        return [*stages, ("last queries", turn_to_the_last)]

    def heard(self, suite: Suite, state: EvictionState, new: Value, most: int) -> None:
        super().heard(suite, state, new, most)
        assert isinstance(state, GlobalLocalState)
        state.most_late += most
        if state.late is not None:
            late = suite.concat([state.late, zeros(suite, new.shape[0], new.shape[1] - state.late.shape[1])], -1)
            new = late + new
        state.late = suite.with_bound(new, state.most_late + 1)

    def ready(self, suite: Suite, state: EvictionState, seen: Seen) -> list[Stage]:
        """Return the step of taking the larger mean: 3 rounds."""

        async def balance() -> None:
            assert isinstance(state, GlobalLocalState)
            assert state.scores is not None
            assert state.late is not None
            divisor = math.gcd(state.most, state.most_late)
            factors = state.most_late // divisor, state.most // divisor
            pairs = zip((state.scores, state.late), factors, (state.most, state.most_late), strict=True)
            every, late = await suite.together(
                *(suite.rounded(suite.with_bound(x, most + 1), factor.bit_length() + 4) for x, factor, most in pairs)
            )
            bound = state.most * factors[0] + 1
            every, late = (suite.with_bound(x * n, bound) for x, n in zip((every, late), factors, strict=True))
            less = suite.with_bound(every - late, bound)
            below = await suite.less_than_zero(less, COMPARED - bound.bit_length())
            state.balanced = suite.with_bound(every - await suite.select(below, less), bound)

        return [("global and local scores", balance)]

    def scores(self, suite: Suite, state: EvictionState, seen: Seen, kept: Kept) -> Scores:
        assert isinstance(state, GlobalLocalState)
        found, state.balanced = state.balanced, None
        assert found is not None
        bound = state.most * (state.most_late // math.gcd(state.most, state.most_late)) + 1
        return Scores(found[:, kept.start : kept.stop], bound)

    def moved(self, suite: Suite, state: EvictionState, rows: Sequence[Value]) -> None:
        super().moved(suite, state, rows)
        assert isinstance(state, GlobalLocalState)
        state.late, state.most_late = None, 0
