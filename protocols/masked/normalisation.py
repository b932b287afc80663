"""Norms of the suite `masked`: 1 / deviation of each row, and the linear layers that follow a norm.

One token: the statistics run beside the matrix product, whose result is scaled (fewest rounds: 3 with two parties). Many
tokens: the input is scaled first, a round more, but nothing is opened in the product's large ring (fewest bytes). So too
where large bounds leave no room for the product before it is scaled.

Error: 1 / deviation within 2^-12 relative for usual rows. Rows outside the declared norm, or whose deviation is too small
for the residual stream's fraction bits, are flagged (`ranges`).
Leaks: nothing; what is opened is masked (docs/security.md, "Norms").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from mpc.ledger import operation
from mpc.ring import RING_BITS
from protocols.bounds import LARGEST_GAIN
from protocols.masked import lifted
from protocols.masked.arithmetic import ROTATION_BITS
from protocols.masked.context import Context, open_value
from protocols.masked.conversion import Conversion
from protocols.masked.linear import fixed_vector, linear, opened_product, weight_product
from protocols.masked.magnitudes import ROOM, WEIGHT_BITS
from protocols.masked.power import Power, power
from protocols.masked.shares import Masked, Shared
from protocols.masked.stream import RELATIVE_BITS, SCALE_BITS, StreamBits, stream_bits
from protocols.masked.truncation import lift, open_cut, truncate
from protocols.masked.values import MaskedTensor
from protocols.masked.wide import open_any
from protocols.schedule import together
from protocols.suite import Linear, Norm, Value

PRODUCT_BITS = 18  # fraction bits of a product before a norm scales it; h itself has fewer
SQUARE_ROOM = 7  # bits between the square of a row's norm at its bound and what a ring holds where it is checked
SMALLEST_DEVIATION = 9  # a row whose deviation is below 2^-9 is flagged: the stream's fraction bits do not suffice for it


def _inverse_magnitude(norm: Norm) -> int:
    """Return a bound: 1 / sqrt(moment + eps) < 2^magnitude."""
    return max(1, math.ceil(-0.5 * math.log2(norm.epsilon)) + 1)


async def _stream(convert: Conversion, x: Value, b: StreamBits) -> Masked:
    """Return the residual stream, masked in the ring that it and its products need."""
    with operation("residual"):
        t = convert.tensor(x)
        return await convert.masked(t, b.frac, max(b.bits, t.needs(b.frac)), lifted=True)


def _bits_of(convert: Conversion, x: Value) -> StreamBits:
    return stream_bits(convert, math.prod(x.shape[:-1]), x.shape[-1])


async def _centred(c: Context, h: Masked, residual: int) -> Masked:
    """Return h less each row's mean, for rows up to four times the bound 2^residual. 1 round."""
    width = h.shape[-1]
    precision = min(12 + width.bit_length(), RING_BITS - 2 - h.frac - residual - ROOM)
    whole = lift(c, h, RING_BITS)
    mean = whole.map(lambda t: (t.sum(-1, keepdim=True) * round(2.0**precision / width)).expand(h.shape))
    return await open_cut(c, Shared((whole.x << precision) - mean.x, RING_BITS, h.frac + precision), precision)


