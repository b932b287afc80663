"""How many tokens of each layer stay: the same in all of them, or more where a profile says so.

Leaks: to parties and dealer these numbers, which follow from the policy's text and the prompt's length (docs/security.md,
"Policies").
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from models.policies.settings import budget_tokens


class Budget(ABC):
    """share: of the prompt's tokens that stays, mean over layers; 1 keeps everything. Public."""

    share: float

    @property
    def layers(self) -> int:
        """Return how many layers have a number of their own; 1 where all keep the same."""
        return 1

    @abstractmethod
    def kept(self, tokens: int, layer: int, always: int) -> int:
        """Return how many of `tokens` tokens a layer keeps, of which `always` ones are not chosen; public."""


@dataclass(frozen=True)
class Share(Budget):
    """Every layer keeps the same share of the tokens.

    >>> Share(0.1).kept(tokens=1024, layer=3, always=32)
    102
    """

    share: float

    def kept(self, tokens: int, layer: int, always: int) -> int:
        return budget_tokens(self.share, tokens)


@dataclass(frozen=True)
class Profile(Budget):
    """What `share` keeps beyond what always stays is divided among layers in proportion to public weights: as much memory in
    all, at least one token more than always stays in each, in none more than there are.

    Source: Qin et al., "CAKE: Cascading and Adaptive KV Cache Eviction with Layer Preferences", ICLR 2025, and its code
    (`adjust_budgets`); there the weights are a prompt's own, and a layer may get none.

    >>> [Profile(0.25, (4, 2, 1, 1)).kept(tokens=40, layer=layer, always=2) for layer in range(4)]
    [18, 10, 6, 6]
    """

    share: float
    weights: tuple[float, ...]

    @property
    def layers(self) -> int:
        return len(self.weights)

    def kept(self, tokens: int, layer: int, always: int) -> int:
        if tokens <= always:
            return tokens
        total = max(1, budget_tokens(self.share, tokens) - always) * self.layers
        return always + divided(self.weights, total, tokens - always)[layer]


def divided(weights: tuple[float, ...], total: int, most: int) -> list[int]:
    """Return whole numbers from 1 to `most`, one a weight, in proportion to the weights, that add up to `total`: cut, none
    above `most`; what is left over goes to those below it alike, the first ones first. len(weights) <= total <= most
    len(weights).

    >>> divided((3, 1, 1), 10, 4), divided((1, 0, 1), 4, 3)
    ([4, 3, 3], [1, 1, 2])
    """
    whole = sum(weights)
    counts = [int(weight / whole * total) for weight in weights]
    _spread(counts, sum(max(0, n - most) for n in counts), most)
    _spread(counts, total - sum(counts), most)
    while 0 in counts:
        counts[counts.index(max(counts))] -= 1
        counts[counts.index(0)] += 1
    return counts


def _spread(counts: list[int], over: int, most: int) -> None:
    """Cut all counts at `most`, and give `over` to those below it alike, the first ones first."""
    while True:
        counts[:] = [min(n, most) for n in counts]
        below = [place for place, n in enumerate(counts) if n < most]
        if over <= 0 or not below:
            return
        for turn, place in enumerate(below):
            counts[place] += over // len(below) + (turn < over % len(below))
        over = sum(max(0, n - most) for n in counts)
