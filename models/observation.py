"""What a policy asks of a prompt batch's attention, and what it is told.

Leaks: nothing; what is asked is public, what is told secret (docs/security.md, "Policies").
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from protocols.suite import Suite, Value


@dataclass(frozen=True)
class Observation:
    """What a policy asks; public. queries: how many of the last ones. heads: query heads of the layer that count, each by
    itself; None: all of them, those of a key/value head added up. squares: squared probabilities too, then each head is by
    itself as well."""

    queries: int = 0
    heads: tuple[int, ...] | None = None
    squares: bool = False

    def of_heads(self, heads: int) -> tuple[int, ...] | None:
        """Return the query heads that are told by themselves, of `heads` ones; None where none is."""
        return tuple(range(heads)) if self.squares and self.heads is None else self.heads

    def sums(self, heads: int, groups: int) -> int:
        """Return M, the rows that are told, of a layer with so many query heads and key/value heads."""
        alone = self.of_heads(heads)
        return groups if alone is None else len(alone)


@dataclass(frozen=True)
class Seen:
    """What a policy is told of a batch of the prompt, or of a decoded token. mass: secret [M, S], attention that each cached
    token got from the last `queries` queries, None for none of them; M is G, or the number of query heads that are told by
    themselves. squares: [M, S], its squares. queries: public; each one gives 1 in each of the `heads` query heads that a row
    adds up."""

    mass: Value | None = None
    queries: int = 0
    heads: int = 1
    squares: Value | None = None

    @property
    def most(self) -> int:
        """Return the most attention that one token can have got; public."""
        return self.queries * self.heads

    def first(self, tokens: int) -> Seen:
        """Return what is told of the first `tokens` cached tokens."""
        mass, squares = (None if x is None else x[:, :tokens] for x in (self.mass, self.squares))
        return Seen(mass, self.queries, self.heads, squares)

    def after(self, suite: Suite, before: Seen) -> Seen:
        """Return the sums of a batch's and of those before it, which know of fewer tokens; local."""
        mass, squares = (_added(suite, old, new) for old, new in ((before.mass, self.mass), (before.squares, self.squares)))
        return Seen(mass, before.queries + self.queries, max(before.heads, self.heads), squares)


def _added(suite: Suite, old: Value | None, new: Value | None) -> Value | None:
    if old is None or new is None:
        return old if new is None else new
    added = new.shape[1] - old.shape[1]
    zeros = suite.public(torch.zeros(1), (old.shape[0], added))
    return new + (suite.concat([old, zeros], 1) if added else old)
