"""KVMerger: after the prompt, runs of neighbours with similar keys become one row each; a recent window stays as it is.

Source: Wang et al., "Model Tells You Where to Merge: Adaptive KV Cache Merging for LLMs on Long-Context Tasks", 2024
(arXiv:2407.08454), sections 4 and 5, from memory of the paper: cosines of neighbouring keys, means of runs by a Gaussian of
the distance to the run's most attended key (`weights=gaussian`). Here the number of runs is public: as many as the budget
says; the most attended tokens are merged like the others; and by default rows count by what they received, which finds more
and takes fewer rounds (docs/quality.md).

Leaks: to parties and dealer how many runs there are, not where they end (docs/security.md, "Policies").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from models.policies.axes.budget import Share
from models.policies.axes.keep import Keep
from models.policies.axes.kernel import Gaussian
from models.policies.axes.runs import Runs
from models.policies.axes.scorers import Accumulated
from models.policies.composition import Axes, System
from models.policies.settings import one_of, ratio, whole


@dataclass(frozen=True)
class KVMerger(System):
    """budget: share of the prompt's tokens that is left of a head, window included; 1 keeps everything. recent: share of the
    budget that recent tokens take, which are not merged; 0.34 in the paper at a budget of 0.5. longest: tokens of a run at
    most, or twice the mean; 0: any number. weights: of a run's rows, `received`: what they received, or `gaussian`, which
    needs pivots."""

    budget: float = 0.5
    recent: float = 0.34
    longest: int = 8
    weights: Literal["gaussian", "received"] = "received"
    name: ClassVar[str] = "kvmerger"

    def __post_init__(self) -> None:
        ratio(self.name, "budget", self.budget)
        ratio(self.name, "recent", self.recent)
        whole(self.name, "longest", self.longest, 0)
        one_of(self.name, "weights", self.weights, ("gaussian", "received"))

    @property
    def axes(self) -> Axes:
        merge = Gaussian(self.longest) if self.weights == "gaussian" else Runs(self.longest)
        return Axes(Accumulated(), Share(self.budget), Keep(recent=self.recent), merge=merge)

    def least_batch(self) -> tuple[str, int]:
        return "a run and a recent token", 2
