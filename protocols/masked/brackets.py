"""Where a masked value lies, in coarse units: within an interval around 0, and above its lower end.

For x = m - lam the public digit of m less that of lam is floor(x / u) or one more, as the borrow of what is below falls, and
a gate whose pieces agree where both may be read needs no more (`activation`). With x moved so that the interval starts at
0, and d that digit in units u, inside is [0 <= d < reads] and above is [d >= 0]. Two forms, for any number of parties:

* at once: both are read from the one-hot vector of the whole digit, dealt as bits (`comparison`), masked and opened. 1
  round, 2 bits; offline 2^w bits.
* in two steps: the digit is cut in two. Of the lower half the borrow and [it is below reads], of the upper one, with and
  without that borrow, [it is 0] and its sign are read and opened masked, 6 bits; both answers are looked up by them
  (`opened_bits.alone`). 2 rounds, 8 bits; offline 7 bytes for w = 8.

Leaks: nothing; opened bits are uniform (docs/security.md, "Brackets").
Sources: one-time truth tables, Ishai et al. 2013.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from protocols.masked.comparison import Bit, Digit, Form, Places, ask
from protocols.masked.context import Context, require
from protocols.masked.opened_bits import alone, opposite, part
from protocols.masked.shares import Masked
from protocols.schedule import together

LARGEST = 12  # bits of a digit that is read at once
LEAST_HALF = 3  # one-hot vectors of bytes


@dataclass(frozen=True)
class Interval:
    """[-half, half) in real units, read in units of 2^unit: inside holds for every x in it, and for none but those within
    one more unit on both sides."""

    half: int
    unit: int

    @property
    def reads(self) -> int:
        """Digits that may be read for an x of the interval."""
        return (2 * self.half >> self.unit) + 1

    @property
    def reach(self) -> int:
        """|x| is at most that where inside holds."""
        return self.half + (1 << self.unit)


@cache
def at_once_forms(low: int, width: int, reads: int) -> tuple[Form, Form, Form]:
    """Return what is opened, and inside and not above in it."""
    digits = [Digit(low, width)]
    inside: Places = {"inside": (0, (0, reads))}
    below: Places = {"s": (0, "sign")}
    return (
        Form.of(digits, inside | below, []),
        Form.of(digits, inside, [], "inside"),
        Form.of(digits, below, [], "s"),
    )


@cache
def two_step_forms(low: int, width: int, reads: int) -> tuple[Form, Form, Form]:
    """Return what is opened, and inside and not above in it."""
    half = _lower_half(width, reads)
    digits = [Digit(low, half), Digit(low + half, width - half)]
    borrow: Places = {"lt": (0, "lt")}
    zeros: Places = {"low": (0, (0, reads)), "z0": (1, "eq"), "z1": (1, (1, 2))}
    signs: Places = {"s": (1, "sign"), "t": (1, "flips")}
    without, with_borrow = frozenset({"low", "z0"}), frozenset({"low", "z1"})
    inside = [(1, without), (-1, without | borrow.keys()), (1, with_borrow | borrow.keys())]
    return (
        Form.of(digits, borrow | zeros | signs, []),
        Form.of(digits, borrow | zeros, inside),
        Form.of(digits, borrow | signs, [(1, frozenset({"lt", "t"}))], "s"),
    )


def _lower_half(width: int, reads: int) -> int:
    return max(LEAST_HALF, reads.bit_length(), width // 2)


async def brackets(c: Context, x: Masked, interval: Interval, at_once: bool) -> tuple[Bit, Bit]:
    """Return (inside, above): that x lies in the interval, and not below it. 1 round, or 2.

    |x| + half + 2^unit <= 2^(bits - frac - 1)."""
    low, reads = x.frac + interval.unit, interval.reads
    width = x.bits - low
    words = f"units of 2^{interval.unit} with {x.frac} fraction bits in a ring of {x.bits}"
    require(low > 0 and reads.bit_length() < width <= LARGEST, "brackets", words)
    moved = x.add_public(interval.half << x.frac)
    if at_once or _lower_half(width, reads) >= width:
        whole, inside, below = at_once_forms(low, width, reads)
        opened = await ask(c, moved, whole)
        return part(opened, inside), opposite(part(opened, below))
    whole, inside, below = two_step_forms(low, width, reads)
    opened = await ask(c, moved, whole)
    found = await together(alone(part(opened, inside)), alone(part(opened, below)))
    return found[0], opposite(found[1])
