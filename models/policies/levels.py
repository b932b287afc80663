"""Clusters of a layer's cached tokens on one or two levels: described as tokens come, and chosen from.

Fine clusters of neighbouring tokens begin behind the sinks; on two levels, coarse ones consist of whole fine ones and are
chosen from first. Where work beside a token's rounds needs none of its own (suite `masked`), the extremes of the cluster
that is being filled are kept up token by token, so that every token costs the same; elsewhere the token that fills it
computes them all.

Source: Zeng et al., "MPCache", NeurIPS 2025, sections 4.2 and 4.3.

Leaks: to parties and dealer sizes and numbers of clusters, not which are chosen (docs/security.md, "Policies").
"""

from __future__ import annotations

from collections.abc import Coroutine
from dataclasses import dataclass, replace
from typing import Any

from models.policies.clusters import (
    Clusters,
    Growing,
    completed,
    describe,
    extended,
    grown,
    merged,
    similarities,
    similarity_limit,
)
from models.policies.selecting import Layout, full_clusters, widened
from protocols.suite import Suite, Value


@dataclass(frozen=True)
class Sizes:
    """Public: tokens of a cluster on the two levels."""

    fine: int
    coarse: int

    @property
    def factor(self) -> int:
        """Return the fine clusters in a coarse one."""
        return self.coarse // self.fine


@dataclass(frozen=True)
class Levels:
    """A layer's clusters. fine, coarse: those described so far; growing: the one that further tokens still join."""

    sizes: Sizes
    fine: Clusters | None = None
    coarse: Clusters | None = None
    growing: Growing | None = None


@dataclass(frozen=True)
class Describing:
    """How clusters are described; public. sinks: tokens in front of the first one. alpha: of the linearised similarity, None
    for the upper bound. two_levels: whether there are coarse ones. keeps_up: whether every token updates the extremes of
    its cluster, where the suite does so in rounds that there are anyway."""

    sinks: int
    alpha: float | None
    two_levels: bool
    keeps_up: bool

    async def described(self, suite: Suite, old: Levels, keys: Value, background: bool = False) -> Levels:
        """Return `old` with what is not described yet of the cached keys [G, S, C]: clusters that are full, and the begun
        one where extremes are kept up. background: see `Suite.max`."""
        known = old.fine.count if old.fine is not None else 0
        rest = False
        if old.growing is not None:
            start = self.sinks + known * old.sizes.fine
            behind, stop = start + old.growing.tokens, start + old.sizes.fine
            growing = await grown(suite, old.growing, keys[:, behind:stop], background)
            if growing.tokens < old.sizes.fine:
                return replace(old, growing=growing)
            new: Clusters | None = await completed(suite, growing, self.alpha)
            begun: Growing | None = None
            rest = keys.shape[1] > stop
        else:
            new, begun = await self._from_keys(suite, old.sizes.fine, known, keys, background)
        found = replace(old, growing=begun)
        if new is None:
            return found
        found = replace(found, fine=await extended(suite, old.fine, new))
        found = await self._with_coarse(suite, found, background) if self.two_levels else found
        return await self.described(suite, found, keys, background) if rest else found

    async def _from_keys(
        self, suite: Suite, size: int, known: int, keys: Value, background: bool
    ) -> tuple[Clusters | None, Growing | None]:
        """Return the descriptions of the full clusters behind the `known` ones, and of the begun one."""
        length = keys.shape[1]
        ready = full_clusters(length, size, self.sinks, 0)
        start, stop = (self.sinks + n * size for n in (known, ready))
        work: list[Coroutine[Any, Any, Clusters | Growing]] = []
        if ready > known:
            work.append(describe(suite, keys[:, start:stop], size, self.alpha, background))
        if length > stop and self.keeps_up and suite.overlaps_rounds:
            work.append(grown(suite, None, keys[:, stop:], background))
        done = await suite.together(*work)
        full = next((x for x in done if isinstance(x, Clusters)), None)
        return full, next((x for x in done if isinstance(x, Growing)), None)

    async def _with_coarse(self, suite: Suite, levels: Levels, background: bool) -> Levels:
        """Describe coarse clusters whose fine ones are all described."""
        fine, factor = levels.fine, levels.sizes.factor
        assert fine is not None
        done = (levels.coarse.count if levels.coarse is not None else 0) * factor
        full = fine.count // factor * factor
        if full <= done:
            return levels
        part = Clusters(fine.high[:, done:full], fine.low[:, done:full], ())
        new = await merged(suite, part, factor, self.alpha, background)
        return replace(levels, coarse=await extended(suite, levels.coarse, new))


@dataclass(frozen=True)
class Choosing:
    """How clusters are chosen; public. coarse_share: of the coarse clusters that the fine level chooses from. linear:
    whether the similarity is the linearised one. marks: whether marks [G, candidates] are wanted, not one-hot rows.
    per_head: whether each query head chooses for itself: marks, on one level."""

    coarse_share: float
    linear: bool
    marks: bool
    per_head: bool = False

    async def chosen(self, suite: Suite, q: Value, levels: Levels, plan: Layout) -> Value:
        """Return what queries q [G, R, C] choose: one-hot rows [G, count, candidates], or marks, [G, R, candidates] where
        each of several heads chooses."""
        fine, coarse, factor = levels.fine, levels.coarse, levels.sizes.factor
        assert fine is not None
        limit = similarity_limit(suite, 1 if self.per_head else q.shape[1]) * (1 if self.linear else 2)
        above = min(coarse.count, plan.candidates // factor) if coarse is not None else 0
        count = max(round(self.coarse_share * above), -(-plan.count // factor))
        if coarse is None or count >= above:
            near = await similarities(suite, q, fine, 0, plan.candidates, self.per_head)
            choose = suite.keep_largest if self.marks else suite.top_k
            return await choose(near, plan.count, limit)
        near, wide = await suite.together(
            similarities(suite, q, fine, 0, plan.candidates), similarities(suite, q, coarse, 0, above)
        )
        groups = q.shape[0]
        first = await suite.top_k(wide, count, limit)  # [G, count, above]
        inside = suite.with_bound(near[:, : above * factor].reshape(groups, above, factor), limit)
        offered = (await suite.choose(first, inside)).reshape(groups, count * factor)
        table = widened(suite, first, factor, plan.candidates - above * factor)
        if plan.candidates > above * factor:
            offered = suite.concat([offered, near[:, above * factor :]], -1)
        second = await suite.top_k(suite.with_bound(offered, limit), plan.count, limit)
        return await suite.choose(second, table)
