"""Scores by probes: tokens that are no part of the prompt, but ask of it what will be asked.

Leaks: nothing; what follows from scores is opened by no one (docs/security.md, "Policies").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from models.cache import Stage
from models.observation import Observation, Seen
from models.policies.axes.scorers import EvictionState, Scorer
from models.policies.eviction import Kept, Scores
from protocols.suite import Suite, Value

Reduce = Literal["sum", "max"]


@dataclass(frozen=True)
class ProbeVotes(Scorer):
    """Attention from `count` probes behind each batch of the prompt, and a group's heads: the sum, or the largest one.

    Source: EpiCache, Kim et al., 2025, and its code, as KVzip, Kim et al., 2025: the largest.
    """

    count: int
    reduce: Reduce = "sum"
    decodes: ClassVar[bool] = False

    @property
    def probes(self) -> int:
        return self.count

    def observation(self, tokens: int, layer: int) -> Observation:
        return Observation(self.count, alone=self.reduce == "max")

    def ready(self, suite: Suite, state: EvictionState, seen: Seen) -> list[Stage]:
        """Return the step of taking the largest, where that counts: a comparison for each probe, head and token."""
        mass = seen.mass
        assert mass is not None
        if self.reduce == "sum":
            return []

        async def largest() -> None:
            state.scores = await _largest(suite, suite.with_bound(mass, seen.most + 1), state.groups)

        return [("largest", largest)]

    def scores(self, suite: Suite, state: EvictionState, seen: Seen, kept: Kept) -> Scores:
        found, state.scores = (seen.mass if self.reduce == "sum" else state.scores), None
        assert found is not None
        return Scores(found[:, kept.start : kept.stop], seen.most + 1)


async def _largest(suite: Suite, mass: Value, groups: int) -> Value:
    """Return the largest of the rows [n, S] of each of G groups, [G, S]."""
    count, tokens = mass.shape
    rows = mass.reshape(groups, count // groups, tokens).permute(0, 2, 1)
    return (await suite.max(rows, background=True)).reshape(groups, tokens)
