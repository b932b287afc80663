"""Tables of powers of 2^(3/2) as integers that are equal wherever they are made: what parties multiply shares by must be.

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

from mpc.wide import Wide

OCTAVES = 3  # of two units
_DIGITS = Context(prec=48)
_LOW_BITS = 30  # fraction bits of the factor that is near 1
_HIGH_BITS = 62  # bits of the other one


def _rounded(octaves: Decimal, frac: int) -> int:
    """Return round(2^frac 2^octaves)."""
    found = _DIGITS.multiply(_DIGITS.power(Decimal(2), octaves), Decimal(1 << frac))
    return int(found.to_integral_value(context=_DIGITS))


@cache
def powers(sign: int, width: int, frac: int, octaves: int, out: int, device: str = "cpu") -> Tensor:
    """Return round(2^out 2^(octaves + sign 3/2 k / 2^frac)) for k from 0 to 2^width - 1, made once for a device.

    sign: +1 or -1. Entries are below 2^61."""
    if device != "cpu":
        return powers(sign, width, frac, octaves, out).to(device)
    half, unit = width // 2, Decimal(2 << frac)
    guard = _HIGH_BITS - math.ceil(max(octaves, octaves + sign * OCTAVES / 2 * 2.0 ** (width - frac))) - out
    high = [
        _rounded(_DIGITS.add(Decimal(octaves), _DIGITS.divide(Decimal(sign * OCTAVES * (i << half)), unit)), out + guard)
        for i in range(1 << (width - half))
    ]
    low = [_rounded(_DIGITS.divide(Decimal(sign * OCTAVES * j), unit), _LOW_BITS) for j in range(1 << half)]
    product = Wide.of(torch.tensor(high)[:, None].expand(len(high), len(low))) * torch.tensor(low)
    count = guard + _LOW_BITS
    half_unit = Wide.of(torch.ones_like(product.low)) << (count - 1)
    return ((product + half_unit) >> count).low.reshape(-1)
