"""Scores by mean and variance of what the last queries pay to a token: what they look at, and what they differ about.

Leaks: nothing; what follows from scores is opened by no one (docs/security.md, "Policies").
"""

from __future__ import annotations

from dataclasses import dataclass

from models.cache import Stage
from models.observation import Observation, Seen
from models.policies.axes.scorers import EvictionState, Scorer
from models.policies.eviction import Kept, Scores, pooled
from protocols.suite import SQUARED_BITS, Suite

RANKED_BITS = 22  # fraction bits of scores that are compared, where their bound leaves as many


@dataclass(frozen=True)
class Moments(Scorer):
    """mean + gamma variance of the attention from the prompt's last `window` queries, each query head by itself, that of
    `kernel // 2` neighbours on each side added, heads of a key/value head added.

    In whole numbers: for W queries, S1 their sum and S2 their sum of squares, W (W - 1) times that is (W - 1) S1 + gamma (W
    S2 - S1^2). Over neighbours, each query's probabilities add up to 1 at most, so S1 to W, and what stands in parentheses
    to W^2. While decoding, the attention of the one query there is. Source: CAKE, Qin et al., ICLR 2025, section 4.3, and
    its code.
    """

    window: int
    gamma: int
    kernel: int = 1

    def observation(self, tokens: int, layer: int) -> Observation:
        return Observation(self.window, squares=True)

    def ready(self, suite: Suite, state: EvictionState, seen: Seen) -> list[Stage]:
        """Return the step of squaring the sums: a round. While decoding nothing is squared."""
        mass, squares, count = seen.mass, seen.squares, seen.queries
        assert mass is not None
        if squares is None:
            return []

        async def moments() -> None:
            square = await suite.squared(mass, SQUARED_BITS)
            spread = (squares * count - square) * self.gamma
            state.scores = mass * max(1, count - 1) + spread

        return [("moments", moments)]

    def scores(self, suite: Suite, state: EvictionState, seen: Seen, kept: Kept) -> Scores:
        """Return the scores of query heads, [H, n]; while decoding [G, n]."""
        found, state.scores = (seen.mass if seen.squares is None else state.scores), None
        assert found is not None
        half, count = self.kernel // 2, seen.queries
        bound = seen.most if seen.squares is None else count * count * (1 + self.gamma)
        return Scores(pooled(suite, found[:, kept.start : kept.stop], half, half), bound + 1, fraction_bits=RANKED_BITS)
