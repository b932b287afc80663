"""Locret: heads that have learned what will be asked for decide, after each batch of the prompt, which tokens stay.

Source: Huang et al., "Locret: Enhancing Eviction in Long-Context LLM Inference with Trained Retaining Heads", 2024, section
3, and its code (`locret/inference`): each key/value head keeps the tokens of the highest scores (`models.policies.axes
.retaining`); the last ones of a batch stay until the next one ("stabilisers"), those of the prompt for good. Nothing goes
while decoding. Without `batches` around it all of the prompt is one batch.

Leaks: to parties and dealer how many tokens stay, not which (docs/security.md, "Policies").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from models.policies.axes.budget import Share
from models.policies.axes.keep import Keep
from models.policies.axes.retaining import RetainingHead
from models.policies.composition import Axes, System
from models.policies.settings import ratio, whole


@dataclass(frozen=True)
class Locret(System):
    """budget: share of the prompt's tokens that a head keeps; 1 keeps everything. last: of the prompt's last tokens, that
    stay, 100 in the paper. stabilisers: of a batch's last tokens, that stay while more batches follow, at most half of what
    stays. width: of the trained heads, as they were fitted."""

    budget: float = 0.1
    last: int = 4
    stabilisers: int = 64
    width: int = 128
    name: ClassVar[str] = "locret"

    def __post_init__(self) -> None:
        ratio(self.name, "budget", self.budget)
        whole(self.name, "last", self.last, 1)
        whole(self.name, "stabilisers", self.stabilisers, 0)
        whole(self.name, "width", self.width, 1)

    @property
    def axes(self) -> Axes:
        keep = Keep(recent=self.last, stabilisers=self.stabilisers)
        return Axes(RetainingHead(self.width), Share(self.budget), keep)

    def least_batch(self) -> tuple[str, int]:
        return f"last = {self.last} and a token more", self.last + 1
