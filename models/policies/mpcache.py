"""MPCache: look-once static eviction, then per token a hierarchical selection of clusters by a linearised similarity.

Source: Zeng et al., "MPCache: MPC-Friendly KV Cache Eviction for Efficient Private LLM Inference", NeurIPS 2025. What is
different here, since everything is decided on shares:

* the number of tokens that stay after static eviction is a public share of the prompt (the paper's code cuts at a
  threshold, so that the number depends on the secret);
* the first `sinks` and the last `window` tokens always stay and always count; clusters begin behind the sinks, and what is
  too little for one at the end counts with the window;
* with few `observed` queries and `following`, what a token receives from them counts for the tokens behind it too: votes of
  many queries about other things drown those of the few that ask, and what an answer copies is the continuation of what they
  look at, which nobody looks at before the answer begins. Additions on shares are local;
* layers that share a choice are the ones behind the first `apart`, in groups of `sharing`; they share what static eviction
  keeps as well, decided by the sum of what tokens receive in all of them once the last one knows it. Else a cluster's number
  would mean other tokens in the next layer;
* clusters grow with the square root of the kept tokens unless their size is given (`sizes`);
* one level of clusters by default: ranks take two rounds however many there are, so that a coarse level in front of the fine
  one costs more rounds and bytes than it saves (docs/policies.md); `fine=16,coarse=32` is the paper's hierarchy;
* a cluster is described when its last token is cached, which is `window` tokens before it is a candidate. Where work beside
  a token's rounds needs none of its own (suite `masked`), extremes are kept up token by token, so that every token costs the
  same; elsewhere one token computes them all. Layers that take the choice of another one describe nothing.

Which tokens stay and which clusters are chosen is secret; how many is public and follows from lengths and settings.

Leaks: to parties and dealer these numbers (docs/security.md, "Policies").
"""

from __future__ import annotations

import math
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, ClassVar

from models.architecture import Architecture
from models.cache import CachePolicy, KVCache, LayerCache, Stage, run_stages
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
from models.policies.eviction import Eviction
from models.policies.selecting import (
    Layout,
    attend_by_bias,
    attend_to,
    chooses,
    full_clusters,
    layout,
    remember,
    reuse,
    widened,
)
from models.policies.settings import budget_tokens, no_windows, ratio, text_of, whole, yes_or_no
from models.policies.threshold import keep_important
from mpc.errors import ConfigurationError
from protocols.suite import Suite, Value

MOST_SHARING = 4
GATHERINGS = ("products", "rows", "scores")


@dataclass(frozen=True)
class Sizes:
    """Public: tokens of a cluster on the two levels."""

    fine: int
    coarse: int


