"""Conversions between the suite `masked` and CrypTen's `ArithmeticSharedTensor`, so that one protocol can be used alone.

A CrypTen tensor is an additive sharing in Z_2^64 with `precision` fraction bits: reading it costs nothing. The way back
costs nothing from the full ring and one opening (1 round, ring bits per element) from a smaller one, where the value is
lifted. Leaks: nothing (docs/security.md, "CrypTen border").
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mpc.errors import ConfigurationError
from protocols.masked.context import Context, open_value
from protocols.masked.shares import Masked, Shared
from protocols.masked.truncation import lift

if TYPE_CHECKING:
    from crypten.mpc.primitives import ArithmeticSharedTensor


def from_crypten(tensor: ArithmeticSharedTensor) -> Shared:
    """[x] modulo 2^64 from this party's CrypTen tensor. Raises `ConfigurationError` when its scale is no power of two."""
    scale = int(tensor.encoder.scale)
    if scale < 1 or scale & (scale - 1):
        raise ConfigurationError(f"a CrypTen tensor with scale {scale} was given; the scale must be a power of two")
    share: Any = tensor.share
    share = share.tensor() if hasattr(share, "_tensor") else share
    return Shared(share, 64, scale.bit_length() - 1)


async def to_crypten(c: Context, x: Shared | Masked) -> ArithmeticSharedTensor:
    """This party's CrypTen tensor of x; |x| < 2^(x.bits - 2) ring units when x's ring is smaller than 2^64."""
    from protocols.crypten.binding.requirement import require_crypten

    require_crypten()
    from crypten.mpc.primitives import ArithmeticSharedTensor

    if x.bits < 64:
        masked = x if isinstance(x, Masked) else await open_value(c, x)
        x = lift(c, masked, 64)
    shared = c.shared(x) if isinstance(x, Masked) else x
    return ArithmeticSharedTensor.from_shares(shared.x, precision=shared.frac)
