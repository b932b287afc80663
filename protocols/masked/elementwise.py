"""Element-wise functions of values of the suite `masked`: activations, gated activations, the sign.

Rounds: those of the gates (`activation`, `comparison`: 1) and of making a value masked. Bytes: as there.
Leaks: nothing; what is opened is masked (docs/security.md, "Suite masked").
"""

from __future__ import annotations

import math

import torch

from mpc.ledger import operation
from mpc.ring import RING_BITS
from protocols.masked import activation as gate
from protocols.masked import comparison, lifted, product
from protocols.masked import soft_cap as cap_gate
from protocols.masked.activation import Rings
from protocols.masked.context import require
from protocols.masked.conversion import Conversion
from protocols.masked.exponential import CIRCLE, UNIT_BITS, UNREAD, exponential, exponents_of_masked, in_units
from protocols.masked.forms import Form, choose
from protocols.masked.shares import Masked
from protocols.masked.soft_cap import FRAC, period_bits
from protocols.masked.stream import factor_bits
from protocols.masked.values import MaskedTensor
from protocols.schedule import together
from protocols.suite import Activation, Value

TANH_BITS = 3  # tanh is 1 within 2^-22 from 2^3 on
AWAY, AWAY_OCTAVES = 6, 9  # units of exponents that are read lower, and what that is in powers of two
EXPANSION = 4  # a feed-forward layer is about that many times as wide as the stream


