"""Fixed-point encoding of reals into Z_2^k: x is held as round(x 2^f) with f fraction bits."""

from __future__ import annotations

import torch
from torch import Tensor

from mpc.errors import RangeError
from mpc.ring import RING_BITS, reduce, signed


def encode(x: Tensor | float, fraction_bits: int, bits: int = RING_BITS) -> Tensor:
    """Return round(x 2^fraction_bits) in Z_2^bits, int64, x's shape and device.

    Raises `RangeError` when a value is not finite or does not fit (never silently wraps). The error names the bound and
    not the value.

    >>> encode(torch.tensor([1.5, -0.25]), 4, 16)
    tensor([   24, 65532])
    """
    real = x if isinstance(x, Tensor) else torch.tensor(x, dtype=torch.float64)
    scaled = torch.round(real.to(torch.float64) * 2.0**fraction_bits)
    limit = 2.0 ** (bits - 1)
    if scaled.device.type != "meta" and scaled.numel():
        largest = scaled.abs().amax()
        if not bool(torch.isfinite(largest)) or bool(largest >= limit):
            raise RangeError(
                f"a value cannot be encoded with {fraction_bits} fraction bits in a ring of {bits} bits: "
                f"it must be finite and below {limit / 2.0**fraction_bits:g} in size"
            )
    return reduce(scaled.to(torch.int64), bits)


def decode(x: Tensor, fraction_bits: int, bits: int = RING_BITS) -> Tensor:
    """Return the float64 value of ring elements, signed representative divided by 2^fraction_bits.

    Exact for |x| < 2^53; CrypTen's own decoder returns some negative values exactly 1 too low.

    >>> decode(torch.tensor([24, 65532]), 4, 16)
    tensor([ 1.5000, -0.2500], dtype=torch.float64)
    """
    return signed(x, bits).to(torch.float64) / 2.0**fraction_bits
