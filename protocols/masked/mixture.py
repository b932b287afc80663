"""Mixtures of experts in the suite `masked`: secret routing, places of tokens, rows to the experts and back.

Rings: one-hot rows of places are masked modulo 2^48. With 14 fraction bits of a row that leaves the 34 integer bits that
the residual stream has where it is opened (`stream`), and 18 of a linear layer's product. Rounds and bytes: those of
`routing`, and the opening of each factor: rows of places E C T elements of 48 bits, rows E C D of the ring of their product.
Leaks: nothing; what is opened is masked (docs/security.md, "Suite masked").
"""

from __future__ import annotations

import math

from mpc.ledger import operation
from mpc.ring import RING_BITS
from protocols.bounds import largest
from protocols.masked import lifted, product, routing, softmax
from protocols.masked.context import require
from protocols.masked.conversion import Conversion
from protocols.masked.exponential import UNIT_BITS, in_units
from protocols.masked.magnitudes import ROOM, WEIGHT_BITS
from protocols.masked.stream import factor_bits
from protocols.masked.values import MaskedTensor
from protocols.schedule import together
from protocols.suite import Value

GATE_BITS = 20  # fraction bits of gates
SLOT_BITS = RING_BITS - WEIGHT_BITS
COMPARED_BITS = 32  # of the largest ring that is compared


def _spread(convert: Conversion, reach: float) -> softmax.Spread:
    """Return what is declared of logits up to `reach`: flagged as scores are, read in a ring around which none of them goes
    further than the flags tell.

    These cover 2^(r + 1) but what lies within the limit, a digit's four units of 2^(r - 4), and two bins at either end."""
    bounds = convert.bounds.here
    limit = in_units(largest("score", bounds.score))
    covered = (in_units(2 * reach) + limit + 4 * (1 << softmax.BIN_BITS)) / 7  # of 2^(r + 1) - 4 * 2^(r - 4)
    return softmax.Spread(max(bounds.range_bits, math.ceil(math.log2(covered)) + 2), limit, convert.ranges)


async def route(convert: Conversion, logits: Value, chosen: int, renormalised: bool) -> tuple[MaskedTensor, MaskedTensor]:
    """Return marks and gates, both [T, E], of a router's logits [T, E]; see `Suite.route`."""
    t, f = convert.tensor(logits), convert.fraction_bits
    compared = f + t.magnitude + 3
    require(
        compared <= COMPARED_BITS, "routing", f"logits up to 2^{t.magnitude} with {f} fraction bits need {compared} bits"
    )
    spread = _spread(convert, t.reach)
    choice = routing.Choice(chosen, renormalised, compared)
    with operation("routing"):
        x = await convert.masked(t, f, max(compared, f + UNIT_BITS + spread.score_bits))
        marks, gates = await routing.route(convert.context, x, choice, spread)
        return convert.new(marks, 1), convert.new(gates, 1)


async def weigh(convert: Conversion, x: Value, gates: Value) -> MaskedTensor:
    """Return x times gates, broadcasting, in the ring that the layer behind needs; both are lifted in the product."""
    t, g, f = convert.tensor(x), convert.tensor(gates), convert.fraction_bits
    with operation("gates"):
        a, b = await together(
            convert.masked(t, f, t.needs(f), cut=False),
            convert.masked(g, GATE_BITS, g.needs(GATE_BITS), cut=False),
        )
        bits = factor_bits(convert, t.shape.numel(), t.magnitude) + GATE_BITS
        return convert.new(lifted.multiply(convert.context, "gates", a, b, bits), t.magnitude)


def slots(convert: Conversion, marks: Value, capacity: int) -> tuple[MaskedTensor, MaskedTensor]:
    """Return the rows of places [E, C, T], and the number of marks without one [1]; local."""
    found = convert.tensor(marks).masked
    assert found is not None
    with operation("dispatch"):
        rows, dropped = routing.slots(convert.context, found, capacity, SLOT_BITS)
        return convert.new(rows, 1), convert.new(dropped, marks.shape.numel().bit_length())


async def gather(convert: Conversion, slots: Value, rows: Value) -> MaskedTensor:
    """Return the rows [E, C, D] that have places, of [T, D], or of each expert's own [E, T, D]. 1 round."""
    t = convert.tensor(rows)
    experts, capacity, tokens = slots.shape
    own = len(rows.shape) == 3
    f = min(t.frac, GATE_BITS if own else convert.fraction_bits)
    with operation("dispatch"):
        e, m = await together(
            convert.masked(convert.tensor(slots), 0, SLOT_BITS), convert.masked(t, f, t.needs(f), cut=False)
        )
        left = e if own else e.move(lambda x: x.reshape(experts * capacity, tokens))
        found = product.matmul(convert.context, left, m)
        return convert.new(found.map(lambda x: x.reshape(experts, capacity, rows.shape[-1])), t.magnitude)


async def scatter(convert: Conversion, slots: Value, rows: Value, stream: Value) -> MaskedTensor:
    """Return the residual stream [T, D] plus the rows [E, C, D] of each token's places. 1 round."""
    t, f = convert.tensor(rows), convert.fraction_bits
    experts, capacity, tokens = slots.shape
    magnitude = convert.bounds.stream + ROOM
    with operation("dispatch"):
        e, m = await together(
            convert.masked(convert.tensor(slots), 0, SLOT_BITS), convert.masked(t, f, f + magnitude + 2, cut=False)
        )
        left = e.move(lambda x: x.reshape(experts * capacity, tokens).transpose(0, 1))
        right = m.move(lambda x: x.reshape(experts * capacity, rows.shape[-1]))
        out = convert.new(product.matmul(convert.context, left, right), magnitude) + stream
    out.magnitude = magnitude
    return out
