"""Scores that a token has for good, which something learned says of the batch that it comes in; they move with the token.

Leaks: nothing; what follows from scores is opened by no one (docs/security.md, "Policies").
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from models.cache import Stage
from models.learned import Learned
from models.observation import Observation, Seen
from models.policies.axes.scorers import EvictionState, Scorer
from models.policies.eviction import Kept, Scores
from protocols.suite import Suite, Value

LIMIT = 2
"""log2 of what scores must stay within; those beyond are flagged as "activation". `mpcache fit` scales them to at most 1 on
its prompts, which changes no order."""
BOUND = 2.0 ** (LIMIT + 3)
"""What scores that are not flagged stay below."""


class LastingScores(Scorer):
    """A scorer of a batch's tokens by their features alone."""

    decodes: ClassVar[bool] = False

    @abstractmethod
    async def scored(self, suite: Suite, features: Value, learned: Learned) -> Value:
        """Return the scores [T, G] of a batch's tokens of features [T, (H + 2G) C]; secret."""

    def observation(self, tokens: int, layer: int) -> Observation:
        return Observation(features=True)

    def begin(self, suite: Suite, state: EvictionState, scores: Value, most: int) -> None:
        state.scores = suite.with_bound(scores, BOUND)

    def batch(self, suite: Suite, state: EvictionState, seen: Seen) -> list[Stage]:
        """Score the batch's tokens, behind those of the batches before. The scorer's rounds, and one."""

        async def score() -> None:
            assert seen.features is not None
            assert state.learned is not None
            found = (await self.scored(suite, seen.features, state.learned)).permute(1, 0)
            new = suite.with_bound(await suite.mask_for_cache(found, "activation", LIMIT), BOUND)
            state.scores = new if state.scores is None else suite.concat([state.scores, new], 1)

        return [("scores", score)]

    def scores(self, suite: Suite, state: EvictionState, seen: Seen, kept: Kept) -> Scores:
        assert state.scores is not None
        return Scores(state.scores[:, kept.start : kept.stop], BOUND)

    def rows(self, state: EvictionState) -> Sequence[Value]:
        assert state.scores is not None
        return (state.scores,)

    def moved(self, suite: Suite, state: EvictionState, rows: Sequence[Value]) -> None:
        (state.scores,) = rows

    def after(self, suite: Suite, state: EvictionState) -> list[Stage]:
        """Mask the scores for reuse. One round."""

        async def remember() -> None:
            assert state.scores is not None
            state.scores = await suite.mask_for_cache(suite.with_bound(state.scores, BOUND))

        return [("scores", remember)]
