"""H2O: half of the budget for heavy hitters, tokens with the largest accumulated attention, half for recent ones.

Source: Zhang et al., "H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models", NeurIPS 2023,
section 4 and algorithm 1: scores add up over all queries, a token is evicted at every step, per head. The token that leaves
the recent window competes with the heavy hitters; the lowest of them goes.

Leaks: to parties and dealer how many tokens stay, not which (docs/security.md, "Policies").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from models.policies.axes.budget import Share
from models.policies.axes.keep import Keep
from models.policies.axes.schedule import Schedule
from models.policies.axes.scorers import Accumulated
from models.policies.composition import Axes, System
from models.policies.settings import ratio


@dataclass(frozen=True)
class H2O(System):
    """budget: share of the prompt's tokens that a head keeps; 1 keeps everything. recent: share of the budget for recent
    tokens."""

    budget: float = 0.1
    recent: float = 0.5
    name: ClassVar[str] = "h2o"

    def __post_init__(self) -> None:
        ratio(self.name, "budget", self.budget)
        ratio(self.name, "recent", self.recent)

    @property
    def axes(self) -> Axes:
        return Axes(Accumulated(), Share(self.budget), Keep(recent=self.recent), Schedule(every=1))

    def least_batch(self) -> tuple[str, int]:
        return "a heavy hitter and a recent token", 2
