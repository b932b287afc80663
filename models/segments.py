"""Segments of a layer's cache: rows that a codec holds in another way than as they were computed.

New rows join the exact segment (`LayerCache.k` and `v`); what codecs hold lies in front of it. A token attends to all of
them in one softmax. A codec is a kind of segment: it says how queries meet its keys.

Leaks: nothing; which rows a segment holds is secret where a policy chose them, how many is public (docs/security.md,
"Policies").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from protocols.observed import Observed
from protocols.suite import Part, Suite, Value


@dataclass(frozen=True)
class Segment:
    """Rows as a codec holds them, secret: keys [G', S, C'] and values [G'', S, C'']; queries meet them as they are."""

    k: Value
    v: Value

    @property
    def length(self) -> int:
        """Return S; public."""
        return self.k.shape[1]

    async def part(self, suite: Suite, q: Value) -> Part:
        """Return what attention takes of it for queries [G, n, C]."""
        return Part(q, self.k, self.v)


@dataclass(frozen=True)
class FewChannels(Segment):
    """Keys of which only some channels are held, others for each head. chosen: one-hot rows [G, C', C], secret."""

    chosen: Value

    async def part(self, suite: Suite, q: Value) -> Part:
        """As in `Segment`; queries meet them with the same channels. 1 round."""
        return Part(await suite.choose_channels(q, self.chosen), self.k, self.v)


async def attention_over(
    suite: Suite, segments: Sequence[Segment], q: Value, mask: Tensor | None = None, observed: Observed | None = None
) -> tuple[Value, Value | None]:
    """Return the attention of queries [G, n, C] to all rows of segments whose values are as wide, [G, n, C], and the sums
    [M, S] of `observed` probabilities, see `Suite.attention_over`."""
    if len(segments) == 1 and type(segments[0]) is Segment:
        k, v = segments[0].k, segments[0].v
        if observed is not None:
            found = await suite.observed_attention(q, k, v, mask, observed)
            assert found.out is not None
            return found.out, found.mass
        return await suite.attention(q, k, v, mask), None
    parts = await suite.together(*(segment.part(suite, q) for segment in segments))
    (out,), mass = await suite.attention_over(parts, mask, observed)
    return out, mass


def own_rows(suite: Suite, x: Value) -> Value:
    """Return cached rows [G, S, C] in storage of their own, so that what they were cut from can go; local."""
    return suite.concat([x], 1)
