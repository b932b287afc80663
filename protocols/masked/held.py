"""Cached rows of few fraction bits: held in small rings, and their products with queries and with attention's weights.

A product modulo 2^b needs its factors modulo 2^b alone. Of keys with few fraction bits it is made in the units of exponents
(`exponential`): queries, which carry the scale, are cut so far that the result has what the ring leaves before its point,
and so are the weights of values. Rings are 2^24 for keys and 2^40 for values, 8 bytes for an element of both with its
mask's shares, where others take 16 each; how many bits are cut from the other factor follows from the declared bounds.

Rounding to fewer fraction bits is that of `truncation`: unbiased, to a neighbour, exact on the grid.
Rounds: `hold` 1 where rows are shared, 0 where they are masked; products none. Bytes: 3 an element of keys and 5 of values.
Leaks: nothing; what is opened is masked (docs/security.md, "Openings").
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from mpc import ring
from mpc.ledger import operation
from mpc.ring import RING_BITS
from protocols.held_rows import Factor, two_to
from protocols.masked import product
from protocols.masked.context import Context, require
from protocols.masked.conversion import Conversion
from protocols.masked.exponential import UNIT_BITS, UNITS
from protocols.masked.packed_rows import PackedRows
from protocols.masked.shares import Masked, Shared
from protocols.masked.truncation import truncate
from protocols.masked.values import MaskedTensor
from protocols.masked.wide import open_any
from protocols.schedule import together
from protocols.suite import Part, Value

RINGS: dict[Factor, int] = {"keys": 24, "values": 40}


async def recast(convert: Conversion, x: Value, fraction_bits: int) -> MaskedTensor:
    """Return x rounded to so few fraction bits, masked in the ring that holds it. 0 or 1 round."""
    t = convert.tensor(x)
    with operation("cache"):
        m = await convert.masked(t, fraction_bits, fraction_bits + t.magnitude + 2, cut=False)
    return convert.new(m, t.magnitude)


async def hold(convert: Conversion, x: Value, fraction_bits: int, factor: Factor) -> MaskedTensor:
    """Return rows [G, S, C] packed, with so few fraction bits; see `Suite.hold`."""
    t, c, bits = convert.tensor(x), convert.context, RINGS[factor]
    with operation("cache"):
        if t.masked is not None:
            excess = t.masked.frac - fraction_bits
            _check(excess, t.masked.bits, bits)
            found = truncate(c, t.masked.to_ring(bits + excess), excess)
        else:
            shared = t.widest()
            excess = shared.frac - fraction_bits
            _check(excess, shared.bits, bits)
            found = await open_any(c, shared.to_ring(bits + excess), excess)
    if c.tape.preprocessing:  # no term that is precomputed needs a cached value's mask
        found = Masked(c.blank(t.shape), c.blank(t.shape), bits, fraction_bits)
    return MaskedTensor(c, t.magnitude, packed=PackedRows.of(found))


def _check(excess: int, there: int, bits: int) -> None:
    require(excess >= 0, "hold", f"rows have {-excess} fraction bits fewer than they are to be held with")
    require(there >= bits + excess, "hold", f"a ring of {there} bits does not hold {bits} when {excess} are cut")


async def channel_energies(convert: Conversion, q: Value, k: Value) -> tuple[MaskedTensor, float]:
    """Return the products of the mean squares of queries and of keys, see `Suite.channel_energies`. 1 round, 1 more where
    queries are masked in a smaller ring than their squares need; dealt: G C elements for each block of rows.

    The bound is that of scores, squared; a channel beyond it is flagged when it is ranked.
    """
    most = max(convert.tensor(x).magnitude for x in (q, k))
    frac = min(convert.fraction_bits, (RING_BITS - 4 - 4 * most) // 2)
    require(frac >= 0, "channel energies", f"values below 2^{most} have squares whose products do not fit {RING_BITS} bits")
    bound = 2 * convert.bounds.here.score
    bits = min(RING_BITS, max(2 * frac + bound + 4, frac + 2 * most + 3))
    with operation("energies"):
        a, b = await together(*(_mean_squares(convert, x, frac, bits) for x in (q, k)))
        found = convert.new(product.multiply(convert.context, a, b), bound + 1)
        found.watched = "score"
        return found, 2.0 ** (bound + 1)


async def _mean_squares(convert: Conversion, x: Value, frac: int, bits: int) -> Masked:
    """Return the sum over rows of x [G, n, C] of squares, divided by the next power of two from n on: [G, C]. Rows come in
    blocks whose sums fit the ring; each is opened with `frac` fraction bits, modulo 2^bits."""
    t, f, c = convert.tensor(x), convert.fraction_bits, convert.context
    count, room = t.shape[1], RING_BITS - 3 - 2 * f - 2 * t.magnitude
    require(room >= 0, "channel energies", f"a square of a value below 2^{t.magnitude} does not fit {RING_BITS} bits")
    block, cut = min(count, 1 << room), two_to(count).bit_length() - 1
    m = await convert.masked(t, f, 2 * f + 2 * t.magnitude + 3 + (block - 1).bit_length(), cut=False)

    def squares(a: Tensor, b: Tensor, modulo: int) -> Tensor:
        return ring.reduce((a * b).sum(1), modulo)

    async def opened(start: int) -> Masked:
        rows = m.map(lambda v: v[:, start : start + block])
        total = product.product(c, "squares", rows, rows, squares)
        mean = convert.new(total.with_frac(total.frac + cut), 2 * t.magnitude + 1)
        return await convert.masked(mean, frac, bits)

    first, *others = await together(*(opened(start) for start in range(0, count, block)))
    total: Masked = functools.reduce(Masked.add, others, first)
    return total


def scores(c: Context, q: Masked, k: PackedRows, score_bits: int) -> Shared:
    """Return the scores [G', n, S] of queries [G', n, C] in units of exponents, with twice q's fraction bits and those of a
    unit, `score_bits` before the point; local.

    q: masked in a ring of at least as many bits."""
    held = k.whole()
    frac = held.bits - score_bits - held.frac
    require(frac >= 2, "scores", f"{held} leaves {frac} fraction bits to queries")
    count = q.frac + UNIT_BITS - frac
    scaled = q.to_ring(held.bits + count).map(lambda t: t * UNITS).with_frac(q.frac + UNIT_BITS)
    cut = truncate(c, scaled, count)

    near = product.product(c, "scores", cut, held, lambda a, b, bits: ring.matmul(a, b.transpose(1, 2), bits))
    return near.shift_left(2 * q.frac + UNIT_BITS - near.frac)


def weighted(c: Context, p: Masked, v: PackedRows, frac: int, room: int) -> Shared:
    """Return weights p [G', n, S] times values [G', S, C], with the fraction bits of p and `frac` of values; local.

    room: bits that the sums take beside the fraction bits of both."""
    held = v.whole()
    count = max(0, p.frac + held.frac + room - held.bits)
    require(p.frac - count >= 2, "values", f"{held} leaves {p.frac - count} fraction bits to weights")
    cut = truncate(c, p.to_ring(held.bits + count), count)
    out = product.matmul(c, cut, held)
    return out.shift_left(p.frac + frac - out.frac)


def joined_sums(
    convert: Conversion, p: Masked, parts: Sequence[Part], values: Sequence[Masked | PackedRows], room: int
) -> Shared:
    """Return weights p [G, n, S] times the values of all parts, sums of different totals beside each other; local."""
    c, heads = convert.context, p.shape[:-1]

    def one(start: int, part: Part, v: Masked | PackedRows) -> Shared:
        stop, (groups, rows, width) = start + part.v.shape[1], part.v.shape
        weights = p.move(lambda t: t[..., start:stop].reshape(groups, -1, rows))
        if isinstance(v, PackedRows):
            out = weighted(c, weights, v, convert.fraction_bits, room)
        else:
            out = product.matmul(c, weights, v)
        return out.map(lambda t: t.reshape(*heads, width))

    totals: dict[int, Shared] = {}
    start = 0
    for part, v in zip(parts, values, strict=True):
        found = one(start, part, v)
        totals[part.total] = totals[part.total].add(found) if part.total in totals else found
        start += part.v.shape[1]
    sums = [totals[total] for total in sorted(totals)]
    return Shared(torch.cat([s.x for s in sums], -1), min(s.bits for s in sums), sums[0].frac)
