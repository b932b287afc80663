"""Tokens that stay are centres of classes: of those that go, the best ones join the centre of the most similar key, or none.

Leaks: nothing; who joins whom, and who joins none, stays shared (docs/security.md, "Merging").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from models.policies.axes.global_local import GlobalLocalState
from models.policies.axes.merge import Rows
from models.policies.axes.similar import leaving
from models.policies.eviction import Event, Merge, Moving
from protocols.suite import Suite, Value

WEIGHT_BITS = 18  # log2 of what the largest weight is above the least one


@dataclass(frozen=True)
class Classes(Merge):
    """A class becomes the mean of its values by their tokens' scores, and its key the mean of directions by scores, as long
    as the centre's. A token whose largest cosine is not above tau joins none: as if there were a class of cosine tau in
    front of all, which goes. What tokens of a class received adds up. To all scores 2^-`WEIGHT_BITS` of the largest possible
    one is added: a class that received nothing has a mean, too.

    candidates: of those that go, so many of the highest scores may join; 0: all. rows: values, with keys as they are, or
    both. Source: EMS, Li et al., 2024, section 3.3.
    """

    tau: float = 0.6
    candidates: int = 0
    rows: Rows = "both"

    async def before(self, suite: Suite, event: Event) -> list[Moving]:
        gone, count = await leaving(suite, event, self.candidates)
        scores = event.scores
        masked = await suite.mask_for_cache(suite.with_bound(scores.value, scores.bound))
        weights = suite.with_bound(masked * weight_scale(scores.bound) + 1.0, _room(heaviest(scores.bound)))
        parts = [*event.parts, weights.reshape(*weights.shape, 1)]
        return [Moving(event.chosen, parts, event.count), Moving(gone, parts, count)]

    async def after(self, suite: Suite, event: Event, moved: Sequence[Sequence[Value]]) -> Sequence[Value]:
        """Some 20 rounds; the cosines of all pairs of a token that may join and a centre are opened and compared."""
        state, scores = event.entry.state_of(GlobalLocalState), event.scores
        most, within = heaviest(scores.bound), (state.most + 1, _room(heaviest(scores.bound)))
        rows = [(*x[:2], *(suite.with_bound(y, bound) for y, bound in zip(x[2:], within, strict=True))) for x in moved]
        masked = await suite.together(*(suite.mask_for_cache(x) for one in rows for x in one))
        keys, values, received, weights, k, v, more, w = masked
        here, there = await suite.together(suite.normalised(k), suite.normalised(keys))
        assign, _ = await suite.most_similar(here, there, self.tau, WEIGHT_BITS + 1)
        count = 2 if self.rows == "both" else 1
        weighted = [suite.mul(w, x) for x in (v, here)[:count]] + [suite.mul(weights, x) for x in (values, there)[:count]]
        products = await suite.together(*weighted)
        joining = [*products[:count], suite.concat([w, more], -1)]
        *sums, counted = await suite.together(*(suite.scatter_add(assign, x) for x in joining))
        over, received = counted[..., :1] + weights, counted[..., 1:] + received
        limits = 0.5, 2 * most + k.shape[1]
        total = [x + y for x, y in zip(sums, products[count:], strict=True)]
        like = event.parts[1], there
        means = await suite.together(*(suite.averaged(x, over, y, limits) for x, y in zip(total, like, strict=False)))
        turned = keys if count == 1 else await self._turned(suite, event.parts[0], state, (keys, there, means[1]))
        return [turned, means[0], received]

    async def _turned(self, suite: Suite, like: Value, state: GlobalLocalState, rows: tuple[Value, Value, Value]) -> Value:
        """Return keys [G, B, C] in other directions, as long as they are, from keys as `like`. rows: keys, their directions,
        means of directions.

        An entry may be as large as a key is long, which turning does not change: once keys are bounded so, they stay so.
        """
        keys, there, mean = rows
        shape, width = keys.shape[:2], keys.shape[2]
        products = suite.matmul(keys.reshape(*shape, 1, width), there.reshape(*shape, width, 1))
        direction, lengths = await suite.together(suite.normalised(mean), products)
        room = 0 if state.widened else math.ceil(math.log2(width) / 2)
        state.widened = True
        length = suite.bounded_as(lengths.reshape(*shape, 1), like, room)
        return suite.bounded_as(await suite.mul(direction, length), like, room)


def weight_scale(bound: float) -> int:
    """Return what scores below `bound` are multiplied by before 1 is added to make a weight.

    >>> weight_scale(1000.0)
    256
    """
    return 1 << max(0, WEIGHT_BITS - math.ceil(math.log2(bound)))


def heaviest(bound: float) -> float:
    """Return what no weight of a score below `bound` is above."""
    return weight_scale(bound) * bound + 1


def _room(most: float) -> float:
    """Return the bound that weights are declared to have, so that the ring of a product has room for the sums of a class."""
    return 4 * most
