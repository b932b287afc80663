"""Policies around policies: other settings per layer, one choice for several layers.

Leaks: to parties and dealer their text and what the policies inside leak (docs/security.md, "Policies").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from models.architecture import Architecture
from models.cache import Batch, CachePolicy, KVCache, LayerState, Place, Sharing, Stage
from models.observation import Observation, Seen
from models.policies.settings import whole
from mpc.errors import ConfigurationError
from protocols.suite import Suite, Value


class Around(CachePolicy):
    """A policy that asks the policy of a layer for everything."""

    def of(self, layer: int) -> CachePolicy:
        """Return the policy of a layer."""
        raise NotImplementedError

    def inside(self) -> Sequence[CachePolicy]:
        """Return the policies that it is around."""
        return [self.of(0)]

    @property
    def plaintext_only(self) -> str:
        """Return the setting of the first policy that has one."""
        return next(filter(None, (policy.plaintext_only for policy in self.inside())), "")

    def pattern(self) -> tuple[int, int]:
        found = [policy.pattern() for policy in self.inside()]
        return max(first for first, _ in found), math.lcm(*(period for _, period in found))

    def weight_shapes(self, architecture: Architecture) -> dict[str, tuple[int, ...]]:
        return {name: shape for one in self.inside() for name, shape in one.weight_shapes(architecture).items()}

    @property
    def append_only(self) -> bool:
        return all(policy.append_only for policy in self.inside())

    def verifies(self, rows: int) -> bool:
        return all(policy.verifies(rows) for policy in self.inside())

    @property
    def equal_layers(self) -> bool:
        return all(policy.equal_layers for policy in self.inside())

    @property
    def probes(self) -> int:
        return max(policy.probes for policy in self.inside())

    @property
    def evicts_within_prompt(self) -> bool:
        return any(policy.evicts_within_prompt for policy in self.inside())

    def new_state(self, place: Place) -> LayerState:
        return self.of(place.layer).new_state(place)

    def prompt_batches(self, tokens: int) -> Sequence[int]:
        return self.of(0).prompt_batches(tokens)

    def looking_ahead(self, batch: Batch) -> int:
        return self.of(0).looking_ahead(batch)

    def observed_in(self, batch: Batch, layer: int) -> Observation:
        return self.of(layer).observed_in(batch, layer)

    async def after_batch(self, suite: Suite, cache: KVCache, layer: int, batch: Batch, seen: Seen) -> None:
        await self.of(layer).after_batch(suite, cache, layer, batch, seen)

    def observation(self, tokens: int, layer: int) -> Observation:
        return self.of(layer).observation(tokens, layer)

    def noted_queries(self, tokens: int, layer: int) -> int:
        return self.of(layer).noted_queries(tokens, layer)

    def prompt_stages(self, suite: Suite, cache: KVCache, layer: int, seen: Seen) -> list[Stage]:
        return self.of(layer).prompt_stages(suite, cache, layer, seen)

    async def after_append(self, suite: Suite, cache: KVCache, layer: int) -> None:
        await self.of(layer).after_append(suite, cache, layer)

    async def attend(self, suite: Suite, cache: KVCache, layer: int, q: Value) -> Value:
        return await self.of(layer).attend(suite, cache, layer, q)

    async def attend_drafted(self, suite: Suite, cache: KVCache, layer: int, q: Value) -> Value:
        return await self.of(layer).attend_drafted(suite, cache, layer, q)

    async def after_kept(self, suite: Suite, cache: KVCache, layer: int, rows: int) -> None:
        await self.of(layer).after_kept(suite, cache, layer, rows)


@dataclass(frozen=True)
class PerLayer(Around):
    """rules: (first layer, last layer, policy), the first that fits counts; rest: for all other layers.

    Text form: `full@0-1;mpcache:dynamic=0.1`.
    """

    rules: Sequence[tuple[int, int, CachePolicy]]
    rest: CachePolicy
    name: ClassVar[str] = "per-layer"

    @property
    def spec(self) -> str:
        return ";".join([*(f"{p.spec}@{a}-{b}" if a != b else f"{p.spec}@{a}" for a, b, p in self.rules), self.rest.spec])

    def inside(self) -> Sequence[CachePolicy]:
        return [*(policy for _, _, policy in self.rules), self.rest]

    def pattern(self) -> tuple[int, int]:
        """As in `CachePolicy`; layers that rules name stand for themselves."""
        first, period = super().pattern()
        return max([first, *(last + 1 for _, last, _ in self.rules)]), period

    def of(self, layer: int) -> CachePolicy:
        """Return the policy of the first rule that names the layer."""
        return next((p for first, last, p in self.rules if first <= layer <= last), self.rest)

    def new_state(self, place: Place) -> LayerState:
        """Return the state of the layer's policy, which serves the layers of equal policies alone."""
        policy = self.of(place.layer)
        return policy.new_state(replace(place, served=tuple(n for n in place.served if self.of(n).spec == policy.spec)))

    def check(self, architecture: Architecture, prompt_tokens: int) -> None:
        """Check all policies, that the layers that rules name exist, and that all ask the same queries."""
        for first, last, policy in self.rules:
            if not 0 <= first <= last < architecture.layers:
                raise ConfigurationError(
                    f"policy {policy.spec}@{first}-{last}: the model has layers 0 to {architecture.layers - 1}"
                )
            policy.check(architecture, prompt_tokens)
        self.rest.check(architecture, prompt_tokens)
        for policy in self.inside():
            if policy.probes != self.probes and policy.observation(prompt_tokens, 0) != Observation():
                raise ConfigurationError(
                    f"policy {policy.spec}: another layer's policy in '{self.spec}' has {self.probes} probes look at the "
                    "prompt, in place of its own last queries; use full beside it"
                )


