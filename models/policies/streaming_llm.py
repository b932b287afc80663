"""StreamingLLM: the first tokens (attention sinks) and a window of recent ones. Nothing secret is decided.

Source: Xiao et al., "Efficient Streaming Language Models with Attention Sinks", ICLR 2024, section 3.2. There positions are
counted within the cache; here keys keep the position at which they were cached, as in every policy of this package.

Leaks: to parties and dealer all that it decides, which follows from lengths (docs/security.md, "Policies").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from models.policies.axes.budget import Share
from models.policies.axes.keep import Keep
from models.policies.axes.reader import Ends, Reader
from models.policies.axes.scorers import NoScores
from models.policies.composition import Axes, System
from models.policies.settings import ratio, whole


@dataclass(frozen=True)
class StreamingLLM(System):
    """budget: share of the prompt's tokens that is kept, sinks included; 1 keeps everything. sinks: first tokens that always
    stay."""

    budget: float = 0.1
    sinks: int = 4
    name: ClassVar[str] = "streaming-llm"

    def __post_init__(self) -> None:
        ratio(self.name, "budget", self.budget)
        whole(self.name, "sinks", self.sinks, 0)

    @property
    def axes(self) -> Axes:
        reader = Ends(self.sinks) if self.budget < 1 else Reader()
        return Axes(NoScores(), Share(self.budget), Keep(sinks=self.sinks), reader=reader)

    def least_batch(self) -> tuple[str, int]:
        return f"sinks = {self.sinks} and a recent token", self.sinks + 1
