"""Attention-Gate: once, after the prompt, each head keeps the tokens that its gate opens for, as many as the budget says.

Source: Zeng et al., "In-context KV-Cache Eviction for LLMs via Attention-Gate", 2024 (`models.policies.axes.gate` says what
is recalled). The threshold becomes a budget; the first token and the last one stay; the prompt's own rows do not feel the
eviction, the answer's do. Nothing goes while decoding.

Leaks: to parties and dealer how many tokens stay, not which (docs/security.md, "Policies").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from models.policies.axes.budget import Share
from models.policies.axes.gate import Gate
from models.policies.axes.keep import Keep
from models.policies.composition import Axes, System
from models.policies.settings import ratio, whole


@dataclass(frozen=True)
class AttentionGate(System):
    """budget: share of the prompt's tokens that a head keeps; 1 keeps everything. heads, channels: of the gates' own
    attention, as they were fitted."""

    budget: float = 0.4
    heads: int = 2
    channels: int = 16
    name: ClassVar[str] = "attention-gate"

    def __post_init__(self) -> None:
        ratio(self.name, "budget", self.budget)
        whole(self.name, "heads", self.heads, 1)
        whole(self.name, "channels", self.channels, 1)

    @property
    def axes(self) -> Axes:
        return Axes(Gate(self.heads, self.channels), Share(self.budget), Keep(sinks=1, recent=1))

    def least_batch(self) -> tuple[str, int]:
        return "the first token, the last one and another", 3
