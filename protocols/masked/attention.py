"""Attention of the suite `masked`: softmax with the division after the product with the values, and softmax by itself.

Scores are opened masked, numerators (`softmax`) weigh the values, their sum is inverted; one product with the inverse gives
the result. Rounds: that of the scores, those of `softmax`, and one
for the weighted values. Bytes: per score and per output element; none for a cached key or value, which was masked once.

Error of a probability: below 2^-11. A row whose spread exceeds its bound is flagged (`ranges`).
Leaks: nothing; what is opened is masked (docs/security.md, "Attention and ranking").
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mpc import ring
from mpc.ledger import operation
from mpc.ring import RING_BITS
from protocols.bounds import RANGES, largest
from protocols.masked import held, lifted, product, soft_cap, veiled
from protocols.masked import softmax as gate
from protocols.masked.context import require
from protocols.masked.conversion import Conversion
from protocols.masked.exponential import (
    UNIT_BITS,
    Exponents,
    exponents_of_masked,
    exponents_of_scaled,
    exponents_of_veiled,
    in_units,
    scaled,
)
from protocols.masked.magnitudes import SIMILARITY_ROOM
from protocols.masked.packed_rows import PackedRows
from protocols.masked.rows import Rows
from protocols.masked.shares import Masked, Shared
from protocols.masked.soft_cap import period_bits
from protocols.masked.stream import factor_bits
from protocols.masked.truncation import open_cut
from protocols.masked.values import MaskedTensor
from protocols.masked.veiled import Veiled
from protocols.observed import Attended, Observed
from protocols.schedule import together
from protocols.suite import SQUARED_BITS, Part, Value

INVERSE_BITS = 26  # fraction bits of 1/sum
UNATTENDED_DIGIT = 11  # bits of the digit by which attention that must be 0 is checked: units of 2^-8
NUMERATOR_BITS = 24  # fraction bits of numerators at most; a row's largest is above e^-8
SCORE_BITS = 12  # fraction bits of scores at most, when they are opened
WEIGHTED_BITS = 10  # fraction bits of weighted values beyond those of values, before the division: a sum may be e^-8
SUM_ROOM = 7  # similarities are added up over the heads of a group, and doubled for the exact bound


def score_bits(convert: Conversion, bias: float = 0.0) -> int:
    """Return the ring of a score with twice the fraction bits: an exponent's difference to another one can be checked; with
    a soft cap, which scores themselves enter, that of the cap's period. bias: of one that joins it, |bias| at most."""
    if convert.score_cap is not None:
        return 2 * convert.fraction_bits + period_bits(convert.score_cap, convert.bounds.here.score)
    return 2 * convert.fraction_bits + UNIT_BITS + _spread(convert, bias=bias).score_bits


def query_bits(convert: Conversion) -> int:
    """Return the ring of a query: its scores and the sums of its similarities fit."""
    needed = 2 * convert.fraction_bits + convert.bounds.here.range_bits + SIMILARITY_ROOM + SUM_ROOM + 2
    return max(needed, score_bits(convert))


def _sum_bits(rows: Rows) -> int:
    """Return a bound: the sum of a row's numerators is at most 2^that; none is above 1."""
    return (rows.longest - 1).bit_length()


def precision(convert: Conversion, rows: Rows) -> tuple[int, int]:
    """Return the fraction bits of numerators and their ring, the smallest in which their sum times the values fits."""
    room = 3 + convert.fraction_bits + convert.bounds.here.value + _sum_bits(rows)
    frac = min(NUMERATOR_BITS, RING_BITS - room)
    return frac, frac + room


def _spread(convert: Conversion, cap: float | None = None, bias: float = 0.0) -> gate.Spread:
    """Return what is known of a row's scores: its bound, or of capped ones, whose bound was for what the cap is taken of,
    twice the cap. A bias that joins them, |bias| at most so much, widens both by twice as much."""
    bound = convert.bounds.here.score
    if cap is not None or bias:  # the least of the bounds that can be declared in which it fits
        reach = (largest("score", bound) if cap is None else 2.0 * cap) + 2.0 * bias
        bound = max(RANGES["score"].low, math.ceil(math.log2(reach / largest("score", 0))))
    return gate.Spread(bound + 1, in_units(largest("score", bound)), convert.ranges)


