"""What merging of rows takes in the suite `masked`: see `protocols.merging.Merging`.

Rounds and bytes are those of the gates (`scan`, `compaction`, `power`, `ranking`) and of making values masked, each in the
smallest ring that its bounds allow:

* runs: prefix sums of masked rows are masked by prefix sums of their masks, so they move as the rows would, in a ring with
  log2 n bits more than a row needs;
* an average: 1 / weight is opened beside the sums, and the quotient is lifted to the ring of the cache (`lifted`);
* rows of length 1: squares are local, 1 / length takes 2 rounds, as the opening of what it scales;
* similarities: opened once with all fraction bits; the assignment is opened in the ring of the sums that it will make.

Leaks: nothing; what is opened is masked (docs/security.md, "Merging").
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mpc.errors import RangeError
from mpc.ledger import operation
from mpc.ring import RING_BITS
from protocols.masked import arithmetic, compaction, lifted, product, ranking, scan
from protocols.masked.context import open_value, require
from protocols.masked.conversion import Conversion
from protocols.masked.power import MANTISSA_BITS, Power, power
from protocols.masked.selection_matrix import count_bits
from protocols.masked.shares import Masked, Shared
from protocols.masked.truncation import truncate
from protocols.masked.values import MaskedTensor
from protocols.merging import LEAST_NORM
from protocols.schedule import together
from protocols.suite import Value

AVERAGE_BITS = 2  # fraction bits of an inverse beyond those that its product with the largest sum keeps
UNIT_BITS = 4  # of a product of rows of length 1: one, a sign, rounding
INVERSE_BITS = 26  # fraction bits of 1 / length
WEIGHT_BITS = 20  # fraction bits of weights of rows
SIGNIFICANT = 30  # bits of the smallest inverse
LEAST_OCTAVES = 3  # that a power is made for


async def select(convert: Conversion, bit: Value, x: Value, room: int) -> MaskedTensor:
    """Return x where the bit is 1, see `Merging.select`. 1 round, 0 where both are masked in x's ring."""
    e, t = convert.tensor(bit), convert.tensor(x)
    frac = min(t.frac, convert.fraction_bits)
    with operation("selection"):
        bits = min(t.needs(frac) + room, RING_BITS)
        m, marks = await together(convert.masked(t, frac, bits), convert.masked(e, 0, bits))
        return convert.new(product.multiply(convert.context, marks, m), t.magnitude)


async def weighted(convert: Conversion, weights: Value, rows: Value, room: int) -> MaskedTensor:
    """Return weights times rows, see `Merging.weighted`, of weights as many fraction bits as the ring holds, up to
    `WEIGHT_BITS`: a small one counts as exactly as a large one. No round beyond making the factors masked."""
    a, b, f = convert.tensor(weights), convert.tensor(rows), convert.fraction_bits
    magnitude, fb = a.magnitude + b.magnitude + room, min(b.frac, f)
    fa = max(min(a.frac, f), min(a.frac, WEIGHT_BITS, RING_BITS - 3 - fb - magnitude))
    bits = max(fa + fb + magnitude + 2, fa + a.magnitude + 2, fb + b.magnitude + 2)
    require(bits <= RING_BITS, "weights", f"{a} by {b} needs {bits} bits")
    ma, mb = await together(convert.masked(a, fa, bits), convert.masked(b, fb, bits))
    return convert.new(product.multiply(convert.context, ma, mb), magnitude)


async def copy_scan(convert: Conversion, marks: Value, values: Value, reverse: bool) -> MaskedTensor:
    """Return copies along rows, see `scan`."""
    e, t = convert.tensor(marks), convert.tensor(values)
    with operation("scan"):
        bits = t.magnitude + 2
        found = await scan.copy_scan(convert.context, e.as_shared().to_ring(bits), t.as_shared().to_ring(bits), reverse)
        return convert.new(found, t.magnitude)


async def merge_runs(convert: Conversion, ends: Value, rows: Sequence[Value], k: int) -> list[Value]:
    """Return sums over runs, see `Merging.merge_runs`. Rounds of `compaction`."""
    with operation("compaction"):
        prefixes = [convert.tensor(x).cumsum(1) for x in rows]
        moving = [t.form.to_ring(min(t.form.bits, t.needs(t.frac))) for t in prefixes]
        marks = convert.tensor(ends).form
        marks = marks.to_ring(min(marks.bits, count_bits(k) + 1))
        moved = await compaction.compact(convert.context, marks, moving, k)
        parts = [x.map(lambda t: torch.cat([t[:, :1], t[:, 1:] - t[:, :-1]], 1)) for x in moved]
        return [convert.new(x, t.magnitude) for x, t in zip(parts, prefixes, strict=True)]


def _inverse_magnitude(least: float) -> int:
    return max(1, math.ceil(-math.log2(least)) + 1)


async def _inverse(convert: Conversion, x: Value, limits: tuple[float, float]) -> MaskedTensor:
    """Return 1 / x, Shared, of whose smallest result 30 bits count, fewer where the ring does not hold as many. 1 round, 3
    with more than two parties."""
    least, most = limits
    t = convert.tensor(x)
    finest = _inverse_magnitude(least)
    top = math.floor(math.log2(most)) + 1
    frac = max(min(t.frac, convert.fraction_bits + finest), MANTISSA_BITS - top)  # a power keeps so many bits
    if not 0 < least <= most:
        raise RangeError(f"reciprocal: 1 / x needs 0 < least <= most, got {least} and {most}")
    low = math.floor(math.log2(least)) + frac
    high = max(top + frac, low + LEAST_OCTAVES)
    if low < 0:
        raise RangeError(f"reciprocal: numbers of {frac} fraction bits are not known to be {least} or more")
    m = await convert.masked(convert.with_bound(t, 2.0 ** (high - frac)), frac, high + 2)
    form = Power(low, high, -1.0, significant=min(SIGNIFICANT, RING_BITS - 3 - (high - low)))
    return convert.new(await power(convert.context, m.to_ring(high + 1), form), finest)


