"""SnapKV: once, after the prompt, each key/value head keeps what the last queries attend to, votes pooled over neighbours.

Source: Li et al., "SnapKV: LLM Knows What You are Looking for Before Generation", NeurIPS 2024, sections 4.1 and 4.2, and
its code: votes of an observation window, average pooling (kernel 5), the window itself always kept. Tokens generated later
all stay. With grouped queries the votes of a group's heads are summed, since they share a key/value head.

Leaks: to parties and dealer how many tokens stay, not which (docs/security.md, "Policies").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from models.policies.axes.budget import Share
from models.policies.axes.keep import Keep
from models.policies.axes.scorers import WindowVotes
from models.policies.composition import Axes, System
from models.policies.settings import odd, ratio, whole


@dataclass(frozen=True)
class SnapKV(System):
    """budget: share of the prompt's tokens that a head keeps, window included; 1 keeps everything. window: queries that
    vote, 32 in the paper. kernel: width of the pooling, odd."""

    budget: float = 0.1
    window: int = 32
    kernel: int = 5
    name: ClassVar[str] = "snapkv"

    def __post_init__(self) -> None:
        ratio(self.name, "budget", self.budget)
        whole(self.name, "window", self.window, 1)
        odd(self.name, "kernel", self.kernel)

    @property
    def axes(self) -> Axes:
        return Axes(WindowVotes(self.window, self.kernel), Share(self.budget), Keep(recent=self.window))

    def least_batch(self) -> tuple[str, int]:
        return f"window = {self.window} and a voted token", self.window + 1
