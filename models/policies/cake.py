"""CAKE: once, after the prompt, each key/value head keeps what the last queries attend to, or differ about.

Source: Qin et al., "CAKE: Cascading and Adaptive KV Cache Eviction with Layer Preferences", ICLR 2025, section 4, and its
code: mean and variance of the attention of an observation window (divisor window - 1), average pooling, mean over a group's
heads, the window always kept. What is different here: the paper divides the memory among layers by entropy and variance of
each prompt, and cuts earlier layers again and again while it goes; here every layer is cut once, to a public number:
`layers:weights=...|cake` with the mean preferences of prompts of the model owner's. So the numbers reveal an average and
adapt to no single prompt. Kept rows stay in their order.

Leaks: to parties and dealer how many tokens stay, not which (docs/security.md, "Policies").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from models.policies.axes.budget import Share
from models.policies.axes.keep import Keep
from models.policies.axes.moments import Moments
from models.policies.composition import Axes, System
from models.policies.settings import at_most, odd, ratio, whole


@dataclass(frozen=True)
class CAKE(System):
    """budget: share of the prompt's tokens that a head keeps, window included; 1 keeps everything. window: queries that
    count. gamma: weight of the variance. kernel: width of the pooling, odd."""

    budget: float = 0.1
    window: int = 32
    gamma: int = 200
    kernel: int = 5
    name: ClassVar[str] = "cake"

    def __post_init__(self) -> None:
        ratio(self.name, "budget", self.budget)
        whole(self.name, "window", self.window, 2)
        whole(self.name, "gamma", self.gamma, 0)
        odd(self.name, "kernel", self.kernel)
        at_most(self.name, "window", self.window, 64)
        at_most(self.name, "gamma", self.gamma, 1000)

    @property
    def axes(self) -> Axes:
        return Axes(Moments(self.window, self.gamma, self.kernel), Share(self.budget), Keep(recent=self.window))

    def least_batch(self) -> tuple[str, int]:
        return f"window = {self.window} and a scored token", self.window + 1
