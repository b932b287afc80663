"""Segments of a layer's cache: rows that a codec holds in another way than as they were computed.

New rows join the exact segment (`LayerCache.k` and `v`); what codecs hold lies in front of it. A token attends to all of
them in one softmax. A codec is a kind of segment: it says how queries meet its keys.

Leaks: nothing; which rows a segment holds is secret where a policy chose them, how many is public (docs/security.md,
"Policies").
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from protocols.observed import Observed
from protocols.suite import Linear, Part, Suite, Value


@dataclass(frozen=True)
class Segment:
    """Rows as a codec holds them, secret: keys [G', S, C'] and values [G'', S, C'']; queries meet them as they are. total:
    which of attention's sums its values join (`protocols.value.Part`)."""

    k: Value
    v: Value
    total: ClassVar[int] = 0

    @property
    def length(self) -> int:
        """Return S; public."""
        return self.v.shape[1]

    @property
    def rows(self) -> tuple[Value, ...]:
        """Return all that a session holds for it."""
        return self.k, self.v

    async def part(self, suite: Suite, q: Value) -> Part:
        """Return what attention takes of it for queries [G, n, C]."""
        return Part(q, self.k, self.v, self.total)

    async def whole(self, suite: Suite, found: Value) -> Value:
        """Return attention's sum [G, n, C''] of its `total` as that of values [G, n, C]."""
        return found


@dataclass(frozen=True)
class FewChannels(Segment):
    """Keys of which only some channels are held, others for each head. chosen: one-hot rows [G, C', C], secret."""

    chosen: Value

    @property
    def rows(self) -> tuple[Value, ...]:
        return self.k, self.v, self.chosen

    async def part(self, suite: Suite, q: Value) -> Part:
        """As in `Segment`; queries meet them with the same channels. 1 round."""
        return Part(await suite.choose_channels(q, self.chosen), self.k, self.v)


@dataclass(frozen=True)
class LowRank(Segment):
    """Products of low rank, of all heads together, in place of values: v [1, S, r'], and of keys: k [1, S, r]; or whole
    keys [G, S, C]. values: fixed secret weights [G, r', C] that make values of v. keys: [G, C, r], which make keys of k;
    None for whole ones. angles: public cosines and sines [S, C] where keys turn; None where they do not."""

    values: Value
    keys: Value | None = None
    angles: tuple[Tensor, Tensor] | None = None
    total: ClassVar[int] = 1

    async def part(self, suite: Suite, q: Value) -> Part:
        """As in `Segment`. Queries meet k in its r channels: 2 rounds, n r elements a head; keys that turn are made and
        turned anew: 1 round, G S C elements."""
        if self.keys is None:
            return Part(q, self.k, self.v, self.total)
        groups, rows, channels = q.shape
        count, rank = self.k.shape[1:]
        if self.angles is None:
            low = await suite.linear(q, Linear(self.keys))
            return Part(await suite.mask_queries(low.reshape(1, groups * rows, rank)), self.k, self.v, self.total)
        up = self.keys.permute(2, 0, 1).reshape(rank, groups * channels)
        made = await suite.linear(self.k.reshape(count, rank), Linear(up))
        k = await suite.rotate(made.reshape(count, groups, channels).permute(1, 0, 2), *self.angles)
        return Part(q, k, self.v, self.total)

    async def whole(self, suite: Suite, found: Value) -> Value:
        """As in `Segment`. 1 round, n r' elements a head."""
        return await suite.linear(found, Linear(self.values))


async def attention_over(
    suite: Suite, segments: Sequence[Segment], q: Value, mask: Tensor | None = None, observed: Observed | None = None
) -> tuple[Value, Value | None]:
    """Return the attention of queries [G, n, C] to all rows of segments, [G, n, C], and the sums [M, S] of `observed`
    probabilities, see `Suite.attention_over`."""
    if len(segments) == 1 and type(segments[0]) is Segment:
        k, v = segments[0].k, segments[0].v
        if observed is not None:
            found = await suite.observed_attention(q, k, v, mask, observed)
            assert found.out is not None
            return found.out, found.mass
        return await suite.attention(q, k, v, mask), None
    parts = await suite.together(*(segment.part(suite, q) for segment in segments))
    sums, mass = await suite.attention_over(parts, mask, observed)
    kinds = {segment.total: segment for segment in segments}
    shaped = [one.reshape(*q.shape[:2], one.shape[2]) for one in sums]  # heads may be grouped as a codec has them
    whole = [await kinds[total].whole(suite, one) for total, one in zip(sorted(kinds), shaped, strict=True)]
    return functools.reduce(operator.add, whole), mass


def own_rows(suite: Suite, x: Value) -> Value:
    """Return cached rows [G, S, C] in storage of their own, so that what they were cut from can go; local."""
    return suite.concat([x], 1)