def _wanted(convert: Conversion, x: MaskedTensor, magnitude: int) -> int:
    """Return the ring that the layer behind needs of a factor below 2^magnitude."""
    return factor_bits(convert, x.shape.numel() // EXPANSION, magnitude)


async def _activated(convert: Conversion, t: MaskedTensor, kind: Activation, wanted: int) -> MaskedTensor:
    c, f = convert.context, convert.fraction_bits
    least = max(t.needs(f), gate.least_bits(kind, f))
    plan = gate.chosen(c, kind, t.shape.numel(), Rings(f, least, max(wanted, least)))
    m = await convert.masked(t, f, plan.x_bits, lifted=plan.left > plan.x_bits)
    out = convert.new(await gate.activation(c, m, kind, plan), t.magnitude)
    out.positive = True
    return out


async def activation(convert: Conversion, x: Value, kind: Activation) -> MaskedTensor:
    """Return gelu, gelu_tanh, silu or relu of x, Shared or WideShared: to be opened once, where it pays."""
    t = convert.tensor(x)
    with operation(kind):
        return await _activated(convert, t, kind, _wanted(convert, t, t.magnitude))


async def exp_negative(convert: Conversion, x: Value, most: float) -> MaskedTensor:
    """Return e^-x, 0 <= x <= most, masked. 1 or 2 rounds from a masked x (`exponential`).

    Exponents are read `AWAY` lower, 2^9 times as little with 9 fraction bits more, so none of them is above 0."""
    t, c, f = convert.tensor(x), convert.context, convert.fraction_bits
    range_bits = max(CIRCLE, math.ceil(math.log2(in_units(most) + AWAY + UNREAD + 1)))
    with operation("exponential"):
        m = await convert.masked(t, f, max(t.needs(f), f + range_bits + UNIT_BITS))
        e = exponents_of_masked(c, m.map(torch.neg)).x
        below = e.to_ring(range_bits + e.frac).add_public(-AWAY << e.frac)
        found = await exponential(c, below, f + AWAY_OCTAVES, RING_BITS)
    return convert.new(found.with_frac(f), 1)


async def soft_cap(convert: Conversion, x: Value, cap: float) -> MaskedTensor:
    """Return cap tanh(x / cap), Shared; x is opened in the ring of a period."""
    t, f = convert.tensor(x), convert.fraction_bits
    period, magnitude = period_bits(cap, t.magnitude), math.ceil(math.log2(cap)) + 1
    with operation("soft cap"):
        m = await convert.masked(t, f, f + period)
        return convert.new(cap_gate.soft_cap(convert.context, m, cap, period, FRAC + magnitude + 2), magnitude)


async def tanh(convert: Conversion, x: Value) -> MaskedTensor:
    """Return tanh(x), Shared: the soft cap 1 of what relu(x + 8) - relu(x - 8) - 8 keeps within +-8 (`TANH_BITS`).

    Its period does not depend on x's bound, by which x is checked as it is opened. An opening more than relu. Error: below
    2^-11.5."""
    t, c, f = convert.tensor(x), convert.context, convert.fraction_bits
    magnitude, end = max(t.magnitude, TANH_BITS) + 1, 1 << (TANH_BITS + f)
    least = max(f + magnitude + 2, gate.least_bits("relu", f))
    plan = gate.chosen(c, "relu", 2 * t.shape.numel(), Rings(f, least, least))
    with operation("tanh"):
        m = await convert.masked(t, f, plan.x_bits, lifted=plan.left > plan.x_bits)
        both = m.add_public(end).beside(m.add_public(-end))
        halves = convert.new(await gate.activation(c, both, "relu", plan), magnitude)
        width = t.shape[-1]
        kept = halves[..., :width] - halves[..., width:] - float(1 << TANH_BITS)
    return await soft_cap(convert, convert.with_bound(kept, 2.0**TANH_BITS), 1.0)


async def gated_activation(convert: Conversion, gated: Value, up: Value, kind: Activation) -> MaskedTensor:
    """Return activation(gated) * up, WideShared or Shared; `up` is made masked beside the activation.

    Both are opened as they are and lifted in the product. It is made in the ring that the layer behind needs or, a round
    more for fewer dealt bytes, in the smallest that holds it, to be raised to that (`forms`)."""
    f, bound = convert.fraction_bits, convert.bounds.here.activation
    t, other = convert.tensor(gated), convert.tensor(up)

    async def activated() -> Masked:
        with operation(kind):
            y = await _activated(convert, t, kind, 0)
            return (await convert.masked(y, f, y.needs(f), lifted=True)).starting(-1 << f)

    a, b = await together(activated(), convert.masked(other, f, other.needs(f) + 1, cut=False, lifted=True))
    magnitude = 2 * bound + 2
    bits = _product_bits(convert, (a, b), (f + magnitude + 2, _wanted(convert, t, magnitude)))
    return convert.new(lifted.multiply(convert.context, "gate", a, b, bits), magnitude)


def _product_bits(convert: Conversion, factors: tuple[Masked, Masked], rings: tuple[int, int]) -> int:
    """Return the ring of a product that is cut to f fraction bits. rings: that holds it then, and that is wanted."""
    f, c, (a, b) = convert.fraction_bits, convert.context, factors
    count, others = a.shape.numel() / 8, c.parties - 1
    least, wanted = min(rings), rings[1]
    found = {"lifted": wanted + f, "raised": least + f}
    more = wanted - least
    whole = f if c.parties > 2 else 0  # of what is cut after it was opened
    dealt = {name: lifted.dealt_bits(bits, a, b) * count for name, bits in found.items()}
    forms = [
        Form("lifted", 0, (wanted + whole) * others * count, dealt["lifted"]),
        Form("raised", 1, (wanted + whole) * others * count, dealt["raised"] + 2 * more * count),
    ]
    return found[choose(forms, c.prefer) if more else "lifted"]


async def less_than_zero(convert: Conversion, x: Value, fraction_bits: int | None = None) -> MaskedTensor:
    """Return 1 where x < 0, else 0, Shared. 1 round from a masked x."""
    t = convert.tensor(x)
    frac = min(t.frac, convert.fraction_bits if fraction_bits is None else fraction_bits)
    m = await convert.masked(t, frac, frac + t.magnitude + 2)
    with operation("less than zero"):
        return convert.new((await comparison.less_than_zero(convert.context, m)).share(RING_BITS), 1)


async def squared(convert: Conversion, x: Value, fraction_bits: int) -> MaskedTensor:
    """Return x^2, Shared, see `Suite.squared`. 1 round, which masks x in the full ring."""
    t = convert.tensor(x)
    frac = min(t.frac, fraction_bits)
    fits = 2 * (frac + t.magnitude) + 2 <= RING_BITS
    require(fits, "square", f"the squares of values below 2^{t.magnitude} with {frac} fraction bits do not fit")
    with operation("square"):
        m = await convert.masked(t, frac, RING_BITS)
        return convert.new(product.multiply(convert.context, m, m), 2 * t.magnitude)
