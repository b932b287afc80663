"""One-time tables over public digits: one-hot vectors, point functions, digits, zero tests, the selection matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tests.vectors.independent import points
from tests.vectors.independent.formats import U, Words, high, packed_size, reduce
from tests.vectors.independent.incremental import Tree, read
from tests.vectors.independent.world import Masked, Shared, Steps, World, elements, together


def low(x: Words, width: int) -> Words:
    """The lowest bits."""
    return reduce(x, width)


def digit(x: Words, start: int, width: int, bits: int) -> Words:
    """Bits start .. start + width of x modulo 2^bits."""
    return low(high(x, start, bits), width)


def at(table: Words, index: Words) -> Words:
    """table[..., index[...]]: an entry of each table [..., entries]; leading axes of the table may be more."""
    where = np.broadcast_to(index[..., None].astype(np.int64), (*table.shape[:-1], 1))
    return np.take_along_axis(table, where, -1)[..., 0]


def hot(index: Words, size: int) -> Words:
    """[...] -> [..., size] with a one at each index."""
    return (index[..., None] == np.arange(size, dtype=U)).astype(U)


def scaled(w: World, op: str, lam_digit: Words, width: int, bits: int, factors: Sequence[Words | np.uint64]) -> Words:
    """Shares [parties, factors, ..., 2^width] of factor * e(lam digit)."""
    e = hot(lam_digit, 1 << width)
    value = np.stack([e * (f if np.ndim(f) == 0 else np.asarray(f)[..., None]) for f in factors])
    return w.deal(op, value.shape, bits, value)


def turned(dealt: Words, m_digit: Words) -> Words:
    """out[..., v] = dealt[..., m_digit - v mod 2^w]."""
    size = dealt.shape[-1]
    where = (m_digit[..., None] - np.arange(size, dtype=U)) & U(size - 1)
    return np.take_along_axis(dealt, np.broadcast_to(where, dealt.shape).astype(np.int64), -1)


# ---- one-hot ---------------------------------------------------------------------------------------------------------
def one_hot_table(w: World, x: Masked, start: int, width: int, bits: int) -> Shared:
    """One-hot vector of a digit, from a dealt table."""
    dealt = scaled(w, "one-hot", digit(x.mask, start, width, x.bits), width, bits, [U(1)])[:, 0]
    return Shared(turned(dealt, digit(x.m, start, width, x.bits)), bits, 0)


def _keys(w: World, alphas: Words, width: int, bits: int) -> tuple[Words, list[points.Key]]:
    """Root seeds [parties, count, 2] and keys of two parties for points of `width` bits."""
    count, depth, leaf = len(alphas), points.depth(width, bits), 256 // points.entry_bits(bits)
    roots = w.random("point function roots", (count, 2), 64)
    keys = [
        points.generate(int(alpha), [points.seed_of(roots[p, i]) for p in range(2)], width, bits)
        for i, alpha in enumerate(alphas)
    ]
    words = np.array([[np.frombuffer(k[0][level], "<u8") for k in keys] for level in range(depth)], U)
    controls = np.array([[k[1][level] for k in keys] for level in range(depth)], U)
    w.common("point function seeds", (depth, count, 2), 64, words)
    w.common("point function controls", (depth, count), 2, controls)
    w.common("point function output", (count, leaf), bits, np.stack([k[2] for k in keys]))
    return roots, keys


def _vectors(roots: Words, keys: list[points.Key], bits: int) -> Words:
    """Both parties' whole vectors [2, count, 2^width]."""
    return np.array([[points.evaluate(p, points.seed_of(roots[p, i]), *key, bits) for i, key in enumerate(keys)]
                     for p in range(2)], U)  # fmt: skip


def one_hot_points(w: World, x: Masked, start: int, width: int, bits: int) -> Shared:
    """The same from point functions; two parties."""
    roots, keys = _keys(w, digit(x.mask, start, width, x.bits).reshape(-1), width, bits)
    whole = _vectors(roots, keys, bits).reshape(2, *x.shape, 1 << width)
    return Shared(turned(whole, digit(x.m, start, width, x.bits)), bits, 0)


