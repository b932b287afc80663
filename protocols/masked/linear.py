"""Linear layers of the suite `masked`: weights, x W + b, and rows of the token table.

A weight is masked once, when it is loaded, and reused for ever (`weights`); a product with it then costs the opening of x.
Rounds: 1 where x is not masked yet; `look_up` 2. Bytes: ring bits per element of x. Offline: ring bits per output element;
of one that is opened next, as it is, only those that are left when it is (`veiled`).
Leaks: nothing; what is opened is masked (docs/security.md, "Suite masked").
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mpc.errors import RangeError
from mpc.ledger import operation
from mpc.ring import RING_BITS
from protocols.bounds import LARGEST_WEIGHT
from protocols.masked import lifted, product, tokens, veiled
from protocols.masked.context import Context, open_value
from protocols.masked.conversion import Conversion
from protocols.masked.magnitudes import ROOM, WEIGHT_BITS
from protocols.masked.shares import Masked, WideShared
from protocols.masked.stream import written_bits
from protocols.masked.values import MaskedTensor, MaskedWeight
from protocols.masked.veiled import Veiled
from protocols.masked.weights import fixed_weight
from protocols.suite import Linear, Value

TABLE = "embedding.tokens"  # is multiplied by one-hot rows only, in a small ring
BIAS_RING = 112


async def weight(convert: Conversion, name: str, shape: Sequence[int], share: Tensor | None) -> MaskedWeight:
    """Open the weight's masked form once: 8 bytes per element to each other party, 1 round a block of rows.

    The result keeps neither the session's tape nor its channel.
    """
    c, bounds = convert.context, convert.bounds
    with operation("weight"):
        bits = bounds.table_bits if name == TABLE else RING_BITS
        multiplied = name == TABLE or not name.startswith("embedding")  # rows of other tables are added
        fixed = await fixed_weight(c, shape, share, (WEIGHT_BITS, bits), multiplied)
        wide = _lifted(c, fixed) if len(shape) == 1 else None
    magnitude = bounds.first_stream if len(shape) == 1 or name.startswith("embedding") else LARGEST_WEIGHT
    return MaskedWeight(c.local(), fixed, magnitude, wide)


def _lifted(c: Context, vector: product.FixedWeight) -> WideShared:
    """Return the sharing of a bias in a ring that holds it beside any product that it is added to; local."""
    found = lifted.lift(c, Masked(vector.m, vector.lam, vector.bits, vector.frac), BIAS_RING, "bias")
    assert isinstance(found, WideShared)
    return found


def _fixed(weight: Value) -> product.FixedWeight:
    """Return a weight's masked form. Raises `RangeError` for a value that is none."""
    if not isinstance(weight, MaskedWeight):
        raise RangeError("the weight of a layer, or the token table, must come from Suite.weight")
    return weight.weight


def fixed_vector(convert: Conversion, weight: Value) -> Masked:
    """Return a fixed secret as a factor of element-wise products, by the mask that it was opened under once; local."""
    c, w = convert.context, _fixed(weight)

    def mask() -> Tensor:
        if not c.evaluating:
            return w.lam
        return (w.m if c.first else torch.zeros_like(w.m)) - w.own  # what is kept of a weight's sharing is m - lam

    return Masked(w.m, mask, w.bits, w.frac)


def weight_product(convert: Conversion, x: Masked, weight: Value, magnitude: int) -> MaskedTensor:
    """Return x W in x's ring, Shared, |x W| < 2^magnitude; local."""
    return convert.new(product.weight_product(convert.context, "linear", x, _fixed(weight)), magnitude)


async def opened_product(convert: Conversion, x: Masked, weight: Value, cut: int) -> Masked:
    """Return <x W>, `cut` fraction bits fewer. 1 round."""
    c = convert.context
    if cut == 0:
        return await open_value(c, product.weight_product(c, "linear", x, _fixed(weight)))
    return await veiled.open_cut(c, veiled.weight_product(c, "linear", x, _fixed(weight)), cut)


