"""What the suite `masked` adds for cache policies: ranking, compaction, and attention over chosen tokens.

Functions over a `MaskedSuite`; its methods of the same names call them. Rounds and bytes are those of the gates: `top_k`,
`threshold`, `compaction`, `gather`, `softmax`.

Leaks: nothing; what is opened is masked (docs/security.md, "Attention and ranking").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mpc import ring
from mpc.ledger import operation
from protocols.masked import compaction, product, softmax, threshold, top_k
from protocols.masked.comparison import less_than_zero
from protocols.masked.context import open_value, require
from protocols.masked.gather import chosen_scores, chosen_values, picked_scores
from protocols.masked.selection_matrix import count_bits
from protocols.masked.shares import Masked, Shared
from protocols.masked.truncation import open_cut
from protocols.suite import Value

if TYPE_CHECKING:
    from protocols.masked.suite import MaskedSuite
    from protocols.masked.values import MaskedTensor

FULL = 64
PAIRS = 64  # up to so many values are ranked by all pairs, more are compared with a threshold
OPENED_TOKENS = 1024  # up to so many tokens to choose from have their scores opened, see `selected_attention`
RANKED_BITS = 30  # ring of what is ranked
SIMILARITY_ROOM = 2  # products with cluster representatives may be 2^2 times larger than scores
SUM_ROOM = 7  # and are added up over the heads of a group, and doubled for the exact bound
DIGIT_BITS = 6
SCALE_BITS = 18  # fraction bits of 1/deviation and 1/sum


def _ranked_frac(suite: MaskedSuite, bound: float) -> tuple[int, int]:
    """(fraction bits, magnitude) in which values below `bound` are compared."""
    magnitude = max(1, math.ceil(math.log2(max(bound, 2.0**-20))))
    frac = min(suite.fraction_bits, RANKED_BITS - 2 - magnitude)
    require(frac >= 0, "ranking", f"values up to 2^{magnitude} do not fit {RANKED_BITS} bits")
    return frac, magnitude


def score_bits(suite: MaskedSuite) -> int:
    """Ring of a score with twice the fraction bits: its difference to another one can be checked."""
    return 2 * suite.fraction_bits + suite.range_bits + 1


def relative(suite: MaskedSuite, x: Value) -> MaskedTensor:
    """`Suite.relative`: x less its last entry, modulo x's ring; their spread fits where they may not."""
    t = suite.as_tensor(x)
    return t - t[..., -1:].expand(*t.shape)


def query_bits(suite: MaskedSuite) -> int:
    """Ring of a query: its scores and the sums of its similarities fit."""
    return 2 * suite.fraction_bits + suite.range_bits + SIMILARITY_ROOM + SUM_ROOM + 2


async def _ranked(suite: MaskedSuite, x: Value, bound: float) -> Masked:
    frac, magnitude = _ranked_frac(suite, bound)
    # one bit more than |x| < 2^magnitude needs: rounding may give the bound itself, and a difference of both ends must fit
    return await suite.masked(suite.with_bound(x, 2.0**magnitude), frac, frac + magnitude + 3)


async def ranked_rows(suite: MaskedSuite, x: Value, k: int, bound: float) -> MaskedTensor:
    """`Suite.top_k`. 2 rounds, 1 more where x is not masked yet."""
    with operation("ranking"):
        m = await _ranked(suite, x, bound)
        return suite.new(await top_k.top_k(suite.context, m, k, FULL), 1)


async def kept(suite: MaskedSuite, x: Value, k: int, bound: float) -> MaskedTensor:
    """`Suite.keep_largest`: by ranks up to `PAIRS` values, by threshold beyond."""
    with operation("ranking"):
        m = await _ranked(suite, x, bound)
        n = x.shape[-1]
        if n <= PAIRS:
            found = await top_k.top_k_indicator(suite.context, m, k, FULL)
        else:
            found = await threshold.top_k_by_threshold(suite.context, Masked(m.m, m.lam, m.bits, 0), k, FULL, DIGIT_BITS)
        return suite.new(found, 1)


