"""A masked value held within public limits: one round.

min(max(x, low), high) = x - [x < low] (x - low) + [high < x] (high - x). Both comparisons are gates on x itself, since
x - low and high - x are masked values too, and a bit times a masked value costs no round.

Rounds 1; online two comparisons per element, each 3, 5, 7 bits for rings of up to 16, 24, 32; offline those of two
comparisons and twice `Bit.times`. Valid range: x, low and high within +-2^(x.bits - 2) ring units, x.bits <= 32. Error: none
(exact). Leaks: nothing (docs/security.md, "Clamp"). Sources as in `comparison`.
"""

from __future__ import annotations

from protocols.masked.comparison import less_than_zero
from protocols.masked.context import Context, require
from protocols.masked.shares import Masked, Shared
from protocols.schedule import together


async def clamp(c: Context, x: Masked, low: int, high: int) -> Shared:
    """[min(max(x, low), high)] in x's ring with x's fraction bits; low, high: public ring units. 1 round."""
    limit = 1 << (x.bits - 2)
    require(low <= high, "clamp", f"the lower limit {low} is above the upper one {high}")
    require(-limit <= low and high <= limit, "clamp", f"limits {low} and {high} do not fit a ring of {x.bits} bits")
    above_low = x.add_public(-low)
    below_high = x.map(lambda t: -t).add_public(high)
    below, above = await together(less_than_zero(c, above_low), less_than_zero(c, below_high))
    return c.shared(x).add(below.times(above_low).negate()).add(above.times(below_high))
