"""Tokens that go join the one that stays to which their key is most similar, where it is similar enough.

Leaks: nothing; who joins whom, and who does at all, stays shared (docs/security.md, "Merging").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from models.policies.axes.merge import Rows
from models.policies.axes.scorers import EvictionState
from models.policies.eviction import Event, Merge, Moving
from protocols.suite import Suite, Value

COMPARED = 12  # log2 of what the difference to a threshold is at most when it is compared
LARGEST_STEP = 1 << 10  # that a value is divided by at once
ROOM = 20  # bits that sums of similarities need beyond one, and those of their count


async def leaving(suite: Suite, event: Event, candidates: int) -> tuple[Value, int]:
    """Return marks [sets, n] of those of the tokens that go that may join others: all, or the `candidates` of the highest
    scores, and how many they are (public). Rounds of a choice where not all do."""
    gone = event.chosen.shape[-1] - event.count
    if not 0 < candidates < gone:
        return suite.with_bound(-event.chosen + 1.0, 1.0), gone
    scores = event.scores
    both = await suite.keep_largest(scores.value, event.count + candidates, scores.bound, scores.fraction_bits)
    return suite.with_bound(both - event.chosen, 1.0), candidates


@dataclass(frozen=True)
class Similar(Merge):
    """A token that stays becomes (own + sum of u x of those that join it) / (1 + how many join it), u the cosine of their
    keys, which is the largest of all that stay. A token joins if the mean over heads of u is not below a threshold: the mean
    over all that go, in later events that and the threshold before, by halves. candidates: of those that go, so many of the
    highest scores may join; 0: all.

    Source: Wan et al., "D2O: Dynamic Discriminative Operations for Efficient Long-Context Inference of Large Language
    Models", ICLR 2025, and its code, where weights are u; the paper's are e^u.
    """

    rows: Rows = "values"
    candidates: int = 0

    async def before(self, suite: Suite, event: Event) -> list[Moving]:
        gone, count = await leaving(suite, event, self.candidates)
        return [Moving(event.chosen, event.parts, event.count), Moving(gone, event.parts[:2], count)]

    async def after(self, suite: Suite, event: Event, moved: Sequence[Sequence[Value]]) -> Sequence[Value]:
        """Some 20 rounds; the similarities of all pairs of a token that goes and one that stays are opened and compared."""
        (keys, values, *rest), gone = moved
        count, width = gone[0].shape[1], keys.shape[-1]
        keys, *left = await suite.together(*(suite.mask_for_cache(x) for x in (keys, *gone)))
        here, there = await suite.together(suite.normalised(left[0]), suite.normalised(keys))
        assign, near = await suite.most_similar(here, there)
        passed = await _passed(suite, near, event.entry.state_of(EvictionState))
        weights = await suite.select(passed.expand(*near.shape), near)
        joining = suite.concat(left, -1) if self.rows == "both" else left[1]
        weighted = await suite.mul(weights.reshape(*weights.shape, 1), joining)
        ones = passed.expand(*near.shape).reshape(*near.shape, 1)
        sums = await suite.scatter_add(assign, suite.concat([weighted, ones], -1))
        own = suite.concat([keys, values], -1) if self.rows == "both" else values
        total, counts = sums[..., :-1] + own, sums[..., -1:] + 1.0
        like = suite.concat(event.parts[:2], -1) if self.rows == "both" else event.parts[1]
        merged = await suite.averaged(total, counts, like, (1.0, count + 1.0))
        return [merged[..., :width], merged[..., width:], *rest] if self.rows == "both" else [keys, merged, *rest]


async def _passed(suite: Suite, near: Value, state: EvictionState) -> Value:
    """Return 1 where the mean over heads of similarities [G, E] is not below the threshold: [1, E]; and keep that."""
    groups, count = near.shape
    near = await suite.rounded(near, ROOM + 2 * (groups * count).bit_length())
    total = near.sum(0, keepdim=True)
    every = total.sum(1, keepdim=True)
    mean = await _divided(suite, every, count)
    if state.threshold is None:
        over, bound = total * count - every.expand(1, count), 2.0 * groups * count
        state.threshold = mean
    else:
        state.threshold = await suite.scale(state.threshold + mean, 0.5)
        over, bound = total - state.threshold.expand(1, count), 2.0 * groups
    over = suite.with_bound(over, bound)
    if bound > 2.0**COMPARED:
        less = 2.0 ** (COMPARED - math.ceil(math.log2(bound)))
        over = suite.with_bound(await suite.scale(over, less), 2.0**COMPARED)
    return -(await suite.less_than_zero(over)) + 1.0


async def _divided(suite: Suite, x: Value, count: int) -> Value:
    """Return x / count, public: by powers of two, then by what is left of 1 to 2, each a factor with few fraction bits."""
    power = 1 << (count.bit_length() - 1)
    halved = 1
    while halved < power:
        step = min(LARGEST_STEP, power // halved)
        x, halved = await suite.scale(x, 1.0 / step), halved * step
    return await suite.scale(x, power / count)
