"""Softmax and what it is made of: hashes of bins, zero tests of long words, exponentials."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Context, Decimal
from functools import cache
from functools import reduce as fold
from typing import Any

import numpy as np

from tests.vectors.independent import wide
from tests.vectors.independent.curves import power
from tests.vectors.independent.formats import Stream, U, Words, reduce, word
from tests.vectors.independent.linear import multiply, open_cut, truncate
from tests.vectors.independent.lookup import at, digit, hot, low, one_hot, scaled, turned, zero_by_points, zero_of_few_bits
from tests.vectors.independent.rows import Flags, standard
from tests.vectors.independent.wide import Wide, cut_masked, veiled_sum, words
from tests.vectors.independent.world import Masked, Open, Shared, Steps, World

DECIMALS = Context(prec=48)


# ---- powers of 2^(3/2) -----------------------------------------------------------------------------------------------
def _scaled(octaves: Decimal, bits: int) -> int:
    return int(
        DECIMALS.multiply(DECIMALS.power(Decimal(2), octaves), Decimal(1 << bits)).to_integral_value(context=DECIMALS)
    )


@cache
def powers(sign: int, width: int, frac: int, offset: int, out: int) -> np.ndarray[Any, Any]:
    """About 2^out 2^(offset + 3/2 sign k / 2^frac): products of two rounded factors, rounded; integers."""
    half = width // 2
    guard = 62 - math.ceil(max(offset, offset + sign * 1.5 * 2.0 ** (width - frac))) - out
    steps = [DECIMALS.divide(Decimal(3 * sign * (i << half)), Decimal(2 << frac)) for i in range(1 << (width - half))]
    upper = np.array([_scaled(DECIMALS.add(Decimal(offset), s), out + guard) for s in steps], object)
    lower = np.array(
        [_scaled(DECIMALS.divide(Decimal(3 * sign * j), Decimal(2 << frac)), 30) for j in range(1 << half)], object
    )
    return np.asarray((upper[:, None] * lower + (1 << (guard + 29))) >> (guard + 30)).reshape(-1)


# ---- one-hot vectors as bits, any number of parties ------------------------------------------------------------------
def one_hot_bits(w: World, op: str, lam_digit: Words, width: int) -> Words:
    """XOR shares [parties, ..., 2^width] of e(lam digit), a bit an entry."""
    size = 1 << width
    each = min(size, 64)
    groups = hot(lam_digit, size).reshape(*lam_digit.shape, size // each, each)
    value = (groups << np.arange(each, dtype=U)).sum(-1, dtype=U)
    dealt = w.deal(op, value.shape, each, value, "xor")
    return ((dealt[..., None] >> np.arange(each, dtype=U)) & U(1)).reshape(w.parties, *lam_digit.shape, size)


# ---- exponentials ----------------------------------------------------------------------------------------------------
def by_window(w: World, x: Masked, frac: int, bits: int) -> Steps:
    """[2^(3/2 x)] with `frac` fraction bits modulo 2^bits, opened between."""
    circle, start, count = 3 << (x.bits - x.frac - 1), x.frac + 1, 64 - frac
    modulus = (1 << circle) - 1

    def turn(values: Any, places: np.ndarray[Any, Any]) -> Any:
        """2^places times values, modulo 2^circle - 1: at party 0 to n - 1."""
        return (values << places.astype(object)) % modulus

    value = powers(-1, start, x.frac, 0, 30)[low(x.mask, start).astype(np.int64)]
    whole = turn(value, (14 - 3 * (x.mask >> U(start)).astype(np.int64)) % circle)
    held = w.around("exponential", (circle // 64, *x.shape), whole)
    entry = (
        turn(held, 3 * (x.m >> U(start)).astype(np.int64))
        % (1 << 128)
        * powers(1, start, x.frac, 0, 20)[low(x.m, start).astype(np.int64)]
    )
    return (yield from cut_masked(w, Wide(entry % (1 << (bits + count)), bits + count, frac + count), count))


def by_bits(w: World, x: Masked, frac: int, bits: int) -> Steps:
    """The same from one-hot bits; two parties."""
    start, width = x.frac + 2, x.bits - x.frac - 2
    lam_digit = digit(x.mask, start, width, x.bits)
    ones = one_hot_bits(w, "exponential bits", lam_digit, width)
    vector = turned(ones, digit(x.m, start, width, x.bits)).astype(object)  # [d]
    read = np.asarray(sum(vector[..., -d] * (1 << (38 - 6 * d)) for d in range(1, 7)))
    factor = powers(1, start, x.frac, -6, 26)[low(x.m, start).astype(np.int64)]
    signed = np.stack([read[0] * factor, -read[1] * factor])
    u = yield from open_cut(w, Shared(words(signed, 60), 60, 58), 57 - frac)
    sign = 2 * at(ones[0], lam_digit).astype(object) - 1
    known = sign * powers(-1, start, x.frac, 0, 20)[low(x.mask, start).astype(np.int64)]
    found = yield from veiled_sum(w, "exponential", [(u, known, 0)], (bits + 21, 21))
    return Masked(found.m, found.lam, bits, frac)


# ---- zero tests of long words ----------------------------------------------------------------------------------------
def _equal(w: World, m: list[Words], lam: list[Words], width: int) -> Steps:
    """Tables of [digit = lam's], as many as fit a word; what is opened of a word is a number of as many bits, XOR rho."""
    each = 64 >> width
    groups = range(0, len(lam), each)
    value = np.stack([sum((U(1) << (lam[g + i] + U(i << width)) for i in range(1, each)), U(1) << lam[g]) for g in groups])
    table = w.deal("equal digits", value.shape, 64, value, "xor")
    rho = w.random("mask bits", value.shape, each, "xor")
    looked = np.zeros_like(table)
    for n, g in enumerate(groups):
        for i in range(each):
            looked[:, n] |= ((table[:, n] >> (m[g + i] + U(i << width))) & U(1)) << U(i)
    opened = yield Open(looked ^ rho, each, "xor")
    return list(opened), [U((1 << each) - 1) - r for r in np.bitwise_xor.reduce(rho, 0)]


def zero_words(w: World, x: Masked, way: str, bits: int) -> Steps:
    """[x = 0] modulo 2^bits; x.mask is what m equals where x is zero."""
    width, rounds = (6, 1) if way == "one" else (4, 2)
    each = 64 >> width
    m, lam = ([(t >> U(i)) & U((1 << width) - 1) for i in range(0, x.bits, width)] for t in (x.m, x.mask))
    for _ in range(rounds):
        for t in (m, lam):
            t += [np.zeros(x.shape, U)] * (-len(t) % each)
        m, lam = yield from _equal(w, m, lam, width)
    place, index = (sum((t[i] << U(i * each) for i in range(1, len(t))), t[0]) for t in (m, lam))
    last = each * len(lam)
    table = scaled(w, "all equal", index, last, bits, [U(1)])[:, 0]
    return Shared(at(table, place), bits, 0)


# ---- the shift -------------------------------------------------------------------------------------------------------
class _Xored(Masked):
    """Words under an XOR mask."""

    @property
    def mask(self) -> Words:
        return np.asarray(np.bitwise_xor.reduce(self.lam, 0))


@dataclass(frozen=True)
class Spread:
    """Bits before the point in which differences are read, and the highest bin that is told from those below it."""

    range_bits: int
    limit: float

    @property
    def held(self) -> int:
        """Bits before the point in which exponents are opened."""
        return max(self.range_bits + 1, 8)

    @property
    def size(self) -> int:
        """Bins around the circle."""
        return 1 << (self.range_bits - 2)

    @property
    def reach(self) -> int:
        """D: bins above the last score's."""
        return -(-int(self.limit) // 4)

    @property
    def order(self) -> list[int]:
        """The bins, the highest first."""
        return [(self.size // 2 - 1 - i) % self.size for i in range(self.size)]

    @property
    def far(self) -> list[int]:
        """Those that are flagged."""
        return [d % self.size for d in range(-self.size // 2, self.size // 2) if abs(d) > self.reach]

    def above(self, by_bin: Words) -> Words:
        """Entries of the bins D to 1 of those in order."""
        return by_bin[..., self.size // 2 - 1 - self.reach : self.size // 2 - 1]


def _hashed(w: World, y: Masked, rows: int, spread: Spread, form: str, flags: Flags) -> Steps:
    """[no score lies in bin d or above], by hashes: form "one", "two" or "points"."""
    width, start = spread.range_bits - 2, y.frac + 2
    bits = max({"points": 46, "one": 48, "two": 64}[form], 34 + (rows * spread.reach - 1).bit_length())
    ones = one_hot_bits(w, "histogram bits", digit(y.mask, start, width, y.bits), width)
    seed = w.common("histogram weights", (4,), 64, None)
    columns = y.shape[0] // rows
    drawn = Stream(seed.astype("<u8").tobytes()).elements((-(-columns // 4) * 4,), bits)[:columns]
    weights = np.where(drawn == 0, U(1), drawn)
    vector = turned(ones, digit(y.m, start, width, y.bits)).reshape(w.parties, rows, columns, spread.size)
    by_bin = np.bitwise_xor.reduce(vector * weights[:, None], 2)  # [parties, rows, d]
    odd = fold(np.bitwise_xor, [by_bin[..., d] for d in spread.far], np.zeros((w.parties, rows), U))
    flags.watch("score", 0, (odd[..., None] >> np.arange(bits, dtype=U)) & U(1))
    hashes = spread.above(np.bitwise_xor.accumulate(by_bin[..., spread.order], -1))
    lam = w.random("open", hashes.shape[1:], bits, "xor")
    m = yield Open(hashes ^ lam, bits, "xor")
    words_ = _Xored(m, lam, bits, 0)
    return zero_by_points(w, words_, 8) if form == "points" else (yield from zero_words(w, words_, form, 8))


def _counted(w: World, y: Masked, rows: int, spread: Spread, flags: Flags) -> Steps:
    """The same by counts."""
    width, columns = spread.range_bits - 2, y.shape[0] // rows
    bits = columns.bit_length()
    found = one_hot(w, y, y.frac + 2, width, bits).x  # [parties, entries, d]
    odd = fold(np.bitwise_xor, [found[..., d] & U(1) for d in spread.far], np.zeros((w.parties, y.shape[0]), U))
    flags.watch("score", 0, odd)
    by_bin = found.reshape(w.parties, rows, columns, -1).sum(2, dtype=U)
    counts = spread.above(by_bin[..., spread.order].cumsum(-1, dtype=U))
    opened = yield from w.open(Shared(reduce(counts, bits), bits, 0))
    return zero_of_few_bits(w, opened, spread.held - 2)


def shift(w: World, y: Masked, rows: int, spread: Spread, form: str, flags: Flags) -> Steps:
    """<edge> of the highest bin of each row that is not empty, modulo 2^(held + y.frac)."""
    held, small = spread.held, y.to(spread.range_bits + y.frac)
    if form == "counts":
        empty = yield from _counted(w, small, rows, spread, flags)
    else:
        empty = yield from _hashed(w, small, rows, spread, form, flags)
    edge = empty.to(held - 2).each(lambda t: -t.sum(-1, dtype=U)).plus_public(word(spread.reach + 1))
    found = yield from w.open(Shared(reduce(edge.x, held - 2), held - 2, 0))
    start = U(y.frac + 2)
    return Masked(found.m << start, found.lam << start, held + y.frac, y.frac)


def exponentials(w: World, y: Masked, rows: int, range_bits: int, sizes: Sequence[int], flags: Flags) -> Steps:
    """<2^(3/2 (y - shift))>; y: [rows * columns], sizes: fraction bits and ring."""
    columns, (frac, bits) = y.shape[0] // rows, sizes
    limit = 0.875 * 2.0 ** (range_bits - 1) * 7879 / 2.0**13
    near = y.to(max(range_bits + 1, 8) + y.frac)
    near = near.each(lambda t: (t.reshape(rows, columns) - t.reshape(rows, columns)[:, -1:]).reshape(-1))
    edge = yield from shift(w, near, rows, Spread(range_bits, limit), "counts", flags)
    x = near.plus(edge.each(lambda t: np.repeat(t, columns)), -1)
    unit = 2.0 ** (range_bits - 4)
    reach = math.ceil((limit + 8) / 2 / unit) * unit
    flags.check("score", 0, x.to(range_bits + 1 + y.frac).plus_public(word(int(reach * 2.0**x.frac))), reach, True, 5)
    return (yield from by_window(w, x.to(max(range_bits, 8) + y.frac), frac, bits))


def inverse_sum(w: World, e: Masked, rows: int) -> Steps:
    """[1 / the row's sum]."""
    columns = e.shape[0] // rows
    grow = max(columns, 1).bit_length()
    sums = e.each(lambda t: t.reshape(rows, columns).sum(1, dtype=U)).to(e.frac + grow + 1)
    return (yield from power(w, sums, e.frac - 13, e.frac + grow, -1.0))


def numerators(w: World, y: Masked, rows: int, range_bits: int, sizes: Sequence[int], flags: Flags) -> Steps:
    """Both."""
    e = yield from exponentials(w, y, rows, range_bits, sizes, flags)
    return e, (yield from inverse_sum(w, e, rows))


def softmax(w: World, x: Shared, frac: int, score: int) -> Steps:
    """Over the last axis; score: log2 of the spread's bound."""
    range_bits, (*leading, columns) = score + 1, x.shape
    rows = math.prod(leading)
    flags = Flags(w)
    bits = max(13 + max(range_bits + 1, 8), range_bits + 2)
    s = (yield from open_cut(w, x.to(bits + x.frac), x.frac - frac)).each(lambda t: t * U(7879))
    y = truncate(w, Masked(s.m, s.lam, s.bits, s.frac + 13), 13).each(lambda t: t.reshape(-1))
    p, inverse = yield from numerators(w, y, rows, range_bits, (24, 54), flags)
    r = yield from standard(w, inverse, 12, 26, 54)
    out = multiply(w, p, r.each(lambda t: np.repeat(t, columns)))
    return out.each(lambda t: t.reshape(*leading, columns)), flags.take()


# ---- programs of the vectors -----------------------------------------------------------------------------------------
def exponential(w: World, x: Masked, form: str, frac: int, bits: int) -> Steps:
    """By either form."""
    found = yield from (by_window if form == "window" else by_bits)(w, x, frac, bits)
    return found.shared


def soft_cap(w: World, x: Masked, cap: float, period: int, bits: int) -> Steps:
    """cap tanh(x / cap) by sines of the period 2^period, opened with x's fraction bits."""
    circle, size, frac = period + x.frac, 2.0**period, 40
    ratio = math.pi * cap / size
    found: list[tuple[int, int]] = []
    for j in range(1, 1 << period, 2):
        a = 4 * ratio * cap / math.sinh(math.pi * ratio * j)
        if a < 1.5e-5:
            break
        found.append((j, round(a * 2**24)))
    bits += frac - x.frac
    out: Any = 0
    for j, a in found:
        shift = (found[0][1] // a).bit_length() - 1
        half = 1 << (1 + shift)
        known = (_turned(x.mask, j, circle) + half) >> (2 + shift)
        dealt = wide.deal(w, "soft cap", known.shape, bits - shift, known)
        cos, sin = _turned(x.m, j, circle)
        public = (np.stack([sin, -cos]) * a + (1 << 29)) >> 30
        out = out + ((dealt * public).sum(1) << shift)
    return (yield from open_cut(w, wide.sharing(out, bits, frac), frac - x.frac)).shared


def _turned(x: Words, j: int, circle: int) -> Any:
    """cos and sin of 2 pi j x / 2^circle, 24 fraction bits: a turn by the first 13 bits times one by the rest."""
    places = wide.integers(x) * j % (1 << circle)
    rest = max(circle - 13, 0)

    def turn(angle: Any) -> Any:
        return [
            np.rint(f(angle.astype(np.float64) * (2 * np.pi / 2**circle)) * 2.0**24).astype(np.int64).astype(object)
            for f in (np.cos, np.sin)
        ]

    (c, s), (c2, s2) = turn(places >> rest << rest), turn(places & ((1 << rest) - 1))
    return np.stack([(c * c2 - s * s2) >> 24, (s * c2 + c * s2) >> 24]) if rest else np.stack([c, s])


def shift_of(w: World, y: Masked, form: str, score: int, rows: int) -> Steps:
    """Of differences; score: log2 of the spread's bound."""
    flags = Flags(w)
    found = yield from shift(w, y, rows, Spread(score + 1, 0.875 * 2.0**score), form, flags)
    return found.shared, flags.take()
