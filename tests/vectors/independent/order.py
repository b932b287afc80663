"""What depends on an order: ranks, top-k, thresholds, maximum; and what moves rows: shuffle, compaction, scan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tests.vectors.independent import incremental, points
from tests.vectors.independent.bits import Bit, digit_bits, less_than_zero
from tests.vectors.independent.formats import U, Words, reduce, word
from tests.vectors.independent.linear import product, reveal
from tests.vectors.independent.lookup import (
    at,
    exact_digits,
    hot,
    one_hot,
    points_below,
    prefix,
    scaled,
    selection_matrix,
    suffix,
    turned,
)
from tests.vectors.independent.world import Handover, Masked, Open, Shared, Steps, World, together


def _pairs(count: int) -> tuple[np.ndarray, np.ndarray]:
    return np.triu_indices(count, 1)


def _balance(t: Words, count: int) -> Words:
    """Sum of a value's lost comparisons less those of the earlier ones that lost against it."""
    i, j = _pairs(count)
    out = np.zeros((*t.shape[:-1], count), U)
    for column in range(count):
        out[..., column] = t[..., i == column].sum(-1, dtype=U) - t[..., j == column].sum(-1, dtype=U)
    return out


def rank_shares(w: World, x: Masked) -> Steps:
    """[rank], 0 for the largest."""
    count = x.shape[-1]
    bits = max(1, (count - 1).bit_length())
    i, j = _pairs(count)
    bit: Bit = yield from less_than_zero(w, x.each(lambda t: t[..., i] - t[..., j]), digit_bits(x.bits, bits))
    lost = bit.share(bits).each(lambda t: _balance(t, count))
    return lost.plus_public(np.broadcast_to(np.arange(count, dtype=U), x.shape))


def ranks(w: World, x: Masked) -> Steps:
    """<rank>."""
    return (yield from w.open((yield from rank_shares(w, x))))


def by_value(w: World, rank: Masked, k: int, bits: int) -> Shared:
    """Row j is one-hot at rank j."""
    return one_hot(w, rank, 0, rank.bits, bits).each(lambda t: np.swapaxes(t[..., :k], -1, -2))


def rank_indicator(w: World, rank: Masked, k: int, bits: int) -> Shared:
    """[rank < k]."""
    value = (reduce(np.arange(1 << rank.bits, dtype=U) - rank.mask[..., None], rank.bits) < U(k)).astype(U)
    return Shared(at(w.deal("rank indicator", value.shape, bits, value), rank.m), bits, 0)


def top_k(w: World, x: Masked, k: int, bits: int, order: str) -> Steps:
    """Selection matrix in order of value or of position, or the indicator alone."""
    rank = yield from ranks(w, x)
    if order == "value":
        return by_value(w, rank, k, bits)
    if order == "indicator":
        return rank_indicator(w, rank, k, bits)
    chosen = rank_indicator(w, rank, k, max(1, k.bit_length()))
    return (yield from selection_matrix(w, chosen, k, bits))


# ---- by threshold ----------------------------------------------------------------------------------------------------
@dataclass
class Candidates:
    """Bits opened ^ rho."""

    opened: Words
    rho: Words

    @property
    def mask(self) -> Words:
        """rho, as the dealer knows it."""
        return np.bitwise_xor.reduce(self.rho, 0)


def _histogram(w: World, value: Masked, among: Candidates | None, bits: int) -> Shared:
    if among is None:
        return one_hot(w, value, 0, value.bits, bits).each(lambda t: t.sum(-2, dtype=U))
    dealt = scaled(w, "candidate digit", value.mask, value.bits, bits, [U(1), among.mask])
    u = among.opened[..., None]
    chosen = u * dealt[:, 0] + (U(1) - U(2) * u) * dealt[:, 1]
    return Shared(reduce(np.stack([turned(c, value.m) for c in chosen]).sum(-2, dtype=U), bits), bits, 0)


