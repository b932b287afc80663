"""MiKV: tokens that H2O would drop stay, with few bits of their keys and values: a cache of mixed precision.

Source: Yang et al., "No Token Left Behind: Reliable KV Cache Compression via Importance-Aware Mixed Precision Quantization",
2024: the tokens of the largest accumulated attention, and recent ones, stay exact, all others are quantised. What is
different here: one set of tokens for all heads of a layer; steps are public and the same for all rows
(`models.policies.axes.demote`), in place of steps by each row's extremes and of a balancer made of the prompt; many tokens
are demoted at once, `every=1` is the paper's way.

Leaks: to parties and dealer how many tokens stay exact, not which (docs/security.md, "Policies").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from models.policies.axes.budget import Share
from models.policies.axes.demote import Demote
from models.policies.axes.keep import Keep
from models.policies.axes.schedule import Schedule
from models.policies.axes.scorers import Accumulated
from models.policies.composition import Axes, System
from models.policies.settings import few_bits, ratio, whole


@dataclass(frozen=True)
class MiKV(System):
    """budget: share of the prompt's tokens that stays exact; 1 keeps everything so. recent: share of the budget for recent
    tokens. every: while decoding, so many tokens are demoted at once. fraction_bits: of what is demoted."""

    budget: float = 0.1
    recent: float = 0.5
    every: int = 32
    fraction_bits: int = 2
    name: ClassVar[str] = "mikv"

    def __post_init__(self) -> None:
        ratio(self.name, "budget", self.budget)
        ratio(self.name, "recent", self.recent)
        whole(self.name, "every", self.every, 1)
        few_bits(self.name, "fraction_bits", self.fraction_bits)

    @property
    def axes(self) -> Axes:
        keep = Keep(recent=self.recent, sets="layer")
        return Axes(Accumulated(), Share(self.budget), keep, Schedule(self.every), Demote(self.fraction_bits))

    def least_batch(self) -> tuple[str, int]:
        return "an important token and a recent one", 2
