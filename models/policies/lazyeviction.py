"""LazyEviction: now and then while decoding, each layer drops tokens that nothing looked at for longer than it used to be.

Source: Zhang et al., "LazyEviction: Lagged KV Eviction with Attention Pattern Observation for Efficient Long Reasoning",
2025 (recurrence of attention, lagged eviction; formulas second hand): every `every` tokens the last `every` ones stay, and
of the others those of the highest score (`Recurrence`). One set for all heads of a layer, by their mean attention. What is
different here: a prompt is cut, too, by the hits of its last `observed` queries; the budget counts the last tokens in;
`alpha` is larger than the paper's 0.0001, which each of 1 000 tokens has ten times over when attention is even: then all are
hit at every step, and nothing recurs.

Leaks: to parties and dealer how many tokens stay and when some go, not which (docs/security.md, "Policies").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from models.policies.axes.budget import Share
from models.policies.axes.keep import Keep
from models.policies.axes.recurrence import Recurrence
from models.policies.axes.schedule import Schedule
from models.policies.composition import Axes, System
from models.policies.settings import ratio, whole


@dataclass(frozen=True)
class LazyEviction(System):
    """budget: share of the prompt's tokens that a layer keeps, the last `every` ones included; 1 keeps everything. every:
    tokens from one eviction to the next. alpha: attention from which on a token is hit. observed: queries of the prompt."""

    budget: float = 0.5
    every: int = 32
    alpha: float = 2e-3
    observed: int = 32
    name: ClassVar[str] = "lazyeviction"

    def __post_init__(self) -> None:
        ratio(self.name, "budget", self.budget)
        whole(self.name, "every", self.every, 1)
        ratio(self.name, "alpha", self.alpha)
        whole(self.name, "observed", self.observed, 1)

    @property
    def axes(self) -> Axes:
        scorer, keep = Recurrence(self.alpha, self.observed), Keep(recent=self.every, sets="layer")
        return Axes(scorer, Share(self.budget), keep, Schedule(self.every))

    def least_batch(self) -> tuple[str, int]:
        return f"every = {self.every} recent tokens and one more", self.every + 1