async def compacted(suite: MaskedSuite, keep: Value, rows: Sequence[Value], k: int) -> list[Value]:
    """`Suite.compact`."""
    with operation("compaction"):
        ts = [suite.as_tensor(x) for x in rows]
        marks = suite.as_tensor(keep).form
        marks = marks.to_ring(min(marks.bits, count_bits(k) + 1))  # what is moved along with the rows is counts only
        moved = await compaction.compact(suite.context, marks, [t.form for t in ts], k)
        return [suite.new(x, t.magnitude) for x, t in zip(moved, ts, strict=True)]


async def similarity(suite: MaskedSuite, q: Value, k: Value) -> MaskedTensor:
    """`Suite.scores`: exact products, Shared, with twice the fraction bits; 0 rounds when both are masked already."""
    a, b = suite.as_tensor(q), suite.as_tensor(k)
    f = suite.fraction_bits
    magnitude = suite.range_bits + SIMILARITY_ROOM
    bits = query_bits(suite)
    with operation("similarity"):
        ma, mb = await suite.together(suite.masked(a, f, bits), suite.masked(b, f, bits))
        s = product.matmul(suite.context, ma, mb.map(lambda t: t.transpose(1, 2)))
        return suite.new(s, magnitude)


async def absolute(suite: MaskedSuite, x: Value) -> MaskedTensor:
    """`Suite.absolute`: x - 2 [x < 0] x, in the ring of a query."""
    t = suite.as_tensor(x)
    f = suite.fraction_bits
    with operation("similarity"):
        m = await suite.masked(t, f, query_bits(suite))
        negative = await less_than_zero(suite.context, m.to_ring(min(f + t.magnitude + 1, 32)))
        out = suite.context.shared(m).add(negative.times(m).map(lambda v: v * -2))
        return suite.new(out, t.magnitude)


async def choose(suite: MaskedSuite, chosen: Value, rows: Value) -> MaskedTensor:
    """`Suite.choose`: both factors masked in the full ring, so that the result can be opened in it again."""
    t = suite.as_tensor(rows)
    with operation("selection"):
        e, m = await suite.together(
            suite.masked(suite.as_tensor(chosen), 0, FULL), suite.masked(t, min(t.frac, suite.fraction_bits), FULL)
        )
        return suite.new(product.matmul(suite.context, e, m), t.magnitude)


async def finish(
    suite: MaskedSuite,
    s: Masked,
    shape: torch.Size,
    rows: softmax.Rows,
    weigh: Callable[[Masked], Shared],
    observed: Tensor | None = None,
    widths: tuple[int, int] | None = None,
) -> tuple[MaskedTensor, MaskedTensor | None]:
    """From masked scores [G, T, S] to the weighted values [G, T, C]: softmax with the division after the product.

    weigh: the bilinear map of masked numerators [G, T, S] with the values, modulo 2^64. observed: public bool [T]; the
    second result is the sum of these rows' probabilities [G, S]. widths: fraction bits of the numerators and the ring of
    `weigh`, where they are not `value_bits`.
    """
    c, f = suite.context, suite.fraction_bits
    frac, bits = widths or suite.value_bits(rows)
    scale = SCALE_BITS + 8
    if observed is not None:  # sums over the observed rows and over all heads must fit the ring
        frac = min(frac, FULL - 4 - scale - int(observed.sum()).bit_length() - shape[0].bit_length())
    y = Masked(rows.take(s.m), rows.take(s.lam), s.bits, s.frac)
    p, inverse = await softmax.numerators(c, y, rows, frac, bits, suite.range_bits, suite.flag_scores)
    dense = Masked(rows.put(p.m).reshape(shape), rows.put(p.lam).reshape(shape), p.bits, p.frac)
    bound = suite.magnitudes.value + 1
    wide = FULL if observed is not None else f + 4 + scale + bound + 2

    async def weighted() -> Masked:
        with operation("values"):
            o = suite.new(weigh(dense), softmax.PEAK_BITS + rows.longest.bit_length() + bound)
            width = o.magnitude + f + 4 + 2
            return await suite.masked(o, f + 4, max(width, f + 4 + scale + bound + 2))

    async def one_over() -> Masked:
        with operation("softmax sum"):
            r = suite.new(inverse.map(lambda t: t.reshape(*shape[:-1], 1)), softmax.PEAK_BITS + 1)
            return await suite.masked(r, scale, wide)

    o, r = await suite.together(weighted(), one_over())
    with operation("values"):
        out = suite.new(product.multiply(c, o, r), bound)
    if observed is None:
        return out, None
    with operation("received"):
        return out, _received(suite, dense, r, observed)


