"""Rings and fraction bits of the residual stream and of the norms that read it.

Integer bits are the budget. A truncation keeps a ring's integer bits, a product with a weight of 16 fraction bits takes 16
of them. What is written to the stream comes from a product modulo 2^64 with 14 + 16 fraction bits, so 34 integer bits are
left when it is opened, and 18 of its own products with weights: enough for |h W| below 2^16, so nothing has to be lifted on
the way. Where the declared bounds ask for more, the stream is raised to the ring that they need, a round more.

Public: all of it follows from bounds. Rounds, bytes: none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mpc.ring import RING_BITS
from protocols.masked.conversion import Conversion
from protocols.masked.forms import Form, choose
from protocols.masked.magnitudes import ROOM, WEIGHT_BITS

SCALE_BITS = 20  # fraction bits of 1/deviation at least
RELATIVE_BITS = 10  # 1/deviation at the residual stream's bound keeps a relative precision of 2^-10
RESIDUAL_BITS = (12, 16)  # fraction bits of the residual stream: early layers are small, and norms amplify
MOVED = (20, 150)  # bytes that a product before the norm's division sends and is dealt more, per channel of the stream
SURE_UNITS = 0.75  # a value flagged from so much of a power of two on is flagged for certain below it (`ranges`)


@dataclass(frozen=True)
class StreamBits:
    """frac: fraction bits of the residual stream. bits: its ring. scale: fraction bits of 1 / deviation. product_first:
    whether linear layers come before the norm's division. product: |h W| before it is divided stays below that."""

    frac: int
    bits: int
    scale: int
    product_first: bool
    product: float


def stream_bits(convert: Conversion, rows: int, width: int) -> StreamBits:
    """Return what holds for a residual stream of `rows` rows of `width` channels, read here."""
    residual, bound = convert.bounds.here.residual, convert.bounds.linear_kind[1]
    deviation = residual - math.log2(width) / 2  # log2 of the largest: the norm of a row is bounded
    product = 2.0 ** (bound + deviation)
    whole = WEIGHT_BITS + math.ceil(math.log2(product / SURE_UNITS)) + 2
    low, high = RESIDUAL_BITS
    frac = max(low, min(high, convert.fraction_bits + 2))
    scale = max(SCALE_BITS, math.ceil(deviation + RELATIVE_BITS))
    product_first = _product_first(convert, rows * width) and frac + whole <= RING_BITS
    least = frac + convert.bounds.stream + ROOM + 2  # what is written here is added to it
    return StreamBits(frac, max(frac + whole, least) if product_first else least, scale, product_first, product)


def _product_first(convert: Conversion, channels: int) -> bool:
    """Return whether linear layers come first: a round less for each norm, and more bytes."""
    sent, dealt = (each * channels for each in MOVED)
    forms = [Form("scale", 1, 0, 0), Form("product", 0, sent, dealt)]
    return choose(forms, convert.context.prefer) == "product"


def factor_bits(convert: Conversion, channels: int, magnitude: int) -> int:
    """Return the ring of a factor below 2^magnitude, `channels` numbers of it, whose product is added to the stream: the
    largest where the stream's products are not lifted on the way, else the least."""
    if _product_first(convert, channels):
        return RING_BITS
    f = convert.fraction_bits
    return min(RING_BITS, f + max(WEIGHT_BITS + convert.bounds.stream + ROOM, magnitude) + 2)


def written_bits(convert: Conversion, frac: int, rows: int, width: int) -> int:
    """Return the ring of a factor with `frac` fraction bits whose product with a weight is added to the stream: after the
    product is cut, the stream's ring is there, or is raised to it where no product has it."""
    b = stream_bits(convert, rows, width)
    wanted = b.bits + frac + WEIGHT_BITS - b.frac
    return wanted if wanted <= RING_BITS else frac + WEIGHT_BITS + convert.bounds.stream + ROOM + 2
