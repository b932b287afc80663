"""Elastic Cache: after the prompt, anchors by accumulated attention stay, and each other token is averaged into the nearest.

Source: Liu et al., "Efficient Inference of Vision Instruction-Following Models with Elastic Cache", ECCV 2024, section 3:
importance is what a token receives from the whole prompt, one set of anchors a layer; the first tokens and the last one
stay as they are; keys and values are averaged. While decoding, each new token takes the place of the one at a fixed
distance from the end of what the prompt left (25 in the authors' code). Their code takes `argsort(score) > n` for "rank
above n" and loses the offset of the first tokens when it gathers; here the paper's text counts.

Leaks: to parties and dealer how many tokens stay and the place whose token goes, not which are anchors (docs/security.md,
"Policies").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from models.policies.axes.budget import Share
from models.policies.axes.keep import Keep
from models.policies.axes.merge import Nearest
from models.policies.axes.schedule import Schedule
from models.policies.axes.scorers import Accumulated
from models.policies.composition import Axes, System
from models.policies.settings import ratio, whole


@dataclass(frozen=True)
class Elastic(System):
    """budget: share of the prompt's tokens that a layer keeps; 1 keeps everything. sinks: first tokens that stay. distance:
    a token that is decoded takes the place of the one that far from the end of what the prompt left."""

    budget: float = 0.5
    sinks: int = 4
    distance: int = 25
    name: ClassVar[str] = "elastic"

    def __post_init__(self) -> None:
        ratio(self.name, "budget", self.budget)
        whole(self.name, "sinks", self.sinks, 0)
        whole(self.name, "distance", self.distance, 1)

    @property
    def axes(self) -> Axes:
        keep, schedule = Keep(sinks=self.sinks, recent=1, sets="layer"), Schedule(distance=self.distance)
        return Axes(Accumulated(), Share(self.budget), keep, schedule, Nearest("both"))

    def least_batch(self) -> tuple[str, int]:
        return f"sinks = {self.sinks}, an anchor and the last token", self.sinks + 2
