"""Who always stays, and for whom one choice is made."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from typing import Literal

from models.cache import Sharing
from models.policies.eviction import Kept, Scores
from models.policies.settings import budget_tokens


@dataclass(frozen=True)
class Keep:
    """sinks: first tokens that always stay. recent: last ones, a number, or below 1 a share of those that stay. stabilisers:
    last ones that stay where more batches of the prompt follow, at most half of those that stay. sets: a choice for each
    key/value head, or one for all heads of a layer. sharing: layers that one choice is made for. All public."""

    sinks: int = 0
    recent: float = 0
    stabilisers: int = 0
    sets: Literal["head", "layer"] = "head"
    sharing: Sharing = field(default_factory=Sharing)

    def recent_of(self, kept: int) -> int:
        """Return how many of the last tokens stay, of `kept` in all.

        >>> Keep(recent=0.5).recent_of(9), Keep(recent=32).recent_of(100), Keep().recent_of(9)
        (4, 32, 0)
        """
        return budget_tokens(self.recent, kept) if 0 < self.recent < 1 else int(self.recent)

    @property
    def always(self) -> int:
        """Return how many tokens stay without being chosen where one is.

        >>> Keep(recent=0.5).always, Keep(sinks=4, recent=32).always
        (1, 36)
        """
        return next(n for n in itertools.count() if self.choice(n + 1, n + 1).count == 1)

    def choice(self, cached: int, kept: int, within: bool = False) -> Kept:
        """Return which of `cached` tokens are chosen from, and how many of them stay, so that `kept` do in all. within:
        whether more batches of the prompt follow."""
        recent = max(self.recent_of(kept), min(self.stabilisers, kept // 2) if within else 0)
        return Kept(self.sinks, cached - recent, kept - self.sinks - recent)

    def of_sets(self, scores: Scores, groups: int) -> Scores:
        """Return the scores of heads, [G, n] or [H, n], as those of the sets that are chosen for, of G key/value heads;
        local."""
        rows, tokens = scores.value.shape
        sets = groups if self.sets == "head" else 1
        if rows == sets and sets > 1:
            return scores
        value = scores.value.reshape(sets, rows // sets, tokens).sum(1)
        return replace(scores, value=value, bound=(scores.bound - 1) * (rows // sets) + 1)