async def _inverse(convert: Conversion, h: Masked, norm: Norm, reach: int | None = None) -> MaskedTensor:
    """Return [1 / sqrt(moment + eps)] of each row, [..., 1], Shared. 1 round with two parties, else 3; one more for a
    mean that is not centred.

    reach: log2 of what no row's norm exceeds, where that is known; else rows are those of the residual stream, and flagged
    where they leave its bound."""
    width = h.shape[-1]
    c = convert.context
    residual = convert.bounds.here.residual if reach is None else reach
    with operation("norm statistics"):
        if norm.kind == "layer":  # a model whose stream is centred by its weights uses the kind "rms" and needs no mean
            h = await _centred(c, h, residual)
        # a copy with fewer fraction bits is squared where a ring could not hold the square with room above the bound
        h = truncate(c, h, max(0, h.frac + residual + ROOM // 2 + 1 - RING_BITS // 2))
        # norms up to eleven times the bound, where a word has room for them; up to four times always
        bits = min(RING_BITS, 2 * h.frac + 2 * residual + SQUARE_ROOM)
        squares = lifted.square_sums(c, "squares", h, bits)
        epsilon = max(1, round(norm.epsilon * width * 2.0**squares.frac))
        moment = c.add_public(squares, torch.full((*h.shape[:-1], 1), epsilon, dtype=torch.int64, device=c.device))
        opened = await open_value(c, moment)
        if reach is None:
            convert.ranges.check("residual", opened, 4.0**residual, signed=False, width=8)
        high = squares.frac + 2 * residual + 1
        low_bit = max(epsilon.bit_length() - 1, 1)
        inverse = await power(c, opened.to_ring(high + 1), Power(low_bit, high, -0.5, math.sqrt(width)))
    return convert.new(inverse, _inverse_magnitude(norm))


async def _masked_inverse(convert: Conversion, h: Masked, norm: Norm, frac: int, reach: int | None = None) -> Masked:
    """Return 1 / deviation of each row, masked in the ring that holds it. Rows that are too small for the stream's
    precision are flagged."""
    found = await _inverse(convert, h, norm, reach)
    with operation("norm scale"):
        r = await convert.masked(found, frac, frac + _inverse_magnitude(norm) + 2)
        if _inverse_magnitude(norm) > SMALLEST_DEVIATION + 1:
            wide = r.to_ring(min(r.bits, frac + _inverse_magnitude(norm) + 2))
            kind = "residual" if reach is None else convert.bounds.linear_kind[0]
            convert.ranges.check(kind, wide, 2.0**SMALLEST_DEVIATION, signed=False, width=8)
        return r


async def rsqrt_moment(convert: Conversion, x: Value, norm: Norm) -> MaskedTensor:
    """Return 1 / sqrt(moment + eps), [..., D] -> [..., 1], Shared."""
    return await _inverse(convert, await _stream(convert, x, _bits_of(convert, x)), norm)


async def norm_linear(
    convert: Conversion, x: Value, norm: Norm | None, layers: Sequence[Linear], whole: bool = False
) -> list[Value]:
    """Normalise x [..., D], then apply each linear layer; which of both comes first, see the module.

    whole: no fraction bit of the products is cut: the input is scaled first.
    """
    b = _bits_of(convert, x)
    if norm is None:
        return _products(convert, await _stream(convert, x, replace(b, bits=RING_BITS)), layers)
    h = await _stream(convert, x, b)
    if whole or not b.product_first:
        return await _scale_first(convert, h, norm, layers, b)
    return await _product_first(convert, h, norm, layers, b)


def _products(convert: Conversion, h: Masked, layers: Sequence[Linear]) -> list[Value]:
    """Return h W + b of a stream that no norm stands before; local. They are checked where they are opened."""
    kind, bound = convert.bounds.linear_kind
    out: list[Value] = []
    for layer in layers:
        with operation("linear"):
            y = weight_product(convert, h, layer.weight, bound + 1)
        if layer.bias is not None:
            y = y + convert.tensor(layer.bias)
        y.magnitude, y.watched = bound + 1, kind
        out.append(y)
    return out


async def norm_gain(convert: Conversion, x: Value, norm: Norm, gain: Value, residual: Value | None = None) -> MaskedTensor:
    """Return x / deviation times a fixed gain (+ residual), see `Suite.norm_gain`: 3 rounds with two parties, 5 with more,
    and what is opened of it next. x is checked, as outputs of linear layers are, when it is opened."""
    c, f = convert.context, convert.fraction_bits
    t, (kind, bound) = convert.tensor(x), convert.bounds.linear_kind
    magnitude, scale = bound + 1, max(SCALE_BITS, bound + 1 + RELATIVE_BITS)
    reach = magnitude + math.ceil(math.log2(x.shape[-1]) / 2)
    with operation("norm"):
        m = await convert.masked(t, f, max(t.needs(f), f + reach + SQUARE_ROOM // 2 + 1))
    factor = fixed_vector(convert, gain).move(lambda g: g.reshape(_last(x.shape, g.shape)))

    async def gained() -> Masked:
        with operation("norm gain"):
            cut = f + WEIGHT_BITS - PRODUCT_BITS
            product = lifted.multiply(c, "gain", m, factor, PRODUCT_BITS + magnitude + LARGEST_GAIN + 2 + cut)
            return await open_any(c, product, cut)

    r, scaled = await together(_masked_inverse(convert, m, norm, scale, reach), gained())
    frac = scaled.frac + r.frac
    with operation("norm scale"):
        if residual is None:
            y = convert.new(lifted.multiply(c, "scale", scaled, r, RING_BITS + ROTATION_BITS + 1 + frac - f), magnitude)
            y.watched = kind
            return y
        b = _bits_of(convert, residual)
        before = convert.tensor(residual)
        h = await convert.masked(before, b.frac, max(b.bits, before.needs(b.frac)), cut=False)
        written = lifted.multiply(c, "scale", scaled, r, h.bits + frac - b.frac)
        stream = lifted.lift(c, h, h.bits, "residual")
        return convert.new(lifted.add(written, lifted.finer(stream, frac)), convert.bounds.stream + ROOM)


def _last(shape: Sequence[int], gain: Sequence[int]) -> tuple[int, ...]:
    """Return the last axes of a shape that hold a gain [n]: one, or two where n is their product."""
    return tuple(shape[-1:]) if gain[0] == shape[-1] else tuple(shape[-2:])


async def _product_first(convert: Conversion, h: Masked, norm: Norm, layers: Sequence[Linear], b: StreamBits) -> list[Value]:
    """Return h W / deviation + b: the products are opened beside the statistics."""
    c, f = convert.context, convert.fraction_bits
    kind, bound = convert.bounds.linear_kind
    cut = max(h.frac + WEIGHT_BITS - PRODUCT_BITS, 0)

    async def before(layer: Linear) -> Masked:
        with operation("linear"):
            found = await opened_product(convert, h.to_ring(b.bits), layer.weight, cut)
            convert.ranges.check(kind, found, b.product)
            return found

    (r, *products) = await together(_masked_inverse(convert, h, norm, b.scale), *(before(layer) for layer in layers))
    out: list[Value] = []
    for pre, layer in zip(products, layers, strict=True):
        excess = max(pre.frac + r.frac - f, 0)
        left = f + bound + 1 + 3 if kind == "logits" or layer.use == "function" else RING_BITS
        if layer.use == "rotated":
            left += ROTATION_BITS + 1
        with operation("norm scale"):
            y = convert.new(lifted.multiply(c, "scale", pre, r, left + excess), bound + 1)
        if layer.bias is not None:
            y = y + convert.tensor(layer.bias)
            y.magnitude = bound + 1
        y.watched = kind
        out.append(y)
    return out


async def normalise(convert: Conversion, x: Value, norm: Norm) -> MaskedTensor:
    """Return x / deviation, masked in the ring of products with weights. |x / deviation| <= sqrt(D), whatever x is."""
    b = _bits_of(convert, x)
    return await _scaled(convert, await _stream(convert, x, b), norm, b, _product_bits(convert))


def _product_bits(convert: Conversion) -> int:
    """Return the ring of normalised rows that linear layers alone read."""
    return convert.fraction_bits + WEIGHT_BITS + convert.bounds.linear_kind[1] + 2 + ROOM


async def _scaled(convert: Conversion, h: Masked, norm: Norm, b: StreamBits, bits: int) -> MaskedTensor:
    """Return h / deviation, masked modulo 2^bits."""
    f, magnitude = convert.fraction_bits, math.ceil(math.log2(h.shape[-1]) / 2)
    excess = max(h.frac + b.scale - f, 0)
    with operation("norm scale"):
        lifted.hold(convert.context, "stream", h, bits + excess)
    r = await _masked_inverse(convert, h, norm, b.scale)
    with operation("norm scale"):
        y = convert.new(lifted.multiply(convert.context, "scale", h, r, bits + excess), magnitude)
        return convert.new(await convert.masked(y, f, bits), magnitude)


async def _scale_first(convert: Conversion, h: Masked, norm: Norm, layers: Sequence[Linear], b: StreamBits) -> list[Value]:
    """Return (h / deviation) W + b."""
    scaled = await _scaled(convert, h, norm, b, _product_bits(convert))
    outputs = await together(*(linear(convert, scaled, layer) for layer in layers))
    return list(outputs)


async def post_norm(convert: Conversion, x: Value, norm: Norm) -> MaskedTensor:
    """Return normalised rows [..., D], masked in the ring of all that reads them: linear layers, and `gained` for the
    residual path."""
    b, t = _bits_of(convert, x), convert.tensor(x)
    t.magnitude = min(t.magnitude, convert.bounds.stream + ROOM)  # its norm is declared, and checked
    h = await _stream(convert, t, b)
    if norm.kind == "layer":
        with operation("norm statistics"):
            h = await _centred(convert.context, h, convert.bounds.here.residual)
    most = max(convert.bounds.linear_kind[1], convert.bounds.stream)
    return await _scaled(convert, h, Norm("rms", norm.epsilon), b, convert.fraction_bits + WEIGHT_BITS + most + ROOM + 2)
