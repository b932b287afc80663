"""ThinK: of cached keys only the channels stay, other ones for each head, that say most of what queries find.

Source: Xu et al., "ThinK: Thinner Key Cache by Query-Driven Pruning", ICLR 2025, and its code: a channel's score is the mean
over the last queries of its square times the mean over keys of its square; the last rows, and later ones, keep all channels.
With grouped queries the mean is over the group's heads, too, since they share their keys.

Leaks: to parties and dealer how many channels stay, not which (docs/security.md, "Policies").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from models.cache import LayerCache
from models.policies.axes.codecs import hold_few_channels
from models.policies.holding import Holding
from models.policies.settings import budget_tokens, ratio, whole
from protocols.suite import Suite


@dataclass(frozen=True)
class Think(Holding):
    """keep: share of the channels of keys that stays; 1 keeps all. window: last queries that decide, and last rows that
    stay whole. Text form: `think:keep=0.6|snapkv`."""

    keep: float = 0.6
    window: int = 32
    name: ClassVar[str] = "think"

    def __post_init__(self) -> None:
        super().__post_init__()
        ratio(self.name, "keep", self.keep)
        whole(self.name, "window", self.window, 1)

    @property
    def spec(self) -> str:
        settings = f"keep={self.keep}" + (f",window={self.window}" if self.window != Think.window else "")
        return f"{self.name}:{settings}|{self.inner.spec}"

    @property
    def whole(self) -> bool:
        return self.keep == 1

    def noted_queries(self, tokens: int, layer: int) -> int:
        return 0 if self.whole else min(self.window, tokens)

    async def hold(self, suite: Suite, entry: LayerCache) -> None:
        channels = entry.keys_and_values()[0].shape[2]
        count = budget_tokens(self.keep, channels)
        if entry.length > self.window and count < channels:
            await hold_few_channels(suite, entry, count, self.window)