def points_below(w: World, of: Masked, x: Masked, bits: int) -> Shared:
    """[of = 0] times the one-hot vector of x, from point functions of both; two parties."""
    alphas = ((of.mask << U(x.bits)) | x.mask).reshape(-1)
    roots, keys = _keys(w, alphas, of.bits + x.bits, bits)
    whole = _vectors(roots, keys, bits).reshape(2, *x.shape, 1 << of.bits, 1 << x.bits)
    below = np.stack([np.take_along_axis(one, of.m[..., None, None].astype(np.int64), -2)[..., 0, :] for one in whole])
    return Shared(turned(below, x.m), bits, 0)


def by_points(count: int, width: int, bits: int, parties: int) -> bool:
    """The rule that dealer and parties share: the dealing that is done sooner (docs/vectors.md)."""
    depth, leaf = points.depth(width, bits), 256 // points.entry_bits(bits)
    if parties != 2 or depth < 1:
        return False
    entries = count << width
    loose = 2.0e-9 if bits % 8 else 0.0
    size = packed_size(entries, bits)
    table = entries * (2.5e-9 + loose) + size / 1.25e8 + entries * (2.0e-9 + loose)
    key = packed_size(count * 2 * depth, 64) + packed_size(count * depth, 2) + packed_size(count * leaf, bits)
    blocks = 2 * ((1 << (depth + 1)) - 1)
    party = count * blocks * 1.0e-8 + entries * 4.4e-9 + 2.8e-4
    return count * (depth + 1) * 1.1e-7 + 2.8e-4 + 2 * key / 1.25e8 + party < table


def one_hot(w: World, x: Masked, start: int, width: int, bits: int) -> Shared:
    """Dealt the cheaper way."""
    way = one_hot_points if by_points(elements(x.shape), width, bits, w.parties) else one_hot_table
    return way(w, x, start, width, bits)


# ---- digits ----------------------------------------------------------------------------------------------------------
def high_part(w: World, x: Masked, cut: int) -> Shared:
    """[x >> cut], the borrow taken out by a table over the public low part."""
    bits = x.bits - cut
    borrow = np.arange(1 << cut, dtype=U) < low(x.mask, cut)[..., None]
    value = high(x.mask, cut, x.bits)[..., None] + borrow.astype(U)
    out = -at(w.deal("borrow table", value.shape, bits, value), low(x.m, cut))
    out[0] += high(x.m, cut, x.bits)
    return Shared(reduce(out, bits), bits, 0)


