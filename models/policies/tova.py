"""TOVA: after every token the one that this token attends to least is dropped, one choice for all heads of a layer.

Source: Oren et al., "Transformers are Multi-State RNNs", EMNLP 2024, section 3 (token omission via attention): the last
query's attention averaged over heads. After the prompt the last query's attention decides for the whole budget, as in the
authors' code.

Leaks: to parties and dealer how many tokens stay, not which (docs/security.md, "Policies").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from models.policies.axes.budget import Share
from models.policies.axes.keep import Keep
from models.policies.axes.schedule import Schedule
from models.policies.axes.scorers import LastQuery
from models.policies.composition import Axes, System
from models.policies.settings import ratio


@dataclass(frozen=True)
class TOVA(System):
    """budget: share of the prompt's tokens that a layer keeps; 1 keeps everything."""

    budget: float = 0.1
    name: ClassVar[str] = "tova"

    def __post_init__(self) -> None:
        ratio(self.name, "budget", self.budget)

    @property
    def axes(self) -> Axes:
        return Axes(LastQuery(), Share(self.budget), Keep(sets="layer"), Schedule(every=1))

    def least_batch(self) -> tuple[str, int]:
        return "its one query", 1
