"""Bits of a ring: 1 to 64."""

from __future__ import annotations

from mpc.errors import RangeError

RING_BITS = 64


def check_bits(bits: int) -> None:
    """Raise `RangeError` unless 1 <= bits <= 64."""
    if not 1 <= bits <= RING_BITS:
        raise RangeError(f"ring bits must be between 1 and 64, got {bits}")
