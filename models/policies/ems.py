"""EMS: what all queries or the last ones look at stays; of what goes, the best joins the most similar that stays, or none.

Source: Li et al., "EMS: Adaptive Evict-then-Merge Strategy for Head-wise KV Cache Compression Based on Global-Local
Importance", 2024 (arXiv:2412.08521), sections 3.2 and 3.3: a global-local score, centres and candidates of each head, a
class of zero that candidates fall into which are similar to none. Its abstract was at hand; the balance of the two sums, the
threshold and the weights of a merge are recalled.

Leaks: to parties and dealer how many tokens stay and how many may join others, not which (docs/security.md, "Policies").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from models.policies.axes.budget import Share
from models.policies.axes.classes import Classes
from models.policies.axes.global_local import GlobalLocal
from models.policies.axes.keep import Keep
from models.policies.axes.merge import Rows
from models.policies.axes.schedule import Schedule
from models.policies.composition import Axes, System
from models.policies.eviction import Drop, Merge
from models.policies.settings import one_of, ratio, whole


@dataclass(frozen=True)
class EMS(System):
    """budget: share of the prompt's tokens that a head keeps; 1 keeps everything. window: last queries of the prompt that
    count by themselves, too, and last tokens that stay. tau: cosine that a token must be above to join another; 1: none
    does. candidates: of those that go, so many may join; 0: all. every: while decoding, so many tokens go at once. rows:
    what joins, `both` keys and values or `values` alone."""

    budget: float = 0.1
    window: int = 32
    tau: float = 0.6
    candidates: int = 256
    every: int = 32
    rows: Rows = "both"
    name: ClassVar[str] = "ems"

    def __post_init__(self) -> None:
        ratio(self.name, "budget", self.budget)
        ratio(self.name, "tau", self.tau)
        for setting, least in (("window", 1), ("candidates", 0), ("every", 1)):
            whole(self.name, setting, getattr(self, setting), least)
        one_of(self.name, "rows", self.rows, ("values", "both"))

    @property
    def axes(self) -> Axes:
        merge: Merge = Drop() if self.tau == 1 else Classes(self.tau, self.candidates, self.rows)
        keep, schedule = Keep(recent=self.window), Schedule(self.every)
        return Axes(GlobalLocal(self.window), Share(self.budget), keep, schedule, merge)

    def least_batch(self) -> tuple[str, int]:
        return f"window = {self.window} and a scored token", self.window + 1