@dataclass(frozen=True)
class SharedChoice(Around):
    """Adjacent layers, `layers` each, use one choice of clusters; the first `apart` choose alone. For policies that choose.

    Source: Zeng et al., "MPCache", NeurIPS 2025, section 4.4. Text form: `shared:layers=2,apart=2|quest:budget=0.1`.
    """

    inner: CachePolicy
    layers: int = 2
    apart: int = 2
    name: ClassVar[str] = "shared"

    def __post_init__(self) -> None:
        whole(self.name, "layers", self.layers, 1)
        whole(self.name, "apart", self.apart, 0)

    @property
    def spec(self) -> str:
        return f"shared:layers={self.layers},apart={self.apart}|{self.inner.spec}"

    def pattern(self) -> tuple[int, int]:
        """As in `CachePolicy`: groups that share, from the first whole one on whose layers are all alike."""
        first, period = super().pattern()
        groups = -(-max(0, first - self.apart) // self.layers)
        return self.apart + groups * self.layers, math.lcm(period, self.layers)

    def of(self, layer: int) -> CachePolicy:
        return self.inner

    def check(self, architecture: Architecture, prompt_tokens: int) -> None:
        """Refuse a model without a whole group of layers, and a policy whose layers cannot take one choice."""
        if self.layers > 1 and not self.inner.equal_layers:
            raise ConfigurationError(
                f"policy {self.name}: layers of '{self.inner.spec}' keep different numbers of tokens and cannot take one "
                "choice of clusters; leave out shared, or set layers=1"
            )
        if architecture.layers < self.apart + self.layers:
            raise ConfigurationError(
                f"policy {self.name}: layers = {self.layers} behind the first apart = {self.apart} needs "
                f"{self.apart + self.layers} layers, the model has {architecture.layers}"
            )
        self.inner.check(architecture, prompt_tokens)

    def new_state(self, place: Place) -> LayerState:
        return self.inner.new_state(replace(place, sharing=Sharing(self.layers, self.apart)))
