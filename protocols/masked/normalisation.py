"""Norms of the suite `masked`: 1 / deviation of each row, and the linear layers that follow a norm.

One token: the statistics run beside the matrix product, whose result is scaled (fewest rounds: 6). Many tokens: the input is
scaled first, two rounds more, but nothing is opened in the product's large ring (fewest bytes). So too where large bounds
leave no room for the product before it is scaled.

Error: 1 / deviation within 2^-12 relative for usual rows. Rows outside the declared norm, or whose deviation is too small
for the residual stream's fraction bits, are flagged (`ranges`).
Leaks: nothing; what is opened is masked (docs/security.md, "Norms").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mpc.ledger import operation
from mpc.ring import RING_BITS
from protocols.masked import product
from protocols.masked.context import open_value
from protocols.masked.conversion import Conversion
from protocols.masked.linear import linear, weight_product
from protocols.masked.magnitudes import ROOM, WEIGHT_BITS
from protocols.masked.power import power
from protocols.masked.shares import Masked
from protocols.masked.truncation import open_cut, truncate, truncate_and_lift
from protocols.masked.values import MaskedTensor
from protocols.schedule import together
from protocols.suite import Linear, Norm, Value

SCALE_BITS = 18  # fraction bits of 1/deviation at least
RELATIVE_BITS = 10  # 1/deviation at the residual stream's bound keeps a relative precision of 2^-10
RESIDUAL_BITS = (12, 16)  # fraction bits of the residual stream: early layers are small, and norms amplify
PRODUCT_BITS = 18  # fraction bits of a product before a norm scales it; h itself has fewer
SMALLEST_DEVIATION = 9  # a row whose deviation is below 2^-9 is flagged: the stream's fraction bits do not suffice for it
MANY_ROWS = 4  # from here on a norm scales its input and not its output


@dataclass(frozen=True)
class NormBits:
    """stream: fraction bits of the residual stream. scale: of 1 / deviation. bits: the stream's ring. product_first: whether
    a product fits it before it is scaled."""

    stream: int
    scale: int
    bits: int
    product_first: bool


def norm_bits(convert: Conversion, width: int) -> NormBits:
    """Return fraction bits and rings of a norm here, for rows of `width` channels."""
    residual, bound = convert.bounds.here.residual, convert.bounds.linear_kind[1]
    scale = max(SCALE_BITS, math.ceil(residual - math.log2(width) / 2 + RELATIVE_BITS))
    fixed = WEIGHT_BITS + bound + 1 + 3
    low, high = RESIDUAL_BITS
    stream = max(low, min(high, convert.fraction_bits + 2, RING_BITS - fixed - scale))
    bits = max(stream + fixed + scale, 2 * stream + 2 * residual + ROOM + 2)
    return NormBits(stream, scale, min(bits, RING_BITS), stream + fixed + scale <= RING_BITS)


def _inverse_magnitude(norm: Norm) -> int:
    """Return a bound: 1 / sqrt(moment + eps) < 2^magnitude."""
    return max(1, math.ceil(-0.5 * math.log2(norm.epsilon)) + 1)


async def _stream(convert: Conversion, x: Value, b: NormBits) -> Masked:
    """Return the residual stream, masked in the ring that both its square and its products need."""
    with operation("residual"):
        return await convert.masked(convert.tensor(x), b.stream, b.bits)


def _times_public(x: Masked, factor: float, bits: int) -> Masked:
    return x.map(lambda t: t * round(factor * 2.0**bits)).with_frac(x.frac + bits)


async def _inverse(convert: Conversion, h: Masked, norm: Norm) -> MaskedTensor:
    """Return [1 / sqrt(moment + eps)] of each row, [..., 1], Shared. 3 rounds."""
    width = h.shape[-1]
    c = convert.context
    residual = convert.bounds.here.residual
    with operation("norm statistics"):
        if norm.kind == "layer":
            # the mean is cut by more than the ring can lose, hence one round for its lift; a model whose residual
            # stream is centred by its weights uses the kind "rms" and needs no mean
            precision = 12 + width.bit_length()
            total = _times_public(h.map(lambda t: t.sum(-1, keepdim=True)), 1 / width, precision)
            mean = truncate_and_lift(c, total, precision, h.bits)
            h = await open_value(c, c.shared(h).add(mean.map(torch.neg).map(lambda t: t.expand(h.shape))))
        # a copy with fewer fraction bits is squared where the ring could not hold the square with room above the bound
        h = truncate(c, h, max(0, 2 * h.frac + 2 * residual + ROOM + 2 - h.bits))
        squares = product.multiply(c, h, h).map(lambda t: t.sum(-1, keepdim=True))
        epsilon = max(1, round(norm.epsilon * width * 2.0**squares.frac))
        moment = c.add_public(squares, torch.full((*h.shape[:-1], 1), epsilon, dtype=torch.int64, device=c.device))
        opened = await open_value(c, moment)
        near = opened.to_ring(min(opened.bits, opened.frac + 2 * residual + 7))  # norms up to eleven times the bound
        convert.ranges.check("residual", near, 4.0**residual, signed=False, width=8)
        high = squares.frac + 2 * residual + 1
        low_bit = max(epsilon.bit_length() - 1, 1)
        inverse = await power(c, opened.to_ring(high + 1), low_bit, high, -0.5, math.sqrt(width))
    return convert.new(inverse, _inverse_magnitude(norm))


async def _masked_inverse(convert: Conversion, h: Masked, norm: Norm, frac: int, bits: int) -> Masked:
    """Return 1 / deviation of each row, masked. 4 rounds. Rows that are too small for the stream's precision are flagged."""
    found = await _inverse(convert, h, norm)
    with operation("norm scale"):
        r = await convert.masked(found, frac, bits)
        if _inverse_magnitude(norm) > SMALLEST_DEVIATION + 1:
            wide = r.to_ring(min(r.bits, frac + _inverse_magnitude(norm) + 2))
            convert.ranges.check("residual", wide, 2.0**SMALLEST_DEVIATION, signed=False, width=8)
        return r