async def _numerators(
    convert: Conversion, y: Exponents, rows: Rows, precision: tuple[int, int], spread: gate.Spread
) -> tuple[Masked, Shared]:
    """Return numerators [entries] with (fraction bits, ring) of `precision`, and 1 / sum [rows], of scores [entries]."""
    return await gate.numerators(convert.context, y, rows, precision, spread)


async def softmax(convert: Conversion, x: Value, mask: Tensor | None = None) -> MaskedTensor:
    """Return probabilities over the last axis, Shared; positions that the public mask removes are exactly 0."""
    f, range_bits = convert.fraction_bits, convert.bounds.here.range_bits
    rows = Rows.of(x.shape, mask)
    t = convert.tensor(x)
    t.magnitude = min(t.magnitude, range_bits)
    m = await convert.masked(t, f, f + max(UNIT_BITS + _spread(convert).score_bits, range_bits + 2))
    s = exponents_of_masked(convert.context, m)
    bits = NUMERATOR_BITS + INVERSE_BITS + 4
    p, inverse = await _numerators(convert, s.move(rows.take), rows, (NUMERATOR_BITS, bits), _spread(convert))
    r = await convert.masked(convert.new(inverse, gate.LEAST_BITS), INVERSE_BITS, bits)
    spread = Masked(rows.spread(r.m), rows.spread(r.lam), r.bits, r.frac)
    out = product.multiply(convert.context, p, spread)
    return convert.new(out.map(lambda t: rows.put(t)), 1)


async def mask_queries(convert: Conversion, q: Value, weighed: bool = False) -> MaskedTensor:
    """Return queries [G, R T, C], masked in the ring of their scores while keys and values are masked for the cache; a
    single token's in one that serves similarities too, and `weighed` ones in the full ring. 1 round, ring bits per
    element."""
    t = convert.tensor(q)
    with operation("scores"):
        bits = RING_BITS if weighed else query_bits(convert) if q.shape[1] == 1 else score_bits(convert)
        await convert.masked(t, convert.fraction_bits, max(bits, t.needs(convert.fraction_bits)))
    return t


async def score_factor(convert: Conversion, x: Value, bits: int, cut: bool = True) -> Masked:
    """Return queries or keys, masked modulo 2^bits, the ring of their scores, or, without `cut`, a larger one: a product
    modulo 2^bits needs no more of a factor, even where that ring does not hold the factor itself."""
    t, f = convert.tensor(x), convert.fraction_bits
    found = await convert.masked(t, f, max(bits, t.needs(f)), cut)
    return found.to_ring(bits) if cut else found


@dataclass(frozen=True)
class Widths:
    """Precision of a softmax whose division comes last. frac: fraction bits of the numerators. bits: the ring of their
    product with the values. inverse_bits: the ring of 1 / sum. bias: of one that has joined the scores, |bias| at most."""

    frac: int
    bits: int
    inverse_bits: int = INVERSE_BITS + gate.LEAST_BITS + 2
    bias: float = 0.0


