"""What cache policies need of the suite `masked`: similarities, ranking, choosing and compaction, maximum and arg-max.

Rounds and bytes are those of the gates: `top_k`, `marking`, `compaction`, `ranking`, and those of making a value masked.
Leaks: nothing; what is opened is masked (docs/security.md, "Attention and ranking").
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from mpc.ledger import operation
from mpc.ring import RING_BITS
from protocols.masked import compaction, marking, partitioning, product, ranking, top_k
from protocols.masked.attention import query_bits
from protocols.masked.comparison import less_than_zero
from protocols.masked.context import require
from protocols.masked.conversion import Conversion
from protocols.masked.magnitudes import ROOM, SIMILARITY_ROOM
from protocols.masked.output import CHOICE_BITS
from protocols.masked.selection_matrix import check_budget, count_bits
from protocols.masked.shares import Masked
from protocols.masked.values import MaskedTensor, RankedRows
from protocols.schedule import together
from protocols.suite import Value

COMPARED_BITS = 32  # of the largest ring that is compared (`comparison`)
RANKED_BITS = 30  # ring of what is ranked


# ---- similarities ------------------------------------------------------------------------------------------------------
def relative(convert: Conversion, x: Value) -> MaskedTensor:
    """Return x less its last entry, modulo x's ring; their spread fits where they may not. Local."""
    t = convert.tensor(x)
    return t - t[..., -1:].expand(*t.shape)


async def scores(convert: Conversion, q: Value, k: Value) -> MaskedTensor:
    """Return exact products of queries and keys, Shared, with twice the fraction bits; 0 rounds when both are masked."""
    a, b = convert.tensor(q), convert.tensor(k)
    f, bits = convert.fraction_bits, query_bits(convert)
    magnitude = convert.bounds.here.range_bits + SIMILARITY_ROOM
    with operation("similarity"):
        ma, mb = await together(convert.masked(a, f, bits), convert.masked(b, f, bits))
        s = product.matmul(convert.context, ma, mb.map(lambda t: t.transpose(1, 2)))
        return convert.new(s, magnitude)


async def absolute(convert: Conversion, x: Value) -> MaskedTensor:
    """Return |x| = x - 2 [x < 0] x of queries, in their ring. 1 round."""
    t = convert.tensor(x)
    c, f = convert.context, convert.fraction_bits
    with operation("similarity"):
        m = await convert.masked(t, f, query_bits(convert))
        negative = await less_than_zero(c, m.to_ring(min(f + t.magnitude + 1, 32)))
        out = c.shared(m).add(negative.times(m).map(lambda v: v * -2))
        return convert.new(out, t.magnitude)


# ---- ranking -----------------------------------------------------------------------------------------------------------
async def _ranked(convert: Conversion, x: Value, bound: float, fraction_bits: int | None = None) -> Masked:
    """Return values below `bound`, masked as they are compared."""
    magnitude = max(1, math.ceil(math.log2(max(bound, 2.0**-20))))
    frac = min(fraction_bits or convert.fraction_bits, RANKED_BITS - 2 - magnitude)
    require(frac >= 0, "ranking", f"values up to 2^{magnitude} do not fit {RANKED_BITS} bits")
    # one bit more than |x| < 2^magnitude needs: rounding may give the bound itself, and a difference of both ends must fit
    return await convert.masked(convert.with_bound(x, 2.0**magnitude), frac, frac + magnitude + 3)


async def largest_rows(convert: Conversion, x: Value, k: int, bound: float) -> MaskedTensor:
    """Return the one-hot rows of the k largest, see `Suite.top_k`. 2 rounds, 1 more where x is not masked yet; the rows are
    made when they are needed. A single one is found in groups where that is worth its rounds (`ranking`)."""
    c = convert.context
    with operation("ranking"):
        m = await _ranked(convert, x, bound)
        if k != 1:
            check_budget("top-k", k, m.shape[-1])
            rank = await top_k.ranks(c, m)
            return MaskedTensor(c, 1, ranked=RankedRows(rank, k, lambda bits: top_k.by_value(c, rank, k, bits)))
        sizes = ranking.group_sizes(m.shape, m.bits, c.parties, c.prefer)
        row = await ranking.first_largest(c, m, 1 << (m.bits - 3), sizes, RING_BITS)
        return convert.new(row.map(lambda t: t[..., None, :]), 1)