async def rsqrt_moment(convert: Conversion, x: Value, norm: Norm) -> MaskedTensor:
    """Return 1 / sqrt(moment + eps), [..., D] -> [..., 1], Shared."""
    return await _inverse(convert, await _stream(convert, x, norm_bits(convert, x.shape[-1])), norm)


async def norm_linear(
    convert: Conversion, x: Value, norm: Norm, layers: Sequence[Linear], whole: bool = False
) -> list[Value]:
    """Normalise x [..., D], then apply each linear layer; which of both comes first, see the module.

    whole: no fraction bit of the products is cut: the input is scaled first.
    """
    b = norm_bits(convert, x.shape[-1])
    h = await _stream(convert, x, b)
    if math.prod(h.shape[:-1]) > MANY_ROWS or whole or not b.product_first:
        return await _scale_first(convert, h, norm, layers, b)
    return await _product_first(convert, h, norm, layers, b)


async def _product_first(convert: Conversion, h: Masked, norm: Norm, layers: Sequence[Linear], b: NormBits) -> list[Value]:
    """Return h W / deviation + b: the products are opened beside the statistics."""
    c = convert.context
    kind, bound = convert.bounds.linear_kind
    cut = max(h.frac + WEIGHT_BITS - PRODUCT_BITS, 0)  # the scaled product is opened with so many bits fewer

    async def before(layer: Linear) -> Masked:
        with operation("linear"):
            return await open_cut(c, weight_product(convert, h.to_ring(b.bits), layer.weight, 0).as_shared(), cut)

    (r, *products) = await together(
        _masked_inverse(convert, h, norm, b.scale, b.bits - cut), *(before(layer) for layer in layers)
    )
    out: list[Value] = []
    for pre, layer in zip(products, layers, strict=True):
        with operation("norm scale"):
            y = convert.new(product.multiply(c, pre, r), bound + 1)
        if layer.bias is not None:
            y = y + convert.tensor(layer.bias)
            y.magnitude = bound + 1
        y.watched = kind
        out.append(y)
    return out


async def _scale_first(convert: Conversion, h: Masked, norm: Norm, layers: Sequence[Linear], b: NormBits) -> list[Value]:
    """Return (h / deviation) W + b. |h / deviation| <= sqrt(D), whatever h is."""
    f, bound = convert.fraction_bits, convert.bounds.linear_kind[1]
    magnitude = math.ceil(math.log2(h.shape[-1]) / 2)
    bits = h.frac + b.scale + max(magnitude, _inverse_magnitude(norm)) + 2
    r = await _masked_inverse(convert, h, norm, b.scale, bits)
    with operation("norm scale"):
        y = convert.new(product.multiply(convert.context, h.to_ring(r.bits), r), magnitude)
        scaled = convert.new(await convert.masked(y, f, f + WEIGHT_BITS + bound + 2 + ROOM), magnitude)
    outputs = await together(*(linear(convert, scaled, layer) for layer in layers))
    return list(outputs)
