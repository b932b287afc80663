"""What becomes of tokens that go: nothing (`models.policies.eviction.Drop`), or their rows join those of tokens that stay.

`Nearest`: the nearest one that stays, by position; with prefix sums this costs hardly more than dropping. Averages of keys
mix positions, so by default values alone are averaged and keys stay what they are.

Leaks: nothing; who joins whom stays shared, how many join is public (docs/security.md, "Merging").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from models.policies.eviction import Event, Merge, Moving
from protocols.suite import Suite, Value

Rows = Literal["values", "both"]


@dataclass(frozen=True)
class Nearest(Merge):
    """A token that stays becomes the mean of itself and of those that go and are nearest to it, of two the left one's.

    Source: Liu et al., "Efficient Inference of Vision Instruction-Following Models with Elastic Cache", ECCV 2024, section
    3.2, there keys and values.
    """

    rows: Rows = "values"

    async def before(self, suite: Suite, event: Event) -> list[Moving]:
        """Find where the runs end that join one token: rounds of a scan, and 2."""
        keys, values, *scored = event.parts
        marks = event.chosen
        ends = await nearest_ends(suite, marks)
        ones = suite.public(1.0, (*marks.shape, 1))
        kept, joined = ([keys, *scored], [values]) if self.rows == "values" else (scored, [keys, values])
        runs = Moving(ends, [*joined, ones], event.count, "runs")
        return [runs, Moving(marks, kept, event.count)] if kept else [runs]

    async def after(self, suite: Suite, event: Event, moved: Sequence[Sequence[Value]]) -> Sequence[Value]:
        """Divide the sums by how many joined: 2 rounds (4 with more than two parties)."""
        *sums, counts = moved[0]
        rest = list(moved[1]) if len(moved) > 1 else []
        most = event.chosen.shape[-1] - event.count + 1.0
        like = event.parts[2 - len(sums) : 2]
        means = await suite.together(*(suite.averaged(x, counts, y, (1.0, most)) for x, y in zip(sums, like, strict=True)))
        return [rest[0], *means, *rest[1:]] if self.rows == "values" else [*means, *rest]


async def nearest_ends(suite: Suite, marks: Value) -> Value:
    """Return marks [sets, n] at the last place of each run of places that are nearest to one marked place, of two the left
    one's: as many as there are marks, the last place among them. A run's order is that of its mark.

    With the last mark p' before a place and the next one p'' (-n and 2 n beyond the ends), the left one is nearer unless
    p' + p'' < 2 p. So at marks, and from there on up to the middle; a run ends where that holds, but for the next place
    only if it is a mark itself.
    """
    count = marks.shape[-1]
    places = torch.arange(count)
    last, following = await suite.together(
        suite.copy_scan(marks, marks * (places + count)), suite.copy_scan(marks, marks * (places - 2 * count), reverse=True)
    )
    nearer = suite.with_bound(last + following + (count - 2 * places).double(), 3.0 * count)
    right = await suite.less_than_zero(nearer)
    left = -right + 1.0
    ends = left[:, :-1] - left[:, 1:] + marks[:, 1:]
    return suite.with_bound(suite.concat([ends, left[:, -1:]], 1), 2.0)