def _reaching(w: World, counts: Masked, k: int, bits: int) -> Shared:
    size = 1 << counts.bits
    value = (reduce(np.arange(size, dtype=U) - counts.mask[..., :-1, None], counts.bits) >= U(k)).astype(U)
    dealt = w.deal("count reached", value.shape, bits, value)
    return Shared(reduce(at(dealt, counts.m[..., :-1]).sum(-1, dtype=U), bits), bits, 0)


def _pick(w: World, counts: Masked, t: Masked) -> Shared:
    """counts[t]."""
    found = one_hot(w, t, 0, t.bits, counts.bits)
    where = reduce(np.arange(1 << t.bits, dtype=U) - t.mask[..., None], t.bits).astype(np.int64)
    crossed = w.deal("count at threshold", counts.shape, counts.bits, np.take_along_axis(counts.mask, where, -1))
    out = (found.x * counts.m).sum(-1, dtype=U) - at(crossed, t.m)
    return Shared(reduce(out, counts.bits), counts.bits, 0)


def _agree(w: World, value: Masked, t: Masked, before: Candidates | None) -> Steps:
    """Candidates whose digit is the threshold's."""
    difference = Masked(reduce(value.m - t.m[..., None], value.bits), value.lam - t.lam[..., None], value.bits, 0)
    size = 1 << value.bits
    table = hot(difference.mask, size)
    index = difference.m
    if before is not None:
        rho = before.mask[..., None]
        table = np.concatenate([table * rho, table * (U(1) - rho)], -1)
        index = index + before.opened * U(size)
    dealt = w.deal("candidate table", table.shape, 1, table, "xor")
    rho_new = w.random("candidate mask", value.shape, 1)
    opened = yield Open(at(dealt, index) ^ rho_new, 1, "xor")
    return Candidates(opened, rho_new)


def _wider(w: World, t: Masked, bits: int) -> Shared:
    """A digit in a larger ring: sum_v v e_v."""
    dealt = scaled(w, "threshold digit", t.mask, t.bits, bits, [U(1)])[:, 0]
    values = reduce(t.m[..., None] - np.arange(1 << t.bits, dtype=U), t.bits)
    return Shared(reduce((dealt * values).sum(-1, dtype=U), bits), bits, 0)


def _threshold(w: World, digits: list[Masked], k: int, bits: int) -> Steps:
    """(<the k-th largest>, candidates before the lowest digit)."""
    n, batch = digits[0].shape[-1], digits[0].shape[:-1]
    count_bits = n.bit_length()
    above, whole = (w.sharing(np.zeros(batch, U), b) for b in (count_bits, bits))
    among: Candidates | None = None
    offset = sum(d.bits for d in digits)
    for level, value in enumerate(reversed(digits)):
        offset -= value.bits
        histogram = _histogram(w, value, among, count_bits)
        reached = histogram.each(lambda t: suffix(t)[..., 1:])
        both = np.concatenate([reached.x, np.zeros_like(reached.x[..., :1])], -1) + above.x[..., None]
        counts = yield from w.open(Shared(reduce(both, count_bits), count_bits, 0))
        if level == len(digits) - 1:
            return (yield from w.open(whole.plus(_reaching(w, counts, k, bits)))), among
        t = yield from w.open(_reaching(w, counts, k, value.bits))
        above = _pick(w, counts, t)
        place = U(offset)
        whole = whole.plus(_wider(w, t, bits).each(lambda v, o=place: v << o))  # type: ignore[misc]
        among = yield from _agree(w, value, t, among)
    raise AssertionError


