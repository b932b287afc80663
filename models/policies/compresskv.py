"""CompressKV: once, after the prompt, each layer keeps what a few of its heads look at: those that find what is asked for.

Source: Lin et al., "CompressKV: Semantic Retrieval Heads Know What Tokens are Not Important Before Generation", 2025, and
its code: votes of a window of 8 queries and of the layer's retrieval heads alone, average pooling, mean over these heads;
one set for all heads of a layer, the window always kept. The heads are public and belong to the model. Budgets by layer:
`layers:weights=...|compresskv`, there in proportion to the error that a small cache makes in a layer.

Leaks: to parties and dealer how many tokens stay, not which, and which heads are asked (docs/security.md, "Policies").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from models.architecture import Architecture
from models.policies.axes.budget import Share
from models.policies.axes.keep import Keep
from models.policies.axes.scorers import HeadVotes
from models.policies.composition import Axes, System
from models.policies.settings import layer_heads, odd, of_model, ratio, whole


@dataclass(frozen=True)
class CompressKV(System):
    """budget: share of the prompt's tokens that a layer keeps, window included; 1 keeps everything. window: queries that
    vote. kernel: width of the pooling, odd. heads: query heads that vote, as layer.head; a layer without any asks all."""

    budget: float = 0.1
    window: int = 8
    kernel: int = 5
    heads: str = ""
    name: ClassVar[str] = "compresskv"

    def __post_init__(self) -> None:
        ratio(self.name, "budget", self.budget)
        whole(self.name, "window", self.window, 1)
        odd(self.name, "kernel", self.kernel)
        layer_heads(self.name, self.heads)

    @property
    def axes(self) -> Axes:
        votes = HeadVotes(self.window, self.kernel, heads=layer_heads(self.name, self.heads))
        return Axes(votes, Share(self.budget), Keep(recent=self.window, sets="layer"))

    def check(self, architecture: Architecture, prompt_tokens: int) -> None:
        super().check(architecture, prompt_tokens)
        of_model(self.name, layer_heads(self.name, self.heads), architecture)

    def least_batch(self) -> tuple[str, int]:
        return f"window = {self.window} and a voted token", self.window + 1
