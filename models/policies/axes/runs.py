"""Neighbours whose keys are similar become one: runs of tokens, cut where neighbours are least similar.

Leaks: nothing; where runs are cut stays shared, how many there are is public (docs/security.md, "Merging").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from models.policies.eviction import Event, Merge, Moving, Scores
from protocols.suite import Suite, Value

LEAST_WEIGHT = 2.0**-7  # is added to each token's weight: a run of tokens that received nothing has a mean, too


@dataclass(frozen=True)
class Runs(Merge):
    """All tokens that are chosen from fall into runs of neighbours, as many as stay: the pairs of neighbours whose keys have
    the least cosine are cut, of equal ones the earlier. A run becomes the mean of its keys and values by what its tokens
    received, and 2^-7; what they received adds up.

    longest: a run has at most so many tokens, or twice the mean where that is more: after every so many there is a cut,
    which counts; 0: any number.

    Source: Wang et al., "Model Tells You Where to Merge: Adaptive KV Cache Merging for LLMs on Long-Context Tasks", 2024,
    sections 4 and 5: there runs end where a cosine is below a threshold, so their number depends on the prompt, and weights
    are a Gaussian of the distance to the run's most attended key.
    """

    longest: int = 0

    async def scored(self, suite: Suite, event: Event) -> Scores:
        """Return what runs are cut by: minus the cosine of a key and the next one; the last place is always cut."""
        unit = await suite.normalised(event.parts[0])
        near = suite.with_bound((await suite.mul(unit[:, :-1], unit[:, 1:])).sum(-1), 1.0)
        heads, count = 1, unit.shape[1]
        if event.scores.value.shape[0] == 1 < unit.shape[0]:  # one set for all heads: their cosines add up
            heads = unit.shape[0]
            near = (await suite.rounded(near, heads.bit_length() + 4)).sum(0, keepdim=True)
        free, longest = torch.ones(count, dtype=torch.int64), self.most(count, event.count)
        free[longest - 1 :: longest] = 0
        free[-1] = 0
        forced = (1 - free) * 1.5 * heads
        forced[-1] += 0.25 * heads
        cuts = suite.with_bound(suite.concat([-near, near[:, :1]], 1) * free, heads) + forced
        return Scores(suite.with_bound(cuts, 2.0 * heads), 2.0 * heads)

    def most(self, tokens: int, runs: int) -> int:
        """Return how many tokens a run of `tokens` ones has at most, when there are to be so many runs; public."""
        return min(tokens, max(self.longest, 2 * -(-tokens // runs))) if self.longest else tokens

    async def weights(self, suite: Suite, event: Event) -> Value:
        """Return what each token counts in its run's mean: [sets, n], or [G, n] for heads that share a set."""
        return suite.with_bound(event.scores.value + LEAST_WEIGHT, event.scores.bound + 1.0)

    def limits(self, event: Event) -> tuple[float, float]:
        """Return public bounds on the sum of a run's weights."""
        return LEAST_WEIGHT / 2, event.scores.bound + event.parts[0].shape[1] * LEAST_WEIGHT

    async def before(self, suite: Suite, event: Event) -> list[Moving]:
        keys, values, *scored = event.parts
        found = await self.weights(suite, event)
        weights = found.reshape(*found.shape, 1)
        room = self.most(event.chosen.shape[-1], event.count).bit_length()
        both = await suite.weighted(weights, suite.concat([keys, values], -1), room)
        return [Moving(event.chosen, [both, weights, *scored], event.count, "runs")]

    async def after(self, suite: Suite, event: Event, moved: Sequence[Sequence[Value]]) -> Sequence[Value]:
        """Divide by the weights of each run: 2 rounds (4 with more than two parties)."""
        (both, weights, *scored) = moved[0]
        width = event.parts[0].shape[-1]
        like = suite.concat(event.parts[:2], -1)
        means = await suite.averaged(both, weights, like, self.limits(event))
        return [means[..., :width], means[..., width:], *scored]
