"""What a policy asks of a prompt batch's attention, and what it is told.

Leaks: nothing; what is asked is public, what is told secret (docs/security.md, "Policies").
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from protocols.suite import Suite, Value


@dataclass(frozen=True)
class Observation:
    """What a policy asks; public. queries: how many of the last ones. heads: query heads of the layer that count, each by
    itself; None: all of them, those of a key/value head added up. squares: squared probabilities too, then each head is by
    itself as well. features: of every token of the batch, its queries, keys and values before they turn. each: instead of
    sums over queries each query by itself, all heads added up. late: sums over so many of the last of these queries, too.
    alone: instead of sums each query of each head by itself. times: in how many batches of the prompt such sums are made,
    which are added up."""

    queries: int = 0
    heads: tuple[int, ...] | None = None
    squares: bool = False
    features: bool = False
    each: bool = False
    late: int = 0
    alone: bool = False
    times: int = 1

    def of_heads(self, heads: int) -> tuple[int, ...] | None:
        """Return the query heads that are told by themselves, of `heads` ones; None where none is."""
        return tuple(range(heads)) if self.squares and self.heads is None else self.heads

    def sums(self, heads: int, groups: int) -> int:
        """Return M, the rows that are told, of a layer with so many query heads and key/value heads."""
        apart = self.of_heads(heads)
        if self.alone:
            return heads * self.queries
        return self.queries if self.each else groups if apart is None else len(apart)

    def heads_of_sum(self, heads: int, groups: int) -> int:
        """Return how many query heads a row adds up."""
        if self.alone:
            return 1
        return heads if self.each else heads // groups if self.of_heads(heads) is None else 1


@dataclass(frozen=True)
class Seen:
    """What a policy is told of a batch of the prompt, or of a decoded token. mass: secret [M, S], attention that each cached
    token got from the last `queries` queries, None for none of them; M is G, or the number of query heads that are told by
    themselves. squares: [M, S], its squares. queries: public; each one gives 1 in each of the `heads` query heads that a row
    adds up. features: secret [T, (H + 2G) C], of the batch's own tokens. last: whether no batch of the prompt follows. each:
    a row is what one query says, one row for each of them, in order; `queries` is 1 then. late: [M, S], the part of mass
    that the last `late_queries` of the queries gave, where it is asked for."""

    mass: Value | None = None
    queries: int = 0
    heads: int = 1
    squares: Value | None = None
    features: Value | None = None
    last: bool = True
    each: bool = False
    late: Value | None = None
    late_queries: int = 0

    @property
    def most(self) -> int:
        """Return the most attention that one token can have got; public."""
        return self.queries * self.heads

    @property
    def most_late(self) -> int:
        """Return the most of it that can have come from the late queries; public."""
        return self.late_queries * self.heads

    def first(self, tokens: int) -> Seen:
        """Return what is told of the first `tokens` cached tokens."""
        mass, squares, late = (None if x is None else x[:, :tokens] for x in (self.mass, self.squares, self.late))
        return replace(self, mass=mass, squares=squares, late=late)

    def after(self, suite: Suite, before: Seen) -> Seen:
        """Return what a batch and those before it tell, which know of fewer tokens: sums, features of all; local."""
        joined = _behind if self.each else _added
        mass, squares = joined(suite, before.mass, self.mass), _added(suite, before.squares, self.squares)
        late = _added(suite, before.late, self.late)
        rows = [x for x in (before.features, self.features) if x is not None]
        features = suite.concat(rows, 0) if len(rows) > 1 else self.features
        queries, heads = before.queries + self.queries, max(before.heads, self.heads)
        found = Seen(mass, 1 if self.each else queries, heads, squares, features, self.last, self.each)
        return replace(found, late=late, late_queries=before.late_queries + self.late_queries)


def _padded(suite: Suite, x: Value, tokens: int) -> Value:
    """Return rows [M, S] with zeros behind, [M, tokens]."""
    added = tokens - x.shape[1]
    return suite.concat([x, suite.public(torch.zeros(1), (x.shape[0], added))], 1) if added else x


def _behind(suite: Suite, old: Value | None, new: Value | None) -> Value | None:
    """Return the rows of a batch behind those of the batches before it."""
    if old is None or new is None:
        return old if new is None else new
    return suite.concat([_padded(suite, old, new.shape[1]), new], 0)


def _added(suite: Suite, old: Value | None, new: Value | None) -> Value | None:
    if old is None or new is None:
        return old if new is None else new
    return new + _padded(suite, old, new.shape[1])