@dataclass(frozen=True)
class MPCache(CachePolicy):
    """static: share of the prompt's tokens that stays (1 switches eviction off). observed: the prompt's last queries
    that decide on it, averaged over all heads; below 1 a share of its queries. following: tokens that what the one before
    them receives counts for, too. dynamic: share of all tokens so far that a token attends to (1: all
    that stayed). fine, coarse: tokens of a cluster on the two levels; 0: fine by the number of tokens that stay, coarse
    twice fine (see `sizes`). levels: 2, or 1 for fine clusters alone; 0: 2 where coarse is given. coarse_share: of the
    coarse clusters that the fine level chooses from. alpha, linear: similarity q . (alpha r_max + (1 - alpha) r_min), or
    its upper bound with linear false. sinks, window: first and last tokens that always count. sharing: adjacent layers
    with one choice, of clusters and of what static eviction keeps (1: none), so that a cluster's number means the same
    tokens in all of them; apart: first layers that choose alone. gathering: how attention reaches what was chosen:
    "products" of three factors, "rows" (keys and values are gathered), "scores" (all scores, lowered by a secret bias
    where nothing was chosen; one level), or "auto": scores where the suite masks cached keys once and there is one level,
    else products. Same result, other costs: `mpcache plan`.

    scoring: "attention" (what tokens receive, and a budget), or "authors": what the authors' code does, with `threshold` in
    place of `static` and `following`; in plaintext alone (`models.policies.threshold`).

    The preset "paper" has the settings of the paper and its code (`mpcache:preset=paper`), "few-queries" those for questions
    about a long text that few tokens ask.
    """

    static: float = 0.4
    observed: float = 0.2
    following: int = 0
    dynamic: float = 0.1
    fine: int = 0
    coarse: int = 0
    levels: int = 0
    coarse_share: float = 0.5
    alpha: float = 0.6
    linear: bool = True
    sinks: int = 4
    window: int = 12
    sharing: int = 2
    apart: int = 2
    gathering: str = "products"
    scoring: str = "attention"
    threshold: float = 1e-4
    name: ClassVar[str] = "mpcache"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "few-queries": {"observed": 32.0, "following": 8, "fine": 7, "gathering": "auto"},
        "paper": {
            "static": 0.4,
            "observed": 0.2,
            "following": 0,
            "fine": 16,
            "coarse": 32,
            "sinks": 16,
            "window": 16,
            "sharing": 2,
            "gathering": "rows",
        },
    }

    def __post_init__(self) -> None:
        for setting in ("static", "dynamic", "coarse_share"):
            ratio(self.name, setting, getattr(self, setting))
        if isinstance(self.observed, bool) or not (0 < self.observed < 1 or (self.observed >= 1 and self.observed % 1 == 0)):
            raise ConfigurationError(
                f"policy {self.name}: observed = {self.observed!r} must be a number of queries, or a share of them below 1"
            )
        for setting, least in (
            ("following", 0),
            ("fine", 0),
            ("coarse", 0),
            ("sinks", 0),
            ("window", 0),
            ("sharing", 1),
            ("apart", 0),
        ):
            whole(self.name, setting, getattr(self, setting), least)
        if self.sharing > MOST_SHARING:
            raise ConfigurationError(
                f"policy {self.name}: sharing = {self.sharing} must be at most {MOST_SHARING}: what tokens receive in all "
                "layers of a group is added up in a ring that holds no more"
            )
        if isinstance(self.levels, bool) or self.levels not in (0, 1, 2):
            raise ConfigurationError(
                f"policy {self.name}: levels = {self.levels!r} must be 1 or 2, or 0 for two where coarse is given"
            )
        if not 0 <= self.alpha <= 1:
            raise ConfigurationError(f"policy {self.name}: alpha = {self.alpha!r} must be between 0 and 1")
        yes_or_no(self.name, "linear", self.linear)
        if self.scoring not in ("attention", "authors"):
            raise ConfigurationError(f"policy {self.name}: scoring = {self.scoring!r} must be attention or authors")
        ratio(self.name, "threshold", self.threshold)
        if self.scoring == "authors" and self.sharing > 1:
            raise ConfigurationError(
                f"policy {self.name}: scoring = 'authors' keeps other numbers of tokens in every layer and needs sharing=1"
            )
        if self.gathering not in ("auto", *GATHERINGS):
            raise ConfigurationError(
                f"policy {self.name}: gathering = {self.gathering!r} must be one of auto, {', '.join(GATHERINGS)}"
            )
        if self.gathering == "scores" and self.two_levels:
            raise ConfigurationError(f"policy {self.name}: gathering = 'scores' needs levels=1")
        if self.coarse and not self.fine:
            raise ConfigurationError(f"policy {self.name}: coarse = {self.coarse} needs fine, which must divide it")
        if self.two_levels and self.coarse and (self.coarse % self.fine or self.coarse <= self.fine):
            raise ConfigurationError(
                f"policy {self.name}: clusters do not nest: coarse = {self.coarse} must be a multiple of fine = {self.fine} "
                "and larger"
            )

    @property
    def spec(self) -> str:
        """Text form."""
        return text_of(self)

    @property
    def plaintext_only(self) -> str:
        """What the authors' scoring keeps is no public number."""
        return "" if self.scoring == "attention" else f"scoring={self.scoring}"

    @property
    def two_levels(self) -> bool:
        """Whether coarse clusters are chosen first."""
        return self.levels == 2 or (self.levels == 0 and self.coarse > 0)

    def sizes(self, kept: int) -> Sizes:
        """Public sizes of clusters for a cache of `kept` tokens after the prompt.

        Where it is not given, fine is the multiple of 8 from sqrt(0.6 kept) on: the clusters are at most 1.7 times as many
        as a cluster has tokens, which balances the bytes of their ranking and of attending to the chosen ones.
        """
        fine = self.fine or 8 * max(1, math.ceil(math.sqrt(0.6 * kept) / 8))
        return Sizes(fine, self.coarse or 2 * fine)

    def pattern(self) -> tuple[int, int]:
        """Behind the layers that choose alone, groups share a choice."""
        return self.apart, self.sharing

    def check(self, architecture: Architecture, prompt_tokens: int) -> None:
        """Budgets must hold sinks and window. A prompt too short for a choice is attended to as a whole."""
        no_windows(self.name, architecture, prompt_tokens)
        if self.sharing > 1 and architecture.layers < self.apart + self.sharing:
            raise ConfigurationError(
                f"policy {self.name}: sharing = {self.sharing} behind the first apart = {self.apart} layers needs "
                f"{self.apart + self.sharing} layers, the model has {architecture.layers}; lower them, or set sharing=1"
            )
        always = self.sinks + self.window
        stays = budget_tokens(self.static, prompt_tokens)
        if stays <= always and stays < prompt_tokens and self.static < 1:
            raise ConfigurationError(
                f"policy {self.name}: static = {self.static} keeps {stays} of {prompt_tokens} tokens, which does not hold "
                f"sinks = {self.sinks}, window = {self.window} and one more; raise static or lower them"
            )
        attended = budget_tokens(self.dynamic, prompt_tokens)
        if attended < always < stays and prompt_tokens >= self.sizes(stays).fine:
            raise ConfigurationError(
                f"policy {self.name}: dynamic = {self.dynamic} attends to {attended} of {prompt_tokens} tokens, fewer than "
                f"sinks = {self.sinks} and window = {self.window}; raise dynamic or lower them"
            )

    # ---- after the prompt ------------------------------------------------------------------------------------------
    def observed_queries(self, tokens: int, layer: int) -> int:
        """The last share of them; none without static eviction."""
        if self.static == 1:
            return 0
        return min(tokens, int(self.observed)) if self.observed >= 1 else budget_tokens(self.observed, tokens)

    async def after_prefill(self, suite: Suite, cache: KVCache, layer: int, received: Value | None) -> None:
        """Static eviction, once; then the clusters of what stayed are described."""
        await run_stages(self.prompt_stages(suite, cache, layer, received))

    def prompt_stages(self, suite: Suite, cache: KVCache, layer: int, received: Value | None) -> list[Stage]:
        """The eviction's steps, and the clusters' description; both wait for the last layer of a group that shares."""
        members = self._members(cache, layer)
        entries = [cache.layers[n] for n in members]
        tokens = entries[0].length
        stays = budget_tokens(self.static, tokens)
        stages: list[Stage] = []
        if self.scoring == "authors" and self.static < 1:
            queries = cache.state["queries"][layer]
            keep_important(entries[0], queries[:, :, tokens - self.observed_queries(tokens, layer) :], self.threshold)
        elif received is not None and stays < tokens:
            before: Value | None = cache.state.pop(self._votes(members), None)
            known = members.index(layer) + 1
            most = self.observed_queries(tokens, layer) * cache.group * known  # each layer's queries give 1 each
            total = received if before is None else suite.with_bound(before + received, most + 1)
            if layer != members[-1]:
                cache.state[self._votes(members)] = total
                return []
            start, stop = self.sinks, tokens - self.window
            bound = most * received.shape[0] + 1
            kept = stays - self.sinks - self.window
            importance = total.sum(0, keepdim=True)[:, start:stop]
            stages += Eviction(suite, entries, importance, kept, bound, start, stop, following=self.following).stages()
        elif layer != members[-1]:
            return []

        async def clusters() -> None:
            sizes = self.sizes(entries[0].length)
            for entry in entries:
                entry.state["sizes"] = sizes
            choosing = [entry for n, entry in zip(members, entries, strict=True) if self._chooses(cache, n)]
            await suite.together(*(self._describe(suite, entry) for entry in choosing))

        return [*stages, ("clusters", clusters)]

    def _members(self, cache: KVCache, layer: int) -> list[int]:
        """Layers of this policy that keep the same tokens as `layer`, itself among them."""
        first = self._leader(layer)
        group = range(first, min(first + (self.sharing if first >= self.apart else 1), len(cache.layers)))
        return [n for n in group if n == layer or cache.policy_of(n, self.spec) == self.spec]

    def _votes(self, members: list[int]) -> str:
        """Where the attention that tokens received in earlier layers of a group waits."""
        return f"votes of layer {members[0]} on, {self.spec}"

    async def after_append(self, suite: Suite, cache: KVCache, layer: int) -> None:
        """The token joins the description of its cluster, beside the rest of its work if there is a window."""
        if not self._chooses(cache, layer):
            return
        work = self._describe(suite, cache.layers[layer], self.window > 0)
        if self.window == 0:  # this token chooses among it already
            await work
        else:
            await cache.run_in_background(work)

    def _leader(self, layer: int) -> int:
        """The layer whose choices this one takes, itself where it chooses alone."""
        return layer if layer < self.apart else layer - (layer - self.apart) % self.sharing

    def _chooses(self, cache: KVCache, layer: int) -> bool:
        return chooses(cache, layer, self.spec, self.sharing, self.apart)

    @property
    def _alpha(self) -> float | None:
        return self.alpha if self.linear else None

    async def _describe(self, suite: Suite, entry: LayerCache, background: bool = False) -> None:
        """Describe what is not described yet: clusters that are full, and the begun one where extremes are kept up. The
        first begins behind the sinks."""
        if self.dynamic == 1:
            return
        sizes: Sizes = entry.state["sizes"]
        old: Clusters | None = entry.state.get("fine")
        growing: Growing | None = entry.state.pop("growing", None)
        known = old.count if old is not None else 0
        k, _ = entry.keys_and_values()
        if growing is not None:
            growing = await grown(suite, growing, k[:, self.sinks + known * sizes.fine + growing.tokens :], background)
            if growing.tokens < sizes.fine:
                entry.state["growing"] = growing
                return
            new = await completed(suite, growing, self._alpha)
        else:
            ready = full_clusters(entry.length, sizes.fine, self.sinks, 0)
            start, stop = (self.sinks + n * sizes.fine for n in (known, ready))
            work: dict[str, Coroutine[Any, Any, Any]] = {}
            if ready > known:
                work["new"] = describe(suite, k[:, start:stop], sizes.fine, self._alpha, background)
            if entry.length > stop and self._keeps_up(suite):
                work["growing"] = grown(suite, None, k[:, stop:], background)
            done = dict(zip(work, await suite.together(*work.values()), strict=True))
            if "growing" in done:
                entry.state["growing"] = done["growing"]
            if ready == known:
                return
            new = done["new"]
        entry.state["fine"] = await extended(suite, old, new)
        await self._describe_coarse(suite, entry, background)

    async def _describe_coarse(self, suite: Suite, entry: LayerCache, background: bool) -> None:
        """Describe clusters of `coarse` tokens whose fine ones are all described."""
        if not self.two_levels:
            return
        sizes: Sizes = entry.state["sizes"]
        factor = sizes.coarse // sizes.fine
        fine: Clusters = entry.state["fine"]
        above: Clusters | None = entry.state.get("coarse")
        done = (above.count if above is not None else 0) * factor
        full = fine.count // factor * factor
        if full > done:
            part = Clusters(fine.high[:, done:full], fine.low[:, done:full], ())
            entry.state["coarse"] = await extended(suite, above, await merged(suite, part, factor, self._alpha, background))

    def _keeps_up(self, suite: Suite) -> bool:
        """Whether every token updates the extremes of its cluster, in rounds that there are anyway."""
        return suite.overlaps_rounds and self.window > 0

    # ---- each token ------------------------------------------------------------------------------------------------
    def layout(self, seen: int, cached: int, sizes: Sizes) -> Layout:
        """What a token attends to when `seen` tokens were processed before it and `cached` are cached with it; public."""
        return layout(cached, sizes.fine, self.sinks, self.window, budget_tokens(self.dynamic, seen + 1))

    async def attend(self, suite: Suite, cache: KVCache, layer: int, q: Value) -> Value:
        """Choose clusters, or take the choice of the layer before; attend to them and to what always counts."""
        entry = cache.layers[layer]
        plan = self.layout(cache.seen, entry.length, entry.state["sizes"])
        if self.dynamic == 1 or plan.everything:
            return await attend_to(suite, entry, q, plan, None)
        gathering = self.gathers(suite)
        chosen = reuse(cache, layer, self.spec, self.sharing, self.apart, plan)
        if chosen is None:
            chosen = await self._choose(suite, entry, q, plan)
            if gathering != "scores":
                chosen = await suite.mask_for_reuse(chosen)
            remember(cache, layer, self.spec, plan, chosen)
        if gathering == "scores":
            return await attend_by_bias(suite, entry, q, plan, chosen)
        return await attend_to(suite, entry, q, plan, chosen, gathering == "rows")

    def gathers(self, suite: Suite) -> str:
        """How attention reaches what was chosen, with "auto" decided. Bias and products give the same result."""
        if self.gathering != "auto":
            return self.gathering
        return "scores" if suite.overlaps_rounds and not self.two_levels else "products"

    async def _choose(self, suite: Suite, entry: LayerCache, q: Value, plan: Layout) -> Value:
        """One-hot rows [G, count, candidates]; with gathering "scores" marks [G, candidates]."""
        fine: Clusters = entry.state["fine"]
        limit = similarity_limit(suite, q.shape[1]) * (1 if self.linear else 2)
        coarse: Clusters | None = entry.state.get("coarse")
        sizes: Sizes = entry.state["sizes"]
        factor = sizes.coarse // sizes.fine
        above = min(coarse.count, plan.candidates // factor) if coarse is not None else 0
        count = max(round(self.coarse_share * above), -(-plan.count // factor))
        if coarse is None or count >= above:
            near = await similarities(suite, q, fine, 0, plan.candidates)
            choose = suite.keep_largest if self.gathers(suite) == "scores" else suite.top_k
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