def _received(suite: MaskedSuite, p: Masked, r: Masked, observed: Tensor) -> MaskedTensor:
    """[sum over observed rows of p r]: p [G, T, S], r [G, T, 1] -> [G, S]; local."""
    index = observed.nonzero()[:, 0].to(suite.device)
    count = int(index.numel())

    def contract(a: Tensor, b: Tensor, bits: int) -> Tensor:
        return ring.matmul(b.transpose(1, 2), a, bits)[:, 0]

    total = product.product(suite.context, "received", p.map(lambda t: t[:, index]), r.map(lambda t: t[:, index]), contract)
    return suite.new(total, max(1, count.bit_length()))


async def attention(suite: MaskedSuite, q: Value, k: Value, v: Value, mask: Tensor | None) -> MaskedTensor:
    """`Suite.attention`."""
    shape = torch.Size((*q.shape[:-1], k.shape[1]))
    rows = softmax.Rows.of(shape, mask)
    s, mv = await _scores_and_values(suite, q, k, v, rows)
    out, _ = await finish(suite, s, shape, rows, lambda p: product.matmul(suite.context, p, mv))
    return out


async def attention_with_mass(
    suite: MaskedSuite, q: Value, k: Value, v: Value, mask: Tensor | None, observed: Tensor
) -> tuple[Value, Value]:
    """`Suite.attention_with_mass`: the attention's own rounds; the sum costs nothing but its dealt [G, S] elements."""
    shape = torch.Size((*q.shape[:-1], k.shape[1]))
    rows = softmax.Rows.of(shape, mask)
    s, mv = await _scores_and_values(suite, q, k, v, rows)
    out, received = await finish(suite, s, shape, rows, lambda p: product.matmul(suite.context, p, mv), observed)
    assert received is not None
    return out, received


async def biased_attention(suite: MaskedSuite, q: Value, k: Value, v: Value, bias: Value) -> MaskedTensor:
    """`Suite.biased_attention`: the bias joins the scores before they are opened."""
    shape = torch.Size((*q.shape[:-1], k.shape[1]))
    rows = softmax.Rows.of(shape, None)
    s, mv = await _scores_and_values(suite, q, k, v, rows, bias)
    out, _ = await finish(suite, s, shape, rows, lambda p: product.matmul(suite.context, p, mv))
    return out


async def _scores_and_values(
    suite: MaskedSuite, q: Value, k: Value, v: Value, rows: softmax.Rows, bias: Value | None = None
) -> tuple[Masked, Masked]:
    c, f = suite.context, suite.fraction_bits
    values = suite.with_bound(v, 2.0 ** (suite.magnitudes.value + 1))
    bits = score_bits(suite)

    async def scores() -> Masked:
        with operation("scores"):
            a, b = suite.as_tensor(q), suite.as_tensor(k)
            ma, mb = await suite.together(suite.masked(a, f, bits), suite.masked(b, f, bits, cut=False))
            s = product.matmul(c, ma, mb.map(lambda t: t.transpose(1, 2))).to_ring(bits)
            if bias is not None:
                shared = suite.as_tensor(bias).as_shared()
                added = shared.shift_left(s.frac - shared.frac).to_ring(bits)
                s = s.add(added.map(lambda t: t.expand(s.shape)))
            return await open_cut(c, s, f)

    async def cached() -> Masked:
        with operation("values"):
            return await suite.masked(values, f, suite.value_bits(rows)[1])

    found = await suite.together(scores(), cached())
    return found[0], found[1]