async def weighted_values(
    convert: Conversion, s: Exponents, rows: Rows, weigh: Callable[[Masked], Awaitable[Shared]], widths: Widths
) -> tuple[MaskedTensor, Masked, Masked]:
    """Return the weighted values [G, T, C] of scores [entries], and what probabilities are products of: numerators
    [G, T, S] and 1 / sum [G, T, 1].

    weigh: the bilinear map of masked numerators with the values, modulo 2^widths.bits.
    """
    f = convert.fraction_bits
    spread = _spread(convert, convert.score_cap, widths.bias)
    p, inverse = await _numerators(convert, s, rows, (widths.frac, widths.bits), spread)
    dense = p.move(rows.put)
    bound = convert.bounds.here.value + 1

    async def weighted() -> Masked:
        with operation("values"):
            o = convert.new(await weigh(dense), _sum_bits(rows) + bound)
            return await convert.masked(o, f + WEIGHTED_BITS, o.magnitude + f + WEIGHTED_BITS + 2, lifted=True)

    async def one_over() -> Masked:
        with operation("softmax sum"):
            r = convert.new(inverse.map(lambda t: t.reshape(*rows.shape[:-1], 1)), gate.LEAST_BITS)
            return await convert.masked(r, INVERSE_BITS, widths.inverse_bits)

    o, r = await together(weighted(), one_over())
    with operation("values"):
        bits = factor_bits(convert, o.shape.numel(), bound) + o.frac + r.frac - convert.fraction_bits
        quotient = lifted.multiply(convert.context, "divide", o, r, bits)
        return convert.new(quotient, bound), dense, r


def _mass(convert: Conversion, p: Masked, r: Masked, of: Observed) -> MaskedTensor:
    """Return [sum over observed rows of p r]: p [G, T, S], r [G, T, 1] -> [M, S]; local."""

    def contract(a: Tensor, b: Tensor, bits: int) -> Tensor:
        return ring.matmul(b.transpose(1, 2), a, bits)[:, 0]

    total = product.product(convert.context, "received", p.move(of.take), r.move(of.take), contract)
    return convert.new(total, max(1, of.queries.bit_length()))


async def _squares(convert: Conversion, p: Masked, r: Masked, of: Observed) -> MaskedTensor | None:
    """Return [sum over observed rows of (p r)^2], [M, S], where it is asked for: the probabilities are opened masked, then
    squared locally. 1 round, `SQUARED_BITS` + 3 bits a probability."""
    if not of.squares:
        return None
    found = convert.new(product.product(convert.context, "probabilities", p.move(of.take), r.move(of.take)), 1)
    m = await convert.masked(found, SQUARED_BITS, SQUARED_BITS + 3, lifted=True)
    most = max(1, of.queries.bit_length())
    both = lifted.multiply(convert.context, "squares", m, m, RING_BITS)  # sums of them take public factors
    assert isinstance(both, Shared)
    return convert.new(both.map(lambda t: t.sum(1)), most)


@dataclass(frozen=True)
class Bias:
    """What joins scores. value: secret, broadcastable to them. reach: what its absolute value is at most beyond what the
    declared bound of scores counts, public: 0 where that bound is one of scores with their bias."""

    value: Value
    reach: float = 0.0


async def _scores(convert: Conversion, parts: Sequence[Part], bias: Bias | None, rows: Rows) -> Exponents:
    """Return the entries of q k^T (+ bias) that take part, opened: [entries]."""
    reach = 0.0 if bias is None else bias.reach
    with operation("scores"):
        in_units = any(convert.tensor(part.k).packed is not None for part in parts)
        c, frac = convert.context, min(convert.fraction_bits, SCORE_BITS)
        if len(parts) > 1 or in_units:
            require(bias is None, "scores", "a bias joins the scores of a single part")
            s = await _joined_scores(convert, parts, rows, in_units)
            return await exponents_of_scaled(c, s if in_units else scaled(s), frac)

        def added(bits: int, frac: int) -> list[Shared]:
            if bias is None:
                return []
            shared = convert.tensor(bias.value).as_shared()
            found = shared.shift_left(frac - shared.frac).to_ring(bits)
            return [found.map(lambda t: rows.take(t.expand(rows.shape)))]

        if convert.score_cap is not None:
            s = await _exact_scores(convert, parts[0], rows, reach)
            return await exponents_of_scaled(c, scaled(functools.reduce(Shared.add, added(s.bits, s.frac), s)), frac)
        behind = veiled.product(
            c, "scores", *await _score_factors(convert, parts[0], score_bits(convert, reach)), _entries(rows)
        )
        behind = functools.reduce(Veiled.add, added(behind.bits, behind.frac), behind)
        return await exponents_of_veiled(c, behind, frac)


