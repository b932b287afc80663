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
* without settings a token attends to all that stayed, which on shares costs less than choosing among so few;
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
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from models.architecture import Architecture
from models.cache import CachePolicy, KVCache, LayerCache, Place, SettingValue, Sharing, Stage
from models.observation import Observation, Seen
from models.policies.eviction import EvictingPolicy, Eviction, Kept, Scores
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
from models.policies.settings import budget_tokens, no_windows, ratio, text_of, whole, yes_or_no
from models.policies.threshold import keep_important
from mpc.errors import ConfigurationError
from protocols.suite import Suite, Value
from protocols.value import there

MOST_SHARING = 4
GATHERINGS = ("products", "rows", "scores")


@dataclass
class MPCacheState(ChoosingState):
    """members: layers that keep the same tokens, this one among them. votes [G, S], secret: at the first, the attention mass
    of those so far, until the last one is through. levels: clusters, once the prompt is processed."""

    members: tuple[int, ...] = ()
    votes: Value | None = None
    levels: Levels | None = None

    @property
    def described(self) -> Levels:
        """Return the clusters, once the prompt is processed."""
        if self.levels is None:
            raise RuntimeError("clusters were asked for before the prompt was processed")
        return self.levels


@dataclass(frozen=True)
class MPCache(EvictingPolicy):
    """static: share of the prompt that stays (1 switches eviction off). observed: the prompt's last queries
    that decide, averaged over all heads; below 1 a share of its queries. following: tokens that what the one before
    them receives counts for, too. dynamic: share of all tokens so far that a token attends to (1: all that
    stayed). fine, coarse: tokens of a cluster on the two levels; 0: fine by the tokens that stay, coarse twice fine (see
    `sizes`). levels: 2, or 1 for fine clusters alone; 0: 2 where coarse is given. coarse_share: of the coarse clusters that
    the fine level chooses from. alpha, linear: similarity q . (alpha r_max + (1 - alpha) r_min), or
    its upper bound with linear false. sinks, window: first and last tokens that always count. sharing: adjacent layers
    with one choice, of clusters and of what static eviction keeps (1: none), so that a cluster's number means the same
    tokens in all; apart: first layers that choose alone. gathering: how attention reaches what was chosen: "products" of
    three factors, "rows" (gathered keys and values), "scores" (all, lowered by a secret bias where nothing was chosen; one
    level), or "auto": scores where the suite masks cached keys once and there is one level, else products: `mpcache plan`.

    scoring: "attention" (what tokens receive, and a budget), or "authors": what the authors' code does, with `threshold` in
    place of `static` and `following`; in plaintext alone (`models.policies.threshold`).

    Presets (`mpcache:preset=paper`): "few-queries" chooses a tenth of all tokens so far, "clusters" has clusters by length
    and the last fifth of the prompt decide, "paper" has the settings of the paper and its code.
    """

    static: float = 0.4
    observed: float = 32.0
    following: int = 8
    dynamic: float = 1.0
    fine: int = 7
    coarse: int = 0
    levels: int = 0
    coarse_share: float = 0.5
    alpha: float = 0.6
    linear: bool = True
    sinks: int = 4
    window: int = 12
    sharing: int = 2
    apart: int = 2
    gathering: str = "auto"
    scoring: str = "attention"
    threshold: float = 1e-4
    name: ClassVar[str] = "mpcache"
    presets: ClassVar[Mapping[str, Mapping[str, SettingValue]]] = {
        "few-queries": {"dynamic": 0.1},
        "clusters": {"observed": 0.2, "following": 0, "dynamic": 0.1, "fine": 0, "gathering": "products"},
        "paper": {
            "static": 0.4,
            "observed": 0.2,
            "following": 0,
            "dynamic": 0.1,
            "fine": 16,
            "coarse": 32,
            "sinks": 16,
            "window": 16,
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
        return text_of(self)

    @property
    def plaintext_only(self) -> str:
        """Return the authors' scoring: what it keeps is no public number."""
        return "" if self.scoring == "attention" else f"scoring={self.scoring}"

    @property
    def equal_layers(self) -> bool:
        return self.scoring == "attention"

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

    def pattern(self) -> tuple[int, int]:
        return self.apart, self.sharing

    def check(self, architecture: Architecture, prompt_tokens: int) -> None:
        """Refuse budgets that do not hold sinks and window. A prompt too short for a choice is attended to as a whole."""
        no_windows(self.name, architecture, prompt_tokens)
        if self.sharing > 1 and architecture.layers < self.apart + self.sharing:
            raise ConfigurationError(
                f"policy {self.name}: sharing = {self.sharing} behind the first apart = {self.apart} layers needs "
                f"{self.apart + self.sharing} layers, the model has {architecture.layers}; lower them, or set sharing=1"
            )
        always = self.sinks + self.window
        stays = self.stays(prompt_tokens, 0)
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

    @property
    def append_only(self) -> bool:
        return True

    def verifies(self, rows: int) -> bool:
        """Whether no row chooses from clusters with tokens of its own step, which are not described yet."""
        return self.dynamic == 1 or self.window >= rows

    @property
    def one_set_for_all_heads(self) -> bool:
        return True

    def alternatives(self, prompt_tokens: int, suite: Suite) -> list[tuple[str, CachePolicy]]:
        """As in `CachePolicy`: attention to all that stays, then cluster sizes and gatherings; "auto" stays where it is what
        a gathering's name says."""
        out: list[tuple[str, CachePolicy]] = [("all that stays", replace(self, dynamic=1.0, coarse=0, levels=0))]
        if self.dynamic == 1:
            return out
        sizes = self.sizes(self.stays(prompt_tokens, 0))
        fine, wide = sizes.fine, sizes.coarse if self.two_levels else 2 * sizes.fine
        one = replace(self, levels=0, coarse=0)
        shapes = [
            (f"{fine}", one if not self.fine else replace(one, fine=fine)),
            (f"{wide}", replace(one, fine=wide)),
            (f"{wide}/{fine}", replace(self, levels=0, fine=fine, coarse=wide, gathering="auto")),
        ]
        for what, shape in shapes:
            for gathering in GATHERINGS:
                if gathering == "scores" and shape.coarse:
                    continue
                left_open = replace(shape, gathering="auto")
                own = self.gathering == "auto" and left_open.gathers(suite) == gathering
                out.append((f"{what} {gathering}", left_open if own else replace(shape, gathering=gathering)))
        return out

    def new_state(self, place: Place) -> MPCacheState:
        own = Sharing(self.sharing, self.apart)
        members = tuple(n for n in own.group(place.layer) if n in place.served)
        return MPCacheState(chooser_of(place, own), members=members)

    # ---- after the prompt ------------------------------------------------------------------------------------------
    def observation(self, tokens: int, layer: int) -> Observation:
        if self.static == 1:
            return Observation()
        return Observation(min(tokens, int(self.observed)) if self.observed >= 1 else budget_tokens(self.observed, tokens))

    def stays(self, tokens: int, layer: int) -> int:
        return budget_tokens(self.static, tokens)

    def least_batch(self) -> tuple[str, int]:
        if self.observed > (always := self.sinks + self.window):
            return f"observed = {int(self.observed)} queries", int(self.observed)
        return f"sinks = {self.sinks}, window = {self.window} and one more token", always + 1

    def eviction_stages(self, suite: Suite, cache: KVCache, layer: int, seen: Seen, kept: int) -> list[Stage]:
        """Return the eviction's steps; they wait for the last layer of a group that shares."""
        members = cache.layers[layer].state_of(MPCacheState).members
        entries = [cache.layers[n] for n in members]
        tokens = entries[0].length
        if self.scoring == "authors" and self.static < 1:
            keep_important(entries[0], self.observation(tokens, layer).queries, self.threshold)
            return []
        if seen.mass is None or kept >= tokens:
            return []
        most = seen.most
        total = self._votes(suite, entries[0], seen.mass, most * (members.index(layer) + 1))
        if layer != members[-1]:
            return []
        entries[0].state_of(MPCacheState).votes = None
        chosen = Kept(self.sinks, tokens - self.window, kept - self.sinks - self.window)
        bound = most * len(members) * seen.mass.shape[0] + 1
        scores = Scores(total.sum(0, keepdim=True)[:, chosen.start : chosen.stop], bound, self.following)
        return Eviction(suite, entries, lambda: scores, chosen).stages()

    def final_stages(self, suite: Suite, cache: KVCache, layer: int) -> list[Stage]:
        """Return the clusters' description, which waits for the last layer of a group that shares."""
        members = cache.layers[layer].state_of(MPCacheState).members
        entries = [cache.layers[n] for n in members]
        if layer != members[-1]:
            return []

        async def clusters() -> None:
            states = [entry.state_of(MPCacheState) for entry in entries]
            sizes = self.sizes(entries[0].length)
            for state in states:
                state.levels = Levels(sizes)
            choosing = [n for n, state in zip(members, states, strict=True) if state.chooser == n]
            chosen = [cache.layers[n] for n in choosing]
            await suite.together(*(self._describe(suite, one, one.keys_and_values()[0]) for one in chosen))

        return [("clusters", clusters)]

    def _votes(self, suite: Suite, first: LayerCache, attention_mass: Value, most: int) -> Value:
        """Add a layer's attention mass to that of the layers before it in its group; at most `most` a token, of all."""
        state = first.state_of(MPCacheState)
        state.votes = attention_mass if state.votes is None else suite.with_bound(state.votes + attention_mass, most + 1)
        return state.votes

    async def after_append(self, suite: Suite, cache: KVCache, layer: int) -> None:
        """Let the token join the description of its cluster, beside the rest of its work if there is a window."""
        entry = cache.layers[layer]
        if entry.state_of(MPCacheState).chooser != layer:
            return
        work = self._describe(suite, entry, entry.keys_and_values()[0], self.window > 0)
        if self.window == 0:  # this token chooses among it already
            await work
        else:
            await cache.run_in_background(work)

    async def after_kept(self, suite: Suite, cache: KVCache, layer: int, rows: int) -> None:
        """Let the tokens that stay join the descriptions, beside the next step's work if none of its rows chooses among
        them."""
        entry = cache.layers[layer]
        if entry.state_of(MPCacheState).chooser != layer:
            return
        beside = self.window >= 2 * cache.drafted
        work = self._describe(suite, entry, entry.keys_and_values()[0], beside)
        await (cache.run_in_background(work) if beside else work)

    async def _describe(self, suite: Suite, entry: LayerCache, keys: Value, background: bool = False) -> None:
        """Describe what of the keys [G, S, C] is not described yet."""
        if self.dynamic == 1:
            return
        state = entry.state_of(MPCacheState)
        how = Describing(self.sinks, self.alpha if self.linear else None, self.two_levels, keeps_up=self.window > 0)
        state.levels = await how.described(suite, state.described, keys, background)

    # ---- each token ------------------------------------------------------------------------------------------------
    def layout(self, seen: int, cached: int, sizes: Sizes) -> Layout:
        """Return what a token attends to when `seen` tokens were processed before it and `cached` are cached with it;
        public."""
        return layout(cached, sizes.fine, self.sinks, self.window, budget_tokens(self.dynamic, seen + 1))

    async def attend(self, suite: Suite, cache: KVCache, layer: int, q: Value) -> Value:
        """Choose clusters, or take the choice of the layer before; attend to them and to what always counts."""
        entry = cache.layers[layer]
        state = entry.state_of(MPCacheState)
        plan = self.layout(cache.seen, entry.length, state.described.sizes)
        if self.dynamic == 1 or plan.everything:
            return await super().attend(suite, cache, layer, q)
        gathering = self.gathers(suite)

        async def choose() -> Value:
            chosen = await self._choose(suite, entry, q, plan)
            return chosen if gathering == "scores" else await suite.mask_for_reuse(chosen)

        chosen = made_or_taken(cache, layer, plan, choose)
        if gathering == "scores":
            return await attend_by_bias(suite, entry, q, plan, await there(chosen))
        return await attend_to(suite, entry, q, plan, chosen, gathering == "rows")

    async def attend_drafted(self, suite: Suite, cache: KVCache, layer: int, q: Value) -> Value:
        """Choose with each token by itself; all choices share their rounds."""
        if self.dynamic == 1:
            return await super().attend_drafted(suite, cache, layer, q)
        return await attend_each(self, suite, cache, layer, q)

    def gathers(self, suite: Suite) -> str:
        """Return how attention reaches what was chosen, with "auto" decided. Bias and products give the same result."""
        if self.gathering != "auto":
            return self.gathering
        return "scores" if suite.overlaps_rounds and not self.two_levels else "products"

    async def _choose(self, suite: Suite, entry: LayerCache, q: Value, plan: Layout) -> Value:
        """Return one-hot rows [G, count, candidates]; with gathering "scores" marks [G, candidates]."""
        how = Choosing(self.coarse_share, self.linear, marks=self.gathers(suite) == "scores")
        return await how.chosen(suite, q, entry.state_of(MPCacheState).described, plan)