async def selected_attention(
    suite: MaskedSuite, q: Value, chosen: Value, k: Value, v: Value, always: tuple[Value, Value] | None
) -> MaskedTensor:
    """`Suite.selected_attention`. Values are weighed by three-factor products (`gather`), and keys too where there are more
    than `OPENED_TOKENS` to choose from: the rounds of `attention`. Fewer keys have their scores opened beside the choice,
    which takes a tenth of the dealt bytes, and a round more where the choice is not new.
    """
    c, f = suite.context, suite.fraction_bits
    bits = score_bits(suite)
    groups, heads = q.shape[0], q.shape[1]
    count, (clusters, size) = chosen.shape[1], k.shape[1:3]
    taken = count * size
    more = 0 if always is None else always[0].shape[1]
    shape = torch.Size((groups, heads, taken + more))
    rows = softmax.Rows.of(shape, None)
    widths = suite.selected_value_bits(rows)
    opened = clusters * size <= OPENED_TOKENS

    async def choice() -> Masked:
        with operation("selection"):
            return await suite.masked(suite.as_tensor(chosen), 0, widths[1])

    async def keys() -> tuple[Masked, Masked, Masked | None]:
        """Queries, the clusters' keys, or, if they are opened, their scores, and the scores of what always counts."""
        with operation("scores"):
            wanted = [k] if always is None else [k, always[0]]
            mq, mk, *rest = await suite.together(
                suite.masked(suite.as_tensor(q), f, bits), *(suite.masked(x, f, bits, cut=False) for x in wanted)
            )
            if opened:
                rest = [mk.move(lambda t: t.reshape(groups, clusters * size, t.shape[-1])), *rest]
            if not rest:
                return mq, mk, None
            products = [product.matmul(c, mq, x.move(lambda t: t.transpose(1, 2))) for x in rest]
            joined = Shared(torch.cat([s.x for s in products], -1), bits, 2 * f)
            scores = await open_cut(c, joined, f)
            if not opened:
                return mq, mk, scores
            others = scores.move(lambda t: t[..., clusters * size :])
            return mq, scores, others if more else None

    async def values() -> list[Masked]:
        with operation("values"):
            wanted = [v] if always is None else [v, always[1]]
            bounded = [suite.with_bound(x, 2.0 ** (suite.magnitudes.value + 1)) for x in wanted]
            return list(await suite.together(*(suite.masked(x, f, widths[1], cut=False) for x in bounded)))

    async def scores(e: Masked, mq: Masked, mk: Masked) -> Masked:
        with operation("scores"):
            if not opened:
                return await open_cut(c, chosen_scores(c, e, mq, mk), f)
            inside = mk.move(lambda t: t[..., : clusters * size].reshape(groups, heads, clusters, size))
            return await open_value(c, picked_scores(c, e.to_ring(inside.bits), inside))

    e, (mq, mk, others), mv = await suite.together(choice(), keys(), values())
    s = (await scores(e, mq, mk)).move(lambda t: t.reshape(groups, heads, taken))
    s = s if others is None else s.beside(others)

    def weigh(p: Masked) -> Shared:
        out = chosen_values(c, e, p.move(lambda t: t[..., :taken].reshape(groups, heads, count, size)), mv[0])
        return out if not more else out.add(product.matmul(c, p.move(lambda t: t[..., taken:]), mv[1]))

    out, _ = await finish(suite, s, shape, rows, weigh, widths=widths)
    return out


async def replace(suite: MaskedSuite, rows: Value, place: Value, new: Value) -> MaskedTensor:
    """`Suite.replace`: one round for the marks, one for the new rows, which are masked for the cache at once."""
    c, f = suite.context, suite.fraction_bits
    groups, count, channels = rows.shape
    old = suite.as_tensor(rows)
    with operation("replace"):
        e, m, fresh = await suite.together(
            suite.masked(suite.as_tensor(place), 0, FULL),
            suite.masked(old, f, FULL),
            suite.masked(suite.as_tensor(new), f, FULL),
        )
        change = fresh.map(lambda t: t.expand(groups, count, channels)).add(m.map(torch.neg))
        marks = e.map(lambda t: t.reshape(groups, count, 1).expand(groups, count, channels))
        out = c.shared(m).add(product.multiply(c, marks, change))
        return suite.new(await open_value(c, out), old.magnitude)