async def reciprocal(convert: Conversion, x: Value, limits: tuple[float, float]) -> MaskedTensor:
    """Return 1 / x, Shared, see `Merging.reciprocal`."""
    with operation("merging"):
        return await _inverse(convert, x, limits)


async def averaged(
    convert: Conversion, sums: Value, weights: Value, like: Value, limits: tuple[float, float]
) -> MaskedTensor:
    """Return sums / weights with the bound of rows as `like`, WideShared, see `Merging.averaged`. 2 rounds, 4 with more than
    two parties."""
    t, magnitude = convert.tensor(sums), convert.tensor(like).magnitude
    limits = limits[0], min(limits[1], 2.0 ** convert.tensor(weights).magnitude)
    f = convert.fraction_bits
    frac = min(t.frac, f + _inverse_magnitude(limits[0]) - 1)
    t.magnitude = min(t.magnitude, magnitude + math.ceil(math.log2(max(2.0, limits[1]))))
    wanted = f + max(0, math.ceil(math.log2(limits[1]))) + magnitude + AVERAGE_BITS
    wanted = min(wanted, RING_BITS - 2 - _inverse_magnitude(limits[0]))  # of the largest weights alone some bits are lost
    with operation("merging"):

        async def inverse() -> Masked:
            found = await _inverse(convert, weights, limits)
            return await convert.masked(found, wanted, wanted + found.magnitude + 2)

        o, r = await together(convert.masked(t, frac, t.needs(frac)), inverse())
        quotient = lifted.multiply(convert.context, "average", o, r, RING_BITS + frac + wanted - f)
        return convert.new(quotient, magnitude)


async def normalised(convert: Conversion, x: Value) -> MaskedTensor:
    """Return rows of length 1, masked in the ring of their products with each other, see `Merging.normalised`. 3 rounds from
    masked rows, 5 with more than two parties."""
    t, c, f = convert.tensor(x), convert.context, convert.fraction_bits
    width = t.shape[-1]
    length = t.magnitude + math.ceil(math.log2(width) / 2)  # log2 of what no row's length exceeds
    with operation("merging"):
        m = await convert.masked(t, f, max(t.needs(f), f + length + 1), cut=False)
        short = truncate(c, m, max(0, m.frac + length + 1 - RING_BITS // 2))  # its squares fit a word
        squares = lifted.square_sums(c, "squares", short, 2 * short.frac + 2 * length + 2)
        least = round(LEAST_NORM**2 * 2.0**squares.frac)
        moment = c.add_public(squares, torch.full((*t.shape[:-1], 1), least, dtype=torch.int64, device=c.device))
        opened = await open_value(c, moment)
        high = squares.frac + 2 * length + 1
        inverse = await power(c, opened.to_ring(high + 1), Power(least.bit_length() - 1, high, -0.5))
        r = await convert.masked(convert.new(inverse, 8), INVERSE_BITS, INVERSE_BITS + 8 + 2)
        left = 2 * f + width.bit_length() + UNIT_BITS
        unit = convert.new(lifted.multiply(c, "length", m, r, left + m.frac + r.frac - f), 1)
        await convert.masked(unit, f, left)
        return unit


async def most_similar(
    convert: Conversion, rows: tuple[Value, Value], least: float | None, room: int
) -> tuple[Value, Value]:
    """Return which row of y each row of x is most similar to, and how similar, see `Merging.most_similar`. The rounds of
    `ranking`, and 2; one more with `least`."""
    c, f, (x, y) = convert.context, convert.fraction_bits, rows
    with operation("merging"):
        near = await arithmetic.matmul(convert, x, y.permute(0, 2, 1))
        reach = (1 << f) + (1 << (f - 6))
        bits = (2 * reach).bit_length() + 1
        m = await convert.masked(convert.with_bound(near, 2.0), f, bits)
        offered = m if least is None else _behind(m, round(least * 2.0**f))
        sizes = ranking.group_sizes(offered.shape, bits, c.parties, c.prefer)
        here = convert.bounds.here
        sums = f + max(here.activation, here.value) + 4 + x.shape[1].bit_length() + room  # of rows that are assigned to one
        found = await ranking.first_largest(c, offered, reach, sizes, max(bits, min(RING_BITS, sums)))
        assign = convert.new(found if least is None else found.map(lambda t: t[..., 1:]), 1)
        marks = await convert.masked(assign, 0, found.bits)
        best = product.multiply(c, marks.to_ring(bits), m).map(lambda t: t.sum(-1))
        return assign, convert.new(Shared(best.x, bits, f), 1)


def _behind(x: Masked, value: int) -> Masked:
    """Return a public value (mask 0: it is public) in front of each row's values, all masked."""

    def grown(t: Tensor, front: int) -> Tensor:
        return torch.cat([torch.full((*t.shape[:-1], 1), front, dtype=t.dtype, device=t.device), t], -1)

    return Masked(grown(x.m, value), lambda: grown(x.lam, 0), x.bits, x.frac)