def _behind(convert: Conversion, x: Masked, weight: Value, added: Sequence[MaskedTensor]) -> Veiled:
    """Return x W plus values of no more fraction bits behind a veil, in the smallest of their rings; local."""
    out = veiled.weight_product(convert.context, "linear", x, _fixed(weight))
    for term in added:
        finer = term.as_shared()
        finer = finer.shift_left(out.frac - finer.frac)
        out = out.to_ring(min(out.bits, finer.bits)).add(finer)
    return out


async def linear(convert: Conversion, x: Value, layer: Linear, residual: Value | None = None) -> MaskedTensor:
    """Return x W + b (+ residual), Shared, fraction_bits + 16 fraction bits."""
    t = convert.tensor(x)
    kind, bound = convert.bounds.linear_kind
    written = residual is not None or layer.use == "stream"
    watched = None if written else kind
    magnitude = convert.bounds.stream + ROOM if written else bound + 1
    frac = min(t.frac, convert.fraction_bits)
    bits = frac + max(WEIGHT_BITS + magnitude + int(not written), t.magnitude) + 2
    if layer.use == "normalised":
        bits = RING_BITS
    if written:
        bits = max(bits, written_bits(convert, frac, math.prod(x.shape[:-1]), layer.weight.shape[-1]))
    with operation("linear"):
        m = await convert.masked(t, frac, bits)
        added = [convert.tensor(term) for term in (layer.bias, residual) if term is not None]
        if (written or layer.use == "function") and all(term.frac <= frac + WEIGHT_BITS for term in added):
            out = convert.new(_behind(convert, m, layer.weight, added), magnitude)  # opened next, and as it is
            out.watched = watched
            return out
        out = weight_product(convert, m, layer.weight, magnitude)
    for term in added:
        out = out + term
    out.magnitude, out.watched = magnitude, watched
    return out


def streams_added(convert: Conversion, x: Value, y: Value) -> MaskedTensor:
    """Return x + y, the residual stream of two parts that wrote to it: a part alone may wrap, the sum is what is bounded."""
    out = convert.tensor(x) + convert.tensor(y)
    out.magnitude = convert.bounds.stream + ROOM
    return out


async def gained(convert: Conversion, x: Value, gain: Value) -> MaskedTensor:
    """Return x [..., D or 1] times a fixed secret vector [D], Shared, fraction_bits + 16 fraction bits. No round for rows
    that are masked already."""
    t = convert.tensor(x)
    frac = min(t.frac, convert.fraction_bits)
    magnitude = max(convert.bounds.stream, t.magnitude + LARGEST_WEIGHT)
    least = min(RING_BITS, frac + WEIGHT_BITS + magnitude + ROOM + 2)
    with operation("gain"):
        m = await convert.masked(t, frac, RING_BITS if t.masked is None else least)
        return convert.new(product.weight_multiply(convert.context, "gain", m, _fixed(gain)), magnitude)


async def one_hot(convert: Conversion, index: Value, size: int) -> MaskedTensor:
    """Return the one-hot rows of secret places, see `Operations.one_hot`. 1 round, w bits each."""
    with operation("embed"):
        found = await tokens.opened_rows(convert.context, convert.tensor(index).as_shared(), size, RING_BITS)
        return convert.new(found, 1)


async def look_up(convert: Conversion, index: Value, table: Value) -> MaskedTensor:
    """Return the rows of the table at secret places, see `protocols.masked.tokens`. 2 rounds."""
    bits = convert.bounds.table_bits
    with operation("embed"):
        found = await tokens.look_up(convert.context, convert.tensor(index).as_shared(), _fixed(table), bits)
        return convert.new(found, _row_bound(convert))


async def embed(convert: Conversion, one_hot: Value, table: Value) -> MaskedTensor:
    """Return the one-hot rows times the table; the one-hot is opened (masked) in the table's ring."""
    with operation("embed"):
        m = await convert.masked(convert.tensor(one_hot), 0, convert.bounds.table_bits)
        return weight_product(convert, m, table, _row_bound(convert))


def _row_bound(convert: Conversion) -> int:
    """Return the bound on rows of the token table; positions may join."""
    return convert.bounds.first_stream + ROOM - 1
