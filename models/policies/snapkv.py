"""SnapKV: once, after the prompt, each key/value head keeps what the last queries attend to, votes pooled over neighbours.

Source: Li et al., "SnapKV: LLM Knows What You are Looking for Before Generation", NeurIPS 2024, sections 4.1 and 4.2, and
its code: votes of an observation window, average pooling (kernel 5), the window itself always kept. Tokens generated later
all stay. With grouped queries the votes of a group's heads are summed, since they share a key/value head.

Leaks: to parties and dealer how many tokens stay, not which (docs/security.md, "Policies").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from models.architecture import Architecture
from models.cache import KVCache, Stage
from models.policies.eviction import EvictingPolicy, Eviction, Kept, Scores, Seen, pooled
from models.policies.settings import budget_tokens, no_windows, ratio, text_of, whole
from mpc.errors import ConfigurationError
from protocols.suite import Suite


@dataclass(frozen=True)
class SnapKV(EvictingPolicy):
    """budget: share of the prompt's tokens that a head keeps, window included; 1 keeps everything. window: queries that
    vote, 32 in the paper. kernel: width of the pooling, odd."""

    budget: float = 0.1
    window: int = 32
    kernel: int = 5
    name: ClassVar[str] = "snapkv"

    def __post_init__(self) -> None:
        ratio(self.name, "budget", self.budget)
        whole(self.name, "window", self.window, 1)
        whole(self.name, "kernel", self.kernel, 1)
        if self.kernel % 2 == 0:
            raise ConfigurationError(f"policy {self.name}: kernel = {self.kernel} must be odd")

    @property
    def spec(self) -> str:
        return text_of(self)

    def check(self, architecture: Architecture, prompt_tokens: int) -> None:
        """Refuse a budget that does not hold the window and one voted token."""
        no_windows(self.name, architecture, prompt_tokens)
        kept = self.stays(prompt_tokens)
        if kept <= self.window and kept < prompt_tokens:
            raise ConfigurationError(
                f"policy {self.name}: budget = {self.budget} keeps {kept} of {prompt_tokens} tokens, which does not hold "
                f"window = {self.window} and a voted one; raise budget or lower window"
            )

    @property
    def append_only(self) -> bool:
        return True

    def verifies(self, rows: int) -> bool:
        return True

    def observed_queries(self, tokens: int, layer: int) -> int:
        return self.window if self.budget < 1 else 0

    def stays(self, tokens: int) -> int:
        return budget_tokens(self.budget, tokens)

    def least_batch(self) -> tuple[str, int]:
        return f"window = {self.window} and a voted token", self.window + 1

    def eviction_stages(self, suite: Suite, cache: KVCache, layer: int, seen: Seen, kept: int) -> list[Stage]:
        entry = cache.layers[layer]
        if seen.mass is None or kept >= entry.length:
            return []
        half, older = self.kernel // 2, entry.length - self.window
        votes = pooled(suite, seen.mass[:, :older], half, half)
        scores = Scores(votes, self.window * cache.group + 1)
        return Eviction(suite, [entry], scores, Kept(0, older, kept - self.window)).stages()