async def _score_factors(convert: Conversion, part: Part, bits: int) -> tuple[Masked, Masked]:
    return await together(score_factor(convert, part.q, bits), score_factor(convert, part.k, bits, cut=False))


def _entries(rows: Rows | None) -> product.Bilinear:
    """Return q k^T of [G', n, C] and [G', S, C], or with `rows` its entries that take part."""

    def entries(a: Tensor, b: Tensor, modulo: int) -> Tensor:
        found = ring.matmul(a, b.transpose(1, 2), modulo)
        return found if rows is None else rows.take(found)

    return entries


async def _exact_scores(convert: Conversion, part: Part, rows: Rows | None, reach: float = 0.0) -> Shared:
    """Return q k^T of keys with all their fraction bits: [G', n, S], or with `rows` the entries that take part. reach: what
    a bias that joins them is at most."""
    bits = score_bits(convert, reach)
    s = product.product(convert.context, "scores", *await _score_factors(convert, part, bits), _entries(rows)).to_ring(bits)
    return s if convert.score_cap is None else await _capped(convert, s, convert.score_cap, reach)


async def _joined_scores(convert: Conversion, parts: Sequence[Part], rows: Rows, in_units: bool) -> Shared:
    """Return the scores of all parts, one behind the other, of which only the entries that take part are opened; `in_units`
    of exponents, or not."""
    heads = rows.shape[:-1]

    async def one(part: Part) -> Shared:
        keys = convert.tensor(part.k).packed
        if keys is None:
            s = await _exact_scores(convert, part, None)
            s = scaled(s) if in_units else s
        else:
            require(convert.score_cap is None, "scores", "keys of few fraction bits have no scores with a soft cap")
            s = held.scores(
                convert.context, await score_factor(convert, part.q, score_bits(convert)), keys, _spread(convert).score_bits
            )
        return s.map(lambda t: t.reshape(*heads, part.k.shape[1]))

    found = await together(*(one(part) for part in parts))
    return Shared(rows.take(torch.cat([s.x for s in found], -1)), min(s.bits for s in found), found[0].frac)


async def _capped(convert: Conversion, s: Shared, cap: float, bias: float) -> Shared:
    """Return scores behind the soft cap, in the ring that their exponents take with |bias| at most so much; a score that
    exceeds its bound is flagged. 1 round, which opens them."""
    f, bound = convert.fraction_bits, convert.bounds.here.score
    opened = await open_cut(convert.context, s, f)
    convert.ranges.check("score", opened, largest("score", bound))
    bits = _spread(convert, cap, bias).score_bits + UNIT_BITS + soft_cap.FRAC
    found = soft_cap.soft_cap(convert.context, opened, cap, period_bits(cap, bound), bits)
    assert isinstance(found, Shared)
    return found


def values_within_bound(convert: Conversion, v: Value) -> MaskedTensor:
    """Return cached values, which their bound keeps."""
    return convert.with_bound(v, 2.0 ** (convert.bounds.here.value + 1))


async def unattended(convert: Conversion, mass: Value) -> None:
    """Flag "score" where shares of attention that must be 0 are not, see `Suite.unattended`. 1 round, f + 3 bits an element;
    256 bytes dealt."""
    f = convert.fraction_bits
    m = await convert.masked(convert.with_bound(mass, 2.0), f, f + 3, cut=False)
    convert.ranges.check("score", m.to_ring(f + 3), 2.0**-8, width=UNATTENDED_DIGIT)


def _wide_enough(of: Observed) -> int:
    """Return the fraction bits of numerators with which sums over the observed rows and over all heads fit the ring."""
    return min(NUMERATOR_BITS, RING_BITS - 4 - INVERSE_BITS - of.summands.bit_length())


