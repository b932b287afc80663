"""Which queries' attention a program asks for beside its output, and what it is told.

Axis names as in `protocols.suite`. Leaks: nothing; which queries they are is public (docs/security.md, "Policies").
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from mpc.constants import placed
from protocols.value import Value


@dataclass(frozen=True, eq=False, repr=False)
class Observed:
    """The queries of an attention with queries [G, R T, C] whose probabilities are added up, public.

    groups: int64 [M], rows: int64 [M, n]: row m of the sums [M, S] is over the n queries `rows[m]` of the key/value head
    `groups[m]`. squares: whether the sums of squared probabilities are wanted, too. late: int64, places among the n queries
    of a sum whose own sum is wanted, too; None: none. times: how many such sums are added up, of a prompt in batches.
    """

    groups: Tensor
    rows: Tensor
    squares: bool = False
    late: Tensor | None = None
    times: int = 1

    @classmethod
    def of_rows(cls, wanted: Tensor, groups: int) -> Observed:
        """Return the observation of the same rows, bool [R T], of every key/value head: one sum for each."""
        return cls(torch.arange(groups), wanted.nonzero()[:, 0].expand(groups, -1))

    @classmethod
    def of_heads(cls, heads: tuple[int, ...], group: int, tokens: tuple[int, int], squares: bool = False) -> Observed:
        """Return the observation of query heads, one sum for each: of their last `tokens[1]` of `tokens[0]` queries.
        group: R."""
        of = torch.tensor(heads)
        last = torch.arange(tokens[0] - tokens[1], tokens[0])
        return cls(of // group, (of % group * tokens[0])[:, None] + last, squares)

    @classmethod
    def of_queries(cls, groups: int, group: int, tokens: tuple[int, int]) -> Observed:
        """Return the observation of the last `tokens[1]` of `tokens[0]` queries, each by itself: a sum over the R heads of
        each key/value head, [G n, S]. group: R."""
        last = torch.arange(tokens[0] - tokens[1], tokens[0])
        rows = torch.arange(group) * tokens[0] + last[:, None]
        return cls(torch.arange(groups).repeat_interleave(tokens[1]), rows.repeat(groups, 1))

    @classmethod
    def of_single(cls, groups: int, group: int, tokens: tuple[int, int]) -> Observed:
        """Return the observation of the last `tokens[1]` of `tokens[0]` queries of each query head, each by itself: [G R n,
        S]. group: R."""
        last = torch.arange(tokens[0] - tokens[1], tokens[0])
        rows = (torch.arange(group)[:, None] * tokens[0] + last).reshape(-1, 1)
        return cls(torch.arange(groups).repeat_interleave(len(rows)), rows.repeat(groups, 1))

    def with_late(self, queries: int, late: int) -> Observed:
        """Return the observation with sums over the last `late` of `queries` queries of each head, too, where there are some
        and each sum is over the queries of one head behind those of another."""
        if not late:
            return self
        places = torch.arange(self.queries)
        return replace(self, late=places[places % queries >= queries - late])

    @property
    def lately(self) -> Observed | None:
        """Return the observation of the late queries alone, where they are wanted."""
        return None if self.late is None else Observed(self.groups, self.rows[:, self.late], times=self.times)

    @property
    def queries(self) -> int:
        """Return n, the queries of a sum."""
        return self.rows.shape[1]

    @property
    def summands(self) -> int:
        """Return how many probabilities a sum over all rows and batches has at most."""
        return self.rows.numel() * self.times

    @cached_property
    def _places(self) -> tuple[Tensor, bool]:
        """The largest row of all, and whether every key/value head has all rows up to it, in order."""
        most = self.rows.max()
        whole = torch.arange(int(most) + 1).expand(len(self.groups), -1)
        return most, torch.equal(self.groups, torch.arange(len(self.groups))) and torch.equal(self.rows, whole)

    def _all_of(self, groups: int, rows: int) -> bool:
        most, whole = self._places
        return whole and len(self.groups) == groups and int(most) == rows - 1

    def take(self, x: Tensor) -> Tensor:
        """Return the observed rows of x [G, R T, ...]: [M, n, ...]."""
        if self._all_of(x.shape[0], x.shape[1]):
            return x
        flat = (self.groups[:, None] * x.shape[1] + self.rows).reshape(-1)
        return x.reshape(-1, x.shape[2])[placed(flat, x.device)].reshape(*self.rows.shape, x.shape[2])

    def taken(self, x: Value) -> Value:
        """Return the observed rows of a value [G, R T, S]: [M, n, S]."""
        if self._all_of(x.shape[0], x.shape[1]):
            return x
        flat = (self.groups[:, None] * x.shape[1] + self.rows).reshape(-1)
        return x.reshape(x.shape[0] * x.shape[1], x.shape[2])[flat].reshape(*self.rows.shape, x.shape[2])


@dataclass(frozen=True, repr=False)
class Attended:
    """What an observed attention gives. out [G, R T, C], where values were given. mass [M, S]: what each cached token got
    from the observed queries; squares [M, S]: the sum of its squares, late [M, S]: what the late ones gave, where they were
    asked for. Secret."""

    out: Value | None
    mass: Value
    squares: Value | None = None
    late: Value | None = None
