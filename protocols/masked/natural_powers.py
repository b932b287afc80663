"""Tables of powers of e as integers that are equal wherever they are made: what parties multiply shares by must be.

An entry is the product of two rounded factors, made from correctly rounded decimals and multiplied as integers, so it does
not depend on a processor's or a library's exponential function. Relative error below 2^-30, and half a unit.
Leaks: nothing; everything here is public.
"""

from __future__ import annotations

import math
from decimal import Context, Decimal
from functools import cache

import torch
from torch import Tensor

from mpc.ring import RING_BITS
from mpc.wide import WIDE_BITS, Wide

_DIGITS = Context(prec=48)
_LOW_BITS = 30  # fraction bits of the factor that is near 1
_WORD = (1 << RING_BITS) - 1


def _rounded(exponent: Decimal, frac: int) -> int:
    """Return round(2^frac e^exponent)."""
    scaled = _DIGITS.multiply(_DIGITS.exp(exponent), Decimal(1 << frac))
    return int(scaled.to_integral_value(context=_DIGITS))


def _words(numbers: list[int]) -> Wide:
    """Return non-negative numbers below 2^127 as pairs of words."""
    low, high = [n & _WORD for n in numbers], [n >> RING_BITS for n in numbers]
    return Wide(torch.tensor([n - ((n >> 63) << RING_BITS) for n in low]), torch.tensor(high))


@cache
def powers_wide(sign: int, width: int, frac: int, offset: int, out: int, device: str = "cpu") -> Wide:
    """Return round(2^out e^(offset + sign k / 2^frac)) for k from 0 to 2^width - 1, made once for a device. sign: +1 or
    -1."""
    if device != "cpu":
        return powers_wide(sign, width, frac, offset, out).map(lambda t: t.to(device))
    half = width // 2
    most = max(offset, offset + sign * 2.0 ** (width - frac)) * math.log2(math.e) + out
    guard = WIDE_BITS - 4 - _LOW_BITS - math.ceil(most)  # further bits of the larger factor
    unit = Decimal(1 << frac)
    high = [
        _rounded(_DIGITS.add(Decimal(offset), _DIGITS.divide(Decimal(sign * (i << half)), unit)), out + guard)
        for i in range(1 << (width - half))
    ]
    low = [_rounded(_DIGITS.divide(Decimal(sign * j), unit), _LOW_BITS) for j in range(1 << half)]
    factors = _words(high).map(lambda t: t[:, None].expand(len(high), len(low)))
    product = factors * torch.tensor(low)
    count = guard + _LOW_BITS
    half_unit = Wide.of(torch.ones_like(product.low)) << (count - 1)
    return ((product + half_unit) >> count).map(lambda t: t.reshape(-1))


@cache
def powers(sign: int, width: int, frac: int, offset: int, out: int, device: str = "cpu") -> Tensor:
    """As `powers_wide`, for entries that fit a word."""
    return powers_wide(sign, width, frac, offset, out, device).low