async def attention(
    convert: Conversion, parts: Sequence[Part], mask: Tensor | None = None, bias: Bias | None = None
) -> list[Value]:
    """Return softmax(q k^T) v of parts, one sum for each `total`, see `Suite.attention_over`. mask: public. bias: joins
    the scores of a single part before they are opened."""
    rows = _rows(parts, mask)
    widths = Widths(*precision(convert, rows), bias=0.0 if bias is None else bias.reach)
    out, _, _ = await _attention(convert, parts, rows, bias, widths)
    return _totals(out, parts)


def _rows(parts: Sequence[Part], mask: Tensor | None) -> Rows:
    """Return the rows of all parts' scores."""
    return Rows.of(torch.Size((*parts[0].q.shape[:-1], sum(part.k.shape[1] for part in parts))), mask)


def _totals(out: Value, parts: Sequence[Part]) -> list[Value]:
    """Return the sums that lie beside each other in `out`, one for each `total`."""
    widths = {part.total: part.v.shape[2] for part in parts}
    if len(widths) == 1:
        return [out]
    stops = list(itertools.accumulate(widths[total] for total in sorted(widths)))
    return [out[..., start:stop] for start, stop in itertools.pairwise([0, *stops])]


async def _attention(
    convert: Conversion, parts: Sequence[Part], rows: Rows, bias: Bias | None, widths: Widths
) -> tuple[MaskedTensor, Masked, Masked]:
    """Return the attention, sums of different totals beside each other, and what probabilities are products of, as
    `weighted_values` does."""

    async def cached(v: Value) -> Masked | PackedRows:
        values = values_within_bound(convert, v)
        if values.packed is not None:
            return values.packed
        with operation("values"):
            return await convert.masked(values, convert.fraction_bits, RING_BITS)

    s, *values = await together(_scores(convert, parts, bias, rows), *(cached(part.v) for part in parts))

    async def weigh(x: Masked) -> Shared:
        if len(parts) == 1 and isinstance(values[0], Masked):
            return product.matmul(convert.context, x, values[0])
        frac, bits = precision(convert, rows)
        return held.joined_sums(convert, x, parts, values, bits - frac - convert.fraction_bits)

    return await weighted_values(convert, s, rows, weigh, widths)


async def attention_over(
    convert: Conversion, parts: Sequence[Part], mask: Tensor | None, of: Observed
) -> tuple[list[Value], Value]:
    """Return `attention` of parts, and the sums [M, S] of observed probabilities."""
    rows = _rows(parts, mask)
    widths = Widths(min(_wide_enough(of), precision(convert, rows)[0]), RING_BITS, RING_BITS)
    out, p, r = await _attention(convert, parts, rows, None, widths)
    with operation("received"):
        return _totals(out, parts), _mass(convert, p, r, of)


async def observed(
    convert: Conversion, factors: tuple[Value, Value, Value | None], mask: Tensor | None, of: Observed
) -> Attended:
    """Return what `Suite.observed_attention` does. The sums of probabilities, those over late queries too, cost no round
    and no byte but their dealt elements; without values, nothing of what these cost."""
    q, k, v = factors
    rows = Rows.of(torch.Size((*q.shape[:-1], k.shape[1])), mask)
    frac = _wide_enough(of)
    out: Value | None = None
    if v is not None:
        widths = Widths(min(frac, precision(convert, rows)[0]), RING_BITS, RING_BITS)
        out, p, r = await _attention(convert, [Part(q, k, v)], rows, None, widths)
    else:
        s = await _scores(convert, [Part(q, k, k)], None, rows)
        bits = frac + INVERSE_BITS + 4 + of.summands.bit_length()
        hot, inverse = await _numerators(convert, s, rows, (frac, bits), _spread(convert, convert.score_cap))
        p = hot.move(rows.put)
        with operation("softmax sum"):
            one_over = convert.new(inverse.map(lambda t: t.reshape(*rows.shape[:-1], 1)), gate.LEAST_BITS)
            r = await convert.masked(one_over, INVERSE_BITS, bits)
    with operation("received"):
        late = None if of.lately is None else _mass(convert, p, r, of.lately)
        return Attended(out, _mass(convert, p, r, of), await _squares(convert, p, r, of), late)
