"""A token reads clusters of neighbouring tokens, chosen in secret by a linearised similarity or an upper bound, and ends.

Source: Zeng et al., "MPCache: MPC-Friendly KV Cache Eviction for Efficient Private LLM Inference", NeurIPS 2025, sections
4.2 to 4.4.

Leaks: to parties and dealer how many clusters there are and are chosen, not which (docs/security.md, "Policies").
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import ClassVar

from models.cache import CachePolicy, KVCache, LayerCache, LayerState, Place, Sharing, Stage
from models.policies.axes.reader import Reader
from models.policies.levels import Choosing, Describing, Levels, Sizes
from models.policies.selecting import (
    ChoosingState,
    Layout,
    attend_by_bias,
    attend_each,
    attend_to,
    chooser_of,
    layout,
    made_or_taken,
)
from models.policies.settings import budget_tokens, ratio, whole, yes_or_no
from mpc.errors import ConfigurationError
from protocols.suite import Suite, Value
from protocols.value import there

GATHERINGS = ("products", "rows", "scores")


@dataclass
class ClusterState(ChoosingState):
    """levels: clusters, once the prompt is processed."""

    levels: Levels | None = None

    @property
    def described(self) -> Levels:
        """Return the clusters, once the prompt is processed."""
        if self.levels is None:
            raise RuntimeError("clusters were asked for before the prompt was processed")
        return self.levels


@dataclass(frozen=True)
class ClusterSettings:
    """Settings of every policy whose tokens read clusters, by these names and defaults.

    dynamic: share of all tokens so far that a token attends to (1: all that stayed). fine, coarse: tokens of a cluster on
    the two levels; 0: fine by the tokens that stay, coarse twice fine (see `ClusterReader.sizes`). levels: 2, or 1 for fine
    clusters alone; 0: 2 where coarse is given. coarse_share: of the coarse clusters that the fine level chooses from.
    alpha, linear: similarity q . (alpha r_max + (1 - alpha) r_min), or its upper bound with linear false. sinks, window:
    first and last tokens that always count. gathering: how attention reaches what was chosen: "products" of three factors,
    "rows" (gathered keys and values), "scores" (all, lowered by a secret bias where nothing was chosen; one level), or
    "auto": scores where the suite masks cached keys once and there is one level, or each head chooses, else products:
    `mpcache plan`. per_head: whether each query head chooses for itself (by scores, on one level), and not those that share
    keys together, by the sum of their similarities, in which heads with small queries go under.
    """

    dynamic: float = 1.0
    fine: int = 7
    coarse: int = 0
    levels: int = 0
    coarse_share: float = 0.5
    alpha: float = 0.6
    linear: bool = True
    sinks: int = 4
    window: int = 12
    gathering: str = "auto"
    per_head: bool = False

    @property
    def reader(self) -> ClusterReader:
        """Return how tokens read what stays."""
        return ClusterReader(*(getattr(self, field.name) for field in fields(ClusterSettings)))


@dataclass(frozen=True)
class ClusterReader(ClusterSettings, Reader):
    """Reads the clusters that each token chooses, and the tokens that always count."""

    reads_all: ClassVar[bool] = False

    def validate(self, policy: str) -> None:
        """Raise `ConfigurationError`, naming the policy, for settings that are wrong or do not go together."""
        for setting in ("dynamic", "coarse_share"):
            ratio(policy, setting, getattr(self, setting))
        for setting in ("fine", "coarse", "sinks", "window"):
            whole(policy, setting, getattr(self, setting), 0)
        if isinstance(self.levels, bool) or self.levels not in (0, 1, 2):
            raise ConfigurationError(
                f"policy {policy}: levels = {self.levels!r} must be 1 or 2, or 0 for two where coarse is given"
            )
        if not 0 <= self.alpha <= 1:
            raise ConfigurationError(f"policy {policy}: alpha = {self.alpha!r} must be between 0 and 1")
        yes_or_no(policy, "linear", self.linear)
        if self.gathering not in ("auto", *GATHERINGS):
            raise ConfigurationError(
                f"policy {policy}: gathering = {self.gathering!r} must be one of auto, {', '.join(GATHERINGS)}"
            )
        if self.gathering == "scores" and self.two_levels:
            raise ConfigurationError(f"policy {policy}: gathering = 'scores' needs levels=1")
        yes_or_no(policy, "per_head", self.per_head)
        if self.per_head and (self.two_levels or self.gathering not in ("auto", "scores")):
            raise ConfigurationError(
                f"policy {policy}: per_head = true needs levels=1 and gathering=scores, got levels = "
                f"{2 if self.two_levels else 1}, gathering = {self.gathering!r}"
            )
        if self.coarse and not self.fine:
            raise ConfigurationError(f"policy {policy}: coarse = {self.coarse} needs fine, which must divide it")
        if self.two_levels and self.coarse and (self.coarse % self.fine or self.coarse <= self.fine):
            raise ConfigurationError(
                f"policy {policy}: clusters do not nest: coarse = {self.coarse} must be a multiple of fine = {self.fine} "
                "and larger"
            )

    def check(self, policy: str, prompt_tokens: int, stays: int) -> None:
        """Refuse to attend to fewer tokens than always count, of a prompt of which so many stay."""
        always, attended = self.sinks + self.window, budget_tokens(self.dynamic, prompt_tokens)
        if attended < always < stays and prompt_tokens >= self.sizes(stays).fine:
            raise ConfigurationError(
                f"policy {policy}: dynamic = {self.dynamic} attends to {attended} of {prompt_tokens} tokens, fewer than "
                f"sinks = {self.sinks} and window = {self.window}; raise dynamic or lower them"
            )

    @property
    def two_levels(self) -> bool:
        """Whether coarse clusters are chosen first."""
        return self.levels == 2 or (self.levels == 0 and self.coarse > 0)

    def sizes(self, kept: int) -> Sizes:
        """Return public sizes of clusters for a cache of `kept` tokens after the prompt.

        Where it is not given, fine is the multiple of 8 from sqrt(0.6 kept) on: the clusters are at most 1.7 times as many
        as a cluster has tokens, which balances the bytes of their ranking and of attending to the chosen ones.
        """
        fine = self.fine or 8 * max(1, math.ceil(math.sqrt(0.6 * kept) / 8))
        return Sizes(fine, self.coarse or 2 * fine)

    def new_state(self, place: Place, sharing: Sharing) -> LayerState:
        return ClusterState(chooser_of(place, sharing))

    def verifies(self, rows: int) -> bool:
        """Whether no row chooses from clusters with tokens of its own step, which are not described yet."""
        return self.dynamic == 1 or self.window >= rows

    # ---- descriptions ------------------------------------------------------------------------------------------------
    def after_prompt(self, suite: Suite, cache: KVCache, layers: tuple[int, ...]) -> list[Stage]:
        """Return the clusters' description."""

        async def clusters() -> None:
            entries = [cache.layers[n] for n in layers]
            sizes = self.sizes(entries[0].length)
            for entry in entries:
                entry.state_of(ClusterState).levels = Levels(sizes)
            chosen = [cache.layers[n] for n in layers if cache.layers[n].state_of(ClusterState).chooser == n]
            await suite.together(*(self._describe(suite, one) for one in chosen))

        return [("clusters", clusters)]

    async def after_append(self, suite: Suite, cache: KVCache, layer: int) -> None:
        """Let the token join the description of its cluster, beside the rest of its work if there is a window."""
        entry = cache.layers[layer]
        if entry.state_of(ClusterState).chooser != layer:
            return
        work = self._describe(suite, entry, self.window > 0)
        if self.window == 0:  # this token chooses among it already
            await work
        else:
            await cache.run_in_background(work)

    async def after_kept(self, suite: Suite, cache: KVCache, layer: int, rows: int) -> None:
        """Let the tokens that stay join the descriptions, beside the next step's work if none of its rows chooses among
        them."""
        entry = cache.layers[layer]
        if entry.state_of(ClusterState).chooser != layer:
            return
        beside = self.window >= 2 * cache.drafted
        work = self._describe(suite, entry, beside)
        await (cache.run_in_background(work) if beside else work)

    async def _describe(self, suite: Suite, entry: LayerCache, background: bool = False) -> None:
        """Describe what of a layer's keys [G, S, C] is not described yet."""
        if self.dynamic == 1:
            return
        state, (keys, _) = entry.state_of(ClusterState), entry.keys_and_values()
        how = Describing(self.sinks, self.alpha if self.linear else None, self.two_levels, keeps_up=self.window > 0)
        state.levels = await how.described(suite, state.described, keys, background)

    # ---- each token ------------------------------------------------------------------------------------------------
    def layout(self, seen: int, cached: int, sizes: Sizes) -> Layout:
        """Return what a token attends to when `seen` tokens were processed before it and `cached` are cached with it;
        public."""
        return layout(cached, sizes.fine, self.sinks, self.window, budget_tokens(self.dynamic, seen + 1))

    async def attend(self, suite: Suite, cache: KVCache, layer: int, q: Value) -> Value | None:
        """Choose clusters, or take the choice of the layer before; attend to them and to what always counts."""
        entry = cache.layers[layer]
        plan = self.layout(cache.seen, entry.length, entry.state_of(ClusterState).described.sizes)
        if self.dynamic == 1 or plan.everything:
            return None
        gathering = self.gathers(suite)

        async def choose() -> Value:
            chosen = await self.chosen(suite, entry, q, plan)
            return chosen if gathering == "scores" else await suite.mask_for_reuse(chosen)

        chosen = made_or_taken(cache, layer, plan, choose)
        if gathering == "scores":
            return await attend_by_bias(suite, entry, q, plan, await there(chosen))
        return await attend_to(suite, entry, q, plan, chosen, gathering == "rows")

    async def attend_drafted(self, policy: CachePolicy, suite: Suite, cache: KVCache, layer: int, q: Value) -> Value | None:
        """Choose with each token by itself; all choices share their rounds."""
        return None if self.dynamic == 1 else await attend_each(policy, suite, cache, layer, q)

    def gathers(self, suite: Suite) -> str:
        """Return how attention reaches what was chosen, with "auto" decided. Bias and products give the same result."""
        if self.gathering != "auto":
            return self.gathering
        return "scores" if self.per_head or (suite.overlaps_rounds and not self.two_levels) else "products"

    async def chosen(self, suite: Suite, entry: LayerCache, q: Value, plan: Layout) -> Value:
        """Return one-hot rows [G, count, candidates]; with gathering "scores" marks [G, candidates], or [G, R, candidates]
        where each of R query heads chooses."""
        how = Choosing(self.coarse_share, self.linear, self.gathers(suite) == "scores", self.per_head)
        return await how.chosen(suite, q, entry.state_of(ClusterState).described, plan)
