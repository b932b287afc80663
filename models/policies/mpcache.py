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

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from models.architecture import Architecture
from models.cache import CachePolicy, KVCache, SettingValue, Sharing, Stage
from models.observation import Seen
from models.policies.axes.budget import Share
from models.policies.axes.cluster_reader import GATHERINGS, ClusterSettings
from models.policies.axes.keep import Keep
from models.policies.axes.scorers import WindowVotes
from models.policies.composition import Axes, System
from models.policies.settings import no_windows, ratio, whole
from models.policies.threshold import keep_important
from mpc.errors import ConfigurationError
from protocols.suite import Suite

MOST_SHARING = 4


@dataclass(frozen=True)
class MPCache(ClusterSettings, System):
    """Settings as of `ClusterSettings`, and: static: share of the prompt that stays (1 switches eviction off). observed: the
    prompt's last queries that decide, averaged over all heads; below 1 a share of its queries. following: tokens that what
    the one before them receives counts for, too. sharing: adjacent layers with one choice, of clusters and of what static
    eviction keeps (1: none), so that a cluster's number means the same tokens in all; apart: first layers that choose alone.

    scoring: "attention" (what tokens receive, and a budget), or "authors": what the authors' code does, with `threshold` in
    place of `static` and `following`; in plaintext alone (`models.policies.threshold`).

    Presets (`mpcache:preset=paper`): "few-queries" chooses a tenth of all tokens so far, "each-head" as many, each head and
    layer by itself, "clusters" has clusters by length and the last fifth of the prompt decide, "paper" has the settings of
    the paper and its code.
    """

    static: float = 0.4
    observed: float = 32.0
    following: int = 8
    sharing: int = 2
    apart: int = 2
    scoring: str = "attention"
    threshold: float = 1e-4
    name: ClassVar[str] = "mpcache"
    presets: ClassVar[Mapping[str, Mapping[str, SettingValue]]] = {
        "few-queries": {"dynamic": 0.1},
        "each-head": {"dynamic": 0.1, "sharing": 1, "per_head": True},
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
        ratio(self.name, "static", self.static)
        if isinstance(self.observed, bool) or not (0 < self.observed < 1 or (self.observed >= 1 and self.observed % 1 == 0)):
            raise ConfigurationError(
                f"policy {self.name}: observed = {self.observed!r} must be a number of queries, or a share of them below 1"
            )
        for setting, least in (("following", 0), ("sharing", 1), ("apart", 0)):
            whole(self.name, setting, getattr(self, setting), least)
        if self.sharing > MOST_SHARING:
            raise ConfigurationError(
                f"policy {self.name}: sharing = {self.sharing} must be at most {MOST_SHARING}: what tokens receive in all "
                "layers of a group is added up in a ring that holds no more"
            )
        if self.scoring not in ("attention", "authors"):
            raise ConfigurationError(f"policy {self.name}: scoring = {self.scoring!r} must be attention or authors")
        ratio(self.name, "threshold", self.threshold)
        if self.scoring == "authors" and self.sharing > 1:
            raise ConfigurationError(
                f"policy {self.name}: scoring = 'authors' keeps other numbers of tokens in every layer and needs sharing=1"
            )
        self.reader.validate(self.name)

    @property
    def axes(self) -> Axes:
        """A static eviction of groups of layers by votes, behind which tokens read clusters."""
        keep = Keep(self.sinks, self.window, sets="layer", sharing=Sharing(self.sharing, self.apart))
        return Axes(WindowVotes(self.observed, following=self.following), Share(self.static), keep, reader=self.reader)

    @property
    def plaintext_only(self) -> str:
        """Return the authors' scoring: what it keeps is no public number."""
        return "" if self.scoring == "attention" else f"scoring={self.scoring}"

    @property
    def equal_layers(self) -> bool:
        return self.scoring == "attention"

    def check(self, architecture: Architecture, prompt_tokens: int) -> None:
        """Refuse budgets that do not hold sinks and window, and clusters that no two layers would share. A prompt too short
        for a choice is attended to as a whole."""
        no_windows(self.name, architecture, prompt_tokens)
        if self.dynamic < 1 and self.sharing > 1 and architecture.layers < self.apart + self.sharing:
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
        self.reader.check(self.name, prompt_tokens, stays)

    def alternatives(self, prompt_tokens: int, suite: Suite) -> list[tuple[str, CachePolicy]]:
        """As in `CachePolicy`: attention to all that stays, then cluster sizes and gatherings; "auto" stays where it is what
        a gathering's name says."""
        out: list[tuple[str, CachePolicy]] = [("all that stays", replace(self, dynamic=1.0, coarse=0, levels=0))]
        if self.dynamic == 1:
            return out
        sizes = self.reader.sizes(self.stays(prompt_tokens, 0))
        fine, wide = sizes.fine, sizes.coarse if self.reader.two_levels else 2 * sizes.fine
        one = replace(self, levels=0, coarse=0)
        shapes = [
            (f"{fine}", one if not self.fine else replace(one, fine=fine)),
            (f"{wide}", replace(one, fine=wide)),
            (f"{wide}/{fine}", replace(self, levels=0, fine=fine, coarse=wide, gathering="auto", per_head=False)),
        ]
        for what, shape in shapes:
            for gathering in GATHERINGS:
                if shape.coarse if gathering == "scores" else self.per_head:  # does not go together
                    continue
                left_open = replace(shape, gathering="auto")
                own = self.gathering == "auto" and left_open.reader.gathers(suite) == gathering
                out.append((f"{what} {gathering}", left_open if own else replace(shape, gathering=gathering)))
        return out

    def least_batch(self) -> tuple[str, int]:
        if self.observed > (always := self.sinks + self.window):
            return f"observed = {int(self.observed)} queries", int(self.observed)
        return f"sinks = {self.sinks}, window = {self.window} and one more token", always + 1

    def eviction_stages(self, suite: Suite, cache: KVCache, layer: int, seen: Seen, kept: int) -> list[Stage]:
        """As in `System`; what the authors' code keeps is no choice of so many tokens."""
        if self.scoring == "authors" and self.static < 1:
            entry = cache.layers[layer]
            keep_important(entry, self.observation(entry.length, layer).queries, self.threshold)
            return []
        return super().eviction_stages(suite, cache, layer, seen, kept)
