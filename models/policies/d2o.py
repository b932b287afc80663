"""D2O: what H2O keeps, with the first tokens; what goes joins the most similar that stays, where it is similar enough.

Source: Wan et al., "D2O: Dynamic Discriminative Operations for Efficient Long-Context Inference of Large Language Models",
ICLR 2025, and its code: accumulated attention, the first four tokens and recent ones always stay. The paper gives layers
budgets by the variance of a prompt's attention, and the first two and the last all tokens; here they are public: put
`layers:weights=...` in front, and `full@...` for layers that keep everything.

Leaks: to parties and dealer how many tokens stay, not which, nor which join which (docs/security.md, "Policies").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from models.policies.axes.budget import Share
from models.policies.axes.keep import Keep
from models.policies.axes.merge import Rows
from models.policies.axes.schedule import Schedule
from models.policies.axes.scorers import Accumulated
from models.policies.axes.similar import Similar
from models.policies.composition import Axes, System
from models.policies.settings import one_of, ratio, whole


@dataclass(frozen=True)
class D2O(System):
    """budget: share of the prompt's tokens that a head keeps; 1 keeps everything. recent: share of the budget for recent
    tokens. sinks: first tokens that stay. every: while decoding, so many tokens go at once (1 in the paper). candidates: of
    those that go, so many may join others; 0: all. rows: what joins, `both` keys and values or `values` alone."""

    budget: float = 0.2
    recent: float = 0.5
    sinks: int = 4
    every: int = 32
    candidates: int = 0
    rows: Rows = "both"
    name: ClassVar[str] = "d2o"

    def __post_init__(self) -> None:
        ratio(self.name, "budget", self.budget)
        ratio(self.name, "recent", self.recent)
        for setting, least in (("sinks", 0), ("every", 1), ("candidates", 0)):
            whole(self.name, setting, getattr(self, setting), least)
        one_of(self.name, "rows", self.rows, ("values", "both"))

    @property
    def axes(self) -> Axes:
        keep, merge = Keep(sinks=self.sinks, recent=self.recent), Similar(self.rows, self.candidates)
        return Axes(Accumulated(), Share(self.budget), keep, Schedule(self.every), merge)

    def least_batch(self) -> tuple[str, int]:
        return f"sinks = {self.sinks}, a heavy hitter and a recent token", next(
            n for n in range(self.sinks + 2, 2**31) if self.axes.keep.choice(n, n).count > 0
        )