def by_threshold(w: World, x: Masked, k: int, bits: int, digit_bits: int) -> Steps:
    """[..., n] -> marks at the k largest."""
    size = x.bits - 1
    count = -(-size // digit_bits)
    widths = [size // count + int(i < size % count) for i in range(count)]
    unsigned = x.plus_public(U(1 << (x.bits - 2)))
    digits = yield from exact_digits(w, unsigned.to(size), widths)
    t, among = yield from _threshold(w, digits, k, x.bits)
    spread = Masked(np.broadcast_to(t.m[..., None], x.shape), np.broadcast_to(t.lam[..., None], x.lam.shape), x.bits, x.frac)
    difference = unsigned.plus(spread, -1)
    below, equal = yield from together(less_than_zero(w, difference), _agree(w, digits[0], t.to(digits[0].bits), among))
    return (yield from _mark(w, below, equal, k, bits))


def _mark(w: World, below: Bit, equal: Candidates, k: int, bits: int) -> Steps:
    """[x > T] + relu(Q_(i - 1)) - relu(Q_i)."""
    n = equal.opened.shape[-1]
    size = n.bit_length() + 1
    dealt = w.deal("candidate bit", equal.opened.shape, size, equal.mask)
    eq = Shared((U(1) - U(2) * equal.opened) * dealt, size, 0).plus_public(equal.opened)
    lost = below.share(size).plus(eq)
    above = lost.each(lambda t: -t).plus_public(U(1))
    room = above.each(lambda t: -t.sum(-1, keepdims=True, dtype=U)).plus_public(U(k))
    running = np.broadcast_to(room.x, eq.x.shape) - prefix(eq.x)
    left = yield from w.open(Shared(reduce(running, size), size, 0))
    bit = yield from less_than_zero(w, left)
    positive = left.shared.plus(bit.times(left), -1)
    before = np.concatenate([room.x, positive.x[..., :-1]], -1)
    marks = Shared(reduce(above.x + before - positive.x, size), size, 0)
    if bits <= size:
        return marks.to(bits)
    opened = yield from w.open(marks.to(1))
    return one_hot(w, opened, 0, 1, bits).each(lambda t: t[..., 1])


POINT_BITS = 5  # of ranks that two parties read from point functions


# ---- maximum ---------------------------------------------------------------------------------------------------------
def _grouped(x: Masked, size: int, fill: np.uint64) -> Masked:
    missing = -x.shape[-1] % size

    def pad(t: Words, value: np.uint64) -> Words:
        padded = np.concatenate([t, np.full((*t.shape[:-1], missing), value, U)], -1)
        return padded.reshape(*t.shape[:-1], -1, size)

    lam = np.stack([pad(share, U(0)) for share in x.lam])
    return Masked(reduce(pad(x.m, fill), x.bits), lam, x.bits, x.frac)


def _at_first(w: World, rank: Masked, factor: Words, bits: int) -> Words:
    """[rank = 0] times a factor of which parties have shares [parties, ...]: the last entry is what all leave of it."""
    whole = hot(rank.mask, 1 << rank.bits) * factor.sum(0, dtype=U)[..., None]
    dealt = w.deal("rank one-hot", (*rank.shape, whole.shape[-1] - 1), bits, reduce(whole[..., :-1], bits))
    entries = np.concatenate([dealt, (factor - dealt.sum(-1, dtype=U))[..., None]], -1)
    return reduce(at(entries, rank.m), bits)


def _one(w: World, x: Masked) -> Words:
    """Shares of 1: party 0's."""
    out = np.zeros((w.parties, *x.shape), U)
    out[0] = U(1)
    return out


def _best(w: World, x: Masked, places: Masked | None, step: int, bits: int) -> Steps:
    """[value], [place modulo 2^bits] of the best of each group; places None: the member times `step`."""
    rank = yield from w.open((yield from rank_shares(w, x)).each(lambda t: t[..., :-1]))
    values = [x] if places is None else [x, places]
    above = [v.each(lambda t: t[..., :-1] - t[..., -1:]) for v in values]
    most = max(bits, x.bits) if places is None else max(v.bits for v in values)
    if w.parties == 2 and rank.bits >= POINT_BITS:
        tree = incremental.Tree((rank.bits,), (0,), 1 + len(above), most)
        payloads = np.stack([np.ones_like(rank.m), *(d.mask for d in above)], -1).reshape(1, -1, tree.values)
        read = incremental.read(w, rank, tree, payloads)[:, 0, :, 0].reshape(2, *rank.shape, tree.values)
        ones, *found = np.moveaxis(read, -1, 0)
    else:
        ones = _at_first(w, rank, _one(w, rank), most)
        found = [_at_first(w, rank, d.lam, d.bits) for d in above]
    out = []
    for v, d, masks in zip(values, above, found, strict=True):
        last = v.shared.each(lambda t: t[..., -1]).x
        more = (d.m * ones - masks).sum(-1, dtype=U)
        out.append(Shared(reduce(last + more, v.bits), v.bits, v.frac))
    if places is None:
        steps = np.arange(x.shape[-1], dtype=U) * U(step)
        place = Shared(reduce((ones * (steps[:-1] - steps[-1])).sum(-1, dtype=U), bits), bits, 0)
        out.append(place.plus_public(np.broadcast_to(steps[-1], x.shape[:-1])))
    return out


def maximum(w: World, x: Masked, reach: int, groups: Sequence[int]) -> Steps:
    """[maximum] over the last axis."""
    for size in groups[:-1]:
        x = yield from w.open((yield from _best(w, _grouped(x, size, word(-reach)), None, 0, 1))[0])
    return (yield from _best(w, x, None, 0, 1))[0]


def first_largest(w: World, x: Masked, reach: int, groups: Sequence[int], bits: int) -> Steps:
    """One-hot of the maximum: a block of places of each member of the last group."""
    count, block, places, step = x.shape[-1], int(np.prod(groups[:-1])), None, 1
    ring = (block - 1).bit_length()
    for size in groups[:-1]:
        before = None
        if places is not None:
            steps = np.arange(size, dtype=U) * U(step)
            before = _grouped(places, size, U(0)).plus_public(
                np.broadcast_to(steps, (*x.shape[:-1], -(-x.shape[-1] // size), size))
            )
        value, place = yield from _best(w, _grouped(x, size, word(-reach)), before, step, ring)
        x, places = yield from together(w.open(value), w.open(place))
        step *= size
    rank = yield from ranks(w, x)
    width = (block - 1).bit_length()
    place = None if places is None else places.to(width)
    if place is not None and w.parties == 2 and points.depth(rank.bits + width, bits) >= rank.bits > 0:
        row = points_below(w, rank, place, bits).x
        return _joined(row, block, count, bits)
    first = Shared(_at_first(w, rank, _one(w, rank), bits), bits, 0)
    if place is None:
        return first
    win = yield from w.open(first)
    dealt = scaled(w, "place", place.mask, width, bits, [U(1), win.mask])
    row = win.m[..., None] * turned(dealt[:, 0], place.m) - turned(dealt[:, 1], place.m)
    return _joined(row, block, count, bits)


def _joined(row: Words, block: int, count: int, bits: int) -> Shared:
    """The first entries of each member's row, member by member."""
    row = row[..., :block].reshape(*row.shape[:-2], -1)[..., :count]
    return Shared(reduce(row, bits), bits, 0)


# ---- rows ------------------------------------------------------------------------------------------------------------
def take(x: Words, index: Words) -> Words:
    """Rows [batch, rows, ...] in the order of index [batch, ...]."""
    where = index.reshape(*index.shape, *(1 for _ in x.shape[index.ndim :])).astype(np.int64)
    return np.take_along_axis(x, np.broadcast_to(where, (*index.shape, *x.shape[index.ndim :])), index.ndim - 1)


def shuffle(w: World, xs: Sequence[Shared | Masked]) -> Steps:
    """n passes; tensors [batch, rows, ...]."""
    n = w.parties
    keys = w.random("shuffle keys", (2, *xs[0].shape[:2]), 64)
    orders = [np.lexsort((k[0].view(np.int64), k[1].view(np.int64)), axis=-1).astype(U) for k in keys]
    rs = [w.random("shuffle mask", x.shape, x.bits) for x in xs]
    lams = [x.lam if isinstance(x, Masked) else w.random("open", x.shape, x.bits) for x in xs]
    dealt = []
    for x, lam, r in zip(xs, lams, rs, strict=True):
        d = reduce(lam.sum(0, dtype=U), x.bits)
        for party in range(n):
            d = take(d, orders[party])
            d = d + r[party] if party < n - 1 else d
        dealt.append(w.deal("shuffle", x.shape, x.bits, d))
    z = [
        x.m if isinstance(x, Masked) else reduce((x.x + lam).sum(0, dtype=U), x.bits)
        for x, lam in zip(xs, lams, strict=True)
    ]
    if sharings := [i for i, x in enumerate(xs) if isinstance(x, Shared)]:
        own = [xs[i].x + lams[i] for i in sharings]  # type: ignore[union-attr]
        yield Handover(own, [xs[i].bits for i in sharings], [(j, 0) for j in range(1, n)])
    bits = [x.bits for x in xs]
    for party in range(n - 1):
        z = [reduce(take(t, orders[party]) + r[party], b) for t, r, b in zip(z, rs, bits, strict=True)]
        held = [np.broadcast_to(t, (n, *t.shape)) for t in z]
        yield Handover(held, bits, [(party, party + 1)])
    out = []
    for x, t, d in zip(xs, z, dealt, strict=True):
        share = -d
        share[-1] += take(t, orders[-1])
        out.append(Shared(reduce(share, x.bits), x.bits, x.frac))
    return out


def compact_by_shuffle(w: World, marks: Masked, rows: Masked, k: int) -> Steps:
    """Shuffle marks, counts and rows; reveal the marks, then the marked rows' counts; move in the clear."""
    bits = max(1, k.bit_length())
    mark, count, moved = yield from shuffle(w, [marks.to(1), marks.to(bits).each(prefix), rows])
    seen = yield from reveal(mark)
    where = np.nonzero(seen)[-1].reshape(seen.shape[0], k).astype(U)
    reached = yield from reveal(count.each(lambda t: take(t, where)))
    source = take(where, np.argsort(reached, -1).astype(U))
    return moved.each(lambda t: take(t, source))


def compact_by_matrix(w: World, marks: Masked, rows: Masked, k: int) -> Steps:
    """The selection matrix, of which a band is opened, times the masked rows."""
    count = marks.shape[-1]
    row = np.arange(k)[:, None]
    column = row + np.arange(count - k + 1)
    whole = yield from selection_matrix(w, marks.shared, k, rows.bits)
    band = yield from w.open(whole.each(lambda t: t[..., row, column]))

    def spread(t: Words) -> Words:
        out = np.zeros((*t.shape[:-2], k, count), U)
        out[..., row, column] = t
        return out

    return product(w, "compaction", band.each(spread), rows, lambda a, b: np.einsum("bki,bic->bkc", a, b))


def copy_scan(w: World, marks: Shared, values: Shared, reverse: bool) -> Steps:
    """The value at the last marked place up to each, by doubling: pairs are opened, and what is taken is added."""
    pair = Shared(np.stack([marks.x, values.x], 1), min(marks.bits, values.bits), values.frac)
    step = 1
    while step < values.shape[-1]:

        def moved(t: Words, step: int = step) -> Words:
            out = np.zeros_like(t)
            if reverse:
                out[..., :-step] = t[..., step:]
            else:
                out[..., step:] = t[..., :-step]
            return out

        opened = yield from w.open(pair)
        free = opened.each(lambda t: U(0) - t[:1]).plus_public(U(1))
        pair = opened.shared.plus(product(w, "scan", free, opened.each(moved)))
        step *= 2
    return pair.each(lambda t: t[1])


def copied(marks: np.ndarray, values: np.ndarray, reverse: bool) -> np.ndarray:
    """Place by place."""
    out = np.zeros_like(values)
    places = range(values.shape[-1])
    for row, mark, value in zip(out, marks, values, strict=True):
        last = 0.0
        for place in reversed(places) if reverse else places:
            last = value[place] if mark[place] else last
            row[place] = last
    return out