async def keep_largest(
    convert: Conversion, x: Value, k: int, bound: float, fraction_bits: int | None = None
) -> MaskedTensor:
    """Return 1 at the k largest, else 0: by ranks or by threshold, see `marking`."""
    with operation("ranking"):
        m = await _ranked(convert, x, bound, fraction_bits)
        return convert.new(await marking.mark_largest(convert.context, m, k, RING_BITS), 1)


async def largest(convert: Conversion, x: Value, background: bool = False) -> MaskedTensor:
    """Return the maximum over the last axis, [..., n] -> [..., 1]; exact in fixed point. background: few bytes, whatever the
    rounds."""
    t = convert.tensor(x)
    c, f = convert.context, min(t.frac, convert.fraction_bits)
    least = f + t.magnitude + 3
    roomy = min(least + ROOM, COMPARED_BITS)  # what joins the maximum later may have larger bounds
    m = await convert.masked(t, f, max(least, roomy))
    with operation("max"):
        sizes = ranking.group_sizes(m.shape, m.bits, c.parties, "bytes" if background else c.prefer)
        found = await ranking.maximum(c, m, 1 << (f + t.magnitude), sizes)
    return convert.new(found.map(lambda v: v[..., None]), t.magnitude)


async def argmax(convert: Conversion, x: Value) -> MaskedTensor:
    """Return the one-hot of the maximum, in the ring of products with the token table; ties (within 2^-10) go to the earlier
    position."""
    t = convert.tensor(x)
    c, f = convert.context, min(CHOICE_BITS, convert.fraction_bits)
    with operation("argmax"):
        reach, bits = t.reach_bits(f)
        m = await convert.masked(t, f, bits)
        sizes = ranking.group_sizes(m.shape, bits, c.parties, c.prefer)
        return convert.new(await ranking.first_largest(c, m, reach, sizes, convert.bounds.table_bits), 1)


# ---- rows ----------------------------------------------------------------------------------------------------------------
async def choose(convert: Conversion, chosen: Value, rows: Value) -> MaskedTensor:
    """Return the rows of a small table: both factors are masked in the full ring, so that the result of a choice can be
    opened in it again."""
    t = convert.tensor(rows)
    with operation("selection"):
        e, m = await together(
            convert.masked(convert.tensor(chosen), 0, RING_BITS),
            convert.masked(t, min(t.frac, convert.fraction_bits), RING_BITS),
        )
        return convert.new(product.matmul(convert.context, e, m), t.magnitude)


async def compact(convert: Conversion, keep: Value, rows: Sequence[Value], k: int) -> list[Value]:
    """Return the marked rows in their order, see `Suite.compact`."""
    with operation("compaction"):
        ts = [convert.tensor(x) for x in rows]
        marks = convert.tensor(keep).form
        marks = marks.to_ring(min(marks.bits, count_bits(k) + 1))  # what is moved along with the rows is counts only
        moved = await compaction.compact(convert.context, marks, [t.form for t in ts], k)
        return [convert.new(x, t.magnitude) for x, t in zip(moved, ts, strict=True)]


async def partition(convert: Conversion, keep: Value, rows: Sequence[Value], k: int) -> list[Value]:
    """Return the marked rows in their order, then the others in theirs, see `Suite.partition`."""
    with operation("partition"):
        ts = [convert.tensor(x) for x in rows]
        marks = convert.tensor(keep).form
        marks = marks.to_ring(min(marks.bits, count_bits(keep.shape[-1]) + 1))  # what is moved along is counts only
        moved = await partitioning.partition(convert.context, marks, [t.form for t in ts], k)
        return [convert.new(x, t.magnitude) for x, t in zip(moved, ts, strict=True)]
