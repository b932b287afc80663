"""Systems behind whose eviction a token reads clusters of what stays, as in `mpcache`, and not all of it.

Leaks: to parties and dealer their text and what the system inside leaks (docs/security.md, "Policies").
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import ClassVar

from models.architecture import Architecture
from models.policies.axes.cluster_reader import ClusterSettings
from models.policies.changed import Changed
from models.policies.composition import Axes
from mpc.errors import ConfigurationError


@dataclass(frozen=True)
class Clustered(ClusterSettings, Changed):
    """Another system that drops tokens after the prompt alone; then each token attends to `dynamic` of all tokens so far, in
    clusters of `fine` tokens that it chooses. Settings as of `ClusterSettings`.

    Text form: `clusters:dynamic=0.1,fine=7|snapkv:budget=0.4`.
    """

    dynamic: float = 0.1
    name: ClassVar[str] = "clusters"
    usual: ClassVar[str] = "snapkv, cake or compresskv"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.reader.validate(self.name)
        axes = self.inner.axes
        if axes.schedule.every or axes.schedule.distance or axes.merge.holds:
            raise ConfigurationError(
                f"policy {self.name}: '{self.inner.spec}' moves rows while decoding or holds them in segments, and clusters "
                f"are of rows in their order; use {self.usual} inside, or leave out {self.name}"
            )

    @property
    def spec(self) -> str:
        own = [(f.name, getattr(self, f.name)) for f in fields(ClusterSettings)]
        said = [f"{name}={str(x).lower()}" for name, x in own if name == "dynamic" or x != getattr(type(self), name)]
        return f"{self.name}:{','.join(said)}|{self.inner.spec}"

    @property
    def axes(self) -> Axes:
        return replace(self.inner.axes, reader=self.reader)

    @property
    def equal_layers(self) -> bool:
        """Whether a cluster's number means the same tokens in all layers, which tokens that go by themselves spoil."""
        return self.axes.budget.share == 1

    def check(self, architecture: Architecture, prompt_tokens: int) -> None:
        super().check(architecture, prompt_tokens)
        stays = min(self.stays(prompt_tokens, layer) for layer in range(self.own_budgets))
        self.reader.check(self.name, prompt_tokens, stays)
