"""Exact digits of a masked value: each digit masked by itself, borrows taken out.

For x = m - lam modulo 2^bits, floor(x / 2^l) = m_hi - lam_hi - [m_lo < lam_lo] modulo 2^(bits - l). The borrow is a function
of the public m_lo, so the dealer deals lam_hi + [p < lam_lo] as a one-time table over p: the high part is a local lookup,
exact, and is opened in its own ring. x modulo 2^l needs nothing. Splitting in halves, or at bit 8, gives all digits.

Rounds: ceil(log2(number of digits)) up to 24 bits, one for each further 8; online bits per element: the high parts' rings,
about bits / 2 (bits - 8) a round. Offline bits per element: 2^l (bits - l) and the opening's mask for a split at l.
Valid range: any; x is read modulo 2^bits. Error: none.
Leaks: nothing; high parts are opened under fresh uniform masks (docs/security.md, "Digits").
Sources: Ishai et al. 2013 (one-time truth tables); LLAMA (Gupta et al. 2022) for digit decomposition.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mpc import ring
from protocols.masked.context import Context, open_value, require
from protocols.masked.one_hot import look_up
from protocols.masked.shares import Masked, Shared
from protocols.schedule import together

GOOD_LOW = 8  # bits of the low part of a split, whose table has 2^low entries; a single digit may have more
MAX_LOW = 12


def even_widths(bits: int, width: int) -> tuple[int, ...]:
    """Return digit widths, low to high, of at most `width` bits each, as even as can be."""
    count = -(-bits // width)
    base, extra = divmod(bits, count)
    return tuple(base + int(i < extra) for i in range(count))


def high_part(c: Context, x: Masked, low: int) -> Shared:
    """Return [floor(x / 2^low)] modulo 2^(bits - low), x read as unsigned; local and exact."""
    bits = x.bits - low
    require(1 <= low <= MAX_LOW and bits >= 1, "digits", f"a ring of {x.bits} bits cannot be split at bit {low}")

    def table() -> Tensor:
        borrow = torch.arange(1 << low, device=x.lam.device) < (x.lam & ((1 << low) - 1))[..., None]
        return ring.shift_right(x.lam, low, x.bits)[..., None] + borrow

    dealt = c.deal_table("borrow table", (*x.shape, 1 << low), bits, table)
    if not c.evaluating:
        return Shared(c.blank(x.shape), bits, 0)
    looked_up = look_up(dealt, x.m & ((1 << low) - 1))
    own = ring.shift_right(x.m, low, x.bits) if c.first else torch.zeros_like(looked_up)
    return Shared(own - looked_up, bits, 0)


async def exact_digits(c: Context, x: Masked, widths: Sequence[int]) -> list[Masked]:
    """Return the digits of x (unsigned) of the given widths, low to high, each masked modulo 2^width. sum(widths) =
    x.bits."""
    require(sum(widths) == x.bits, "digits", f"widths {list(widths)} do not cover a ring of {x.bits} bits")
    if len(widths) == 1:
        return [Masked(x.m, x.lam, x.bits, 0)]
    half = max(h for h in range(1, len(widths) // 2 + 1) if h == 1 or sum(widths[:h]) <= GOOD_LOW)
    low = sum(widths[:half])

    async def upper() -> list[Masked]:
        return await exact_digits(c, await open_value(c, high_part(c, x, low)), widths[half:])

    lower, higher = await together(exact_digits(c, x.to_ring(low), widths[:half]), upper())
    return [*lower, *higher]