def exact_digits(w: World, x: Masked, widths: Sequence[int]) -> Steps:
    """Digits low to high, each masked by itself."""
    if len(widths) == 1:
        return [Masked(x.m, x.lam, x.bits, 0)]
    half = max(h for h in range(1, len(widths) // 2 + 1) if h == 1 or sum(widths[:h]) <= 8)
    cut = sum(widths[:half])

    def upper() -> Steps:
        opened = yield from w.open(high_part(w, x, cut))
        return (yield from exact_digits(w, opened, widths[half:]))

    lower, higher = yield from together(exact_digits(w, x.to(cut), widths[:half]), upper())
    return [*lower, *higher]


# ---- zero tests ------------------------------------------------------------------------------------------------------
def zero_by_points(w: World, x: Masked, bits: int) -> Shared:
    """[x = 0] by a point function of all but the e lowest bits, whose payloads are e's one-hot vector; two parties."""
    width = next(p for p in (8, 16, 32, 64) if p >= bits)
    e = min((128 // width).bit_length() - 1, x.bits - 1)
    tree = Tree([x.bits - e], [0], 1 << e, bits)
    found = read(w, x, tree, hot(low(x.mask, e), 1 << e).reshape(1, -1, 1 << e))[:, 0, :, 0]
    return Shared(at(found, low(x.m, e).reshape(-1)).reshape(2, *x.shape), bits, 0)


def zero_by_table(w: World, x: Masked, bits: int) -> Shared:
    """[x = 0] by lam's one-hot vector, read at m."""
    table = scaled(w, "zero", x.mask, x.bits, bits, [U(1)])[:, 0]
    return Shared(at(table, x.m), bits, 0)


def zero_of_few_bits(w: World, x: Masked, bits: int) -> Shared:
    """The one of both that is done sooner; with more than two parties the table."""
    count, width = elements(x.shape), next(p for p in (8, 16, 32, 64) if p >= bits)
    e = min((128 // width).bit_length() - 1, x.bits - 1)
    depth, loose = x.bits - e, 2.0e-9 if bits % 8 else 0.0
    entries = count << x.bits
    table = entries * (4.5e-9 + 2 * loose) + packed_size(entries, bits) / 1.25e8
    key = packed_size(2 * depth * count, 64) + packed_size(count << e, bits)
    points = 2 * key / 1.25e8 + 9e-4 + count * (1.1e-6 + 7.7e-8 * depth)
    return zero_by_points(w, x, bits) if w.parties == 2 and points < table else zero_by_table(w, x, bits)


# ---- one-hot vectors dealt as bits -----------------------------------------------------------------------------------
def signed_one_hot(w: World, x: Masked, start: int, width: int, bits: int) -> tuple[Words, Words]:
    """Every party's vector [parties, ..., 2^width] of sign e(d), and the sign modulo 2^64, as the dealer knows it."""
    size, m_digit, lam_digit = 1 << width, digit(x.m, start, width, x.bits), digit(x.mask, start, width, x.bits)
    if w.parties > 2:
        dealt = scaled(w, "one-hot", lam_digit, width, bits, [U(1)])[:, 0]
        return turned(dealt, m_digit), np.ones(x.shape, U)
    each = min(size, 64)
    groups = hot(lam_digit, size).reshape(*x.shape, size // each, each)
    value = (groups << np.arange(each, dtype=U)).sum(-1, dtype=U)
    dealt = w.deal("one-hot bits", value.shape, each, value, "xor")
    ones = ((dealt[..., None] >> np.arange(each, dtype=U)) & U(1)).reshape(2, *x.shape, size)
    sign = U(2) * at(ones[0], lam_digit) - U(1)
    vector = turned(ones, m_digit)
    vector[1] = -vector[1]
    return vector, sign


def signed_tables(w: World, x: Shared, low: int, width: int, bits: int) -> Steps:
    """What is read of the tables 5 j^2 - 100 and 7 - j^3, and the sign."""
    m = yield from w.open(x)
    vector, sign = signed_one_hot(w, m, low, width, bits)
    found = np.stack([(vector * table).sum(-1, dtype=U) for table in _tables(width)], 1)
    dealt = w.deal("sign", x.shape, bits, sign)
    return [Shared(reduce(found, bits), bits, 0), Shared(dealt, bits, 0)]


def _tables(width: int) -> tuple[Words, Words]:
    j = np.arange(1 << width, dtype=U)
    return U(5) * j * j - U(100), U(7) - j * j * j


def judge_signed(x: np.ndarray, low: int, width: int, bits: int) -> Any:
    """sign T[d] of both tables; no bit is below the digit, so nothing borrows."""

    def check(found: Sequence[np.ndarray]) -> None:
        values, sign = found
        assert (np.abs(sign) == 1).all()
        place = x.astype(np.int64) % (1 << width)
        for value, table in zip(values, _tables(width), strict=True):
            assert (value * sign == table.view(np.int64)[place]).all()

    return check


# ---- the selection matrix --------------------------------------------------------------------------------------------
def prefix(t: Words) -> Words:
    """Running sums along the last axis."""
    return np.cumsum(t, -1, dtype=U)


def suffix(t: Words) -> Words:
    """Sums of all that follow, the own one included."""
    return np.flip(prefix(np.flip(t, -1)), -1)


def selection_matrix(w: World, indicator: Shared, k: int, bits: int) -> Steps:
    """Indicator [..., C] -> one-hot rows [..., k, C], from the opened running counts."""
    count = indicator.shape[-1]
    if k == count:
        return w.sharing(np.broadcast_to(np.eye(count, dtype=U), (*indicator.shape[:-1], count, count)), bits)
    width = max(1, k.bit_length())
    counts = yield from w.open(indicator.to(width).each(prefix))

    def rows(t: Words) -> Words:
        reached = np.swapaxes(suffix(t)[..., 1 : k + 1], -1, -2)
        return reached - np.concatenate([np.zeros_like(reached[..., :1]), reached[..., :-1]], -1)

    return one_hot(w, counts, 0, width, bits).each(rows)
