"""Where a masked value lies, in coarse units: within an interval around 0, and above its lower end.

For x = m - lam the public digit of m less that of lam is floor(x / u) or one more, as the borrow of what is below falls, and
a gate whose pieces agree where both may be read needs no more (`activation`). With x moved so that the interval starts at
0, and d that digit in units u, inside is [0 <= d < reads] and above is [d >= 0]. Two forms, for any number of parties:

* at once: the dealer deals the one-hot vector of lam's digit, XOR-shared. The XOR of the bits where a public predicate holds
  at the public digit is a share of it, for both predicates alike; each is masked by a dealt bit and opened. 1 round, 2 bits;
  offline 2^w bits.
* in two steps: the digit is cut in two. One-hot vectors of both halves give [low half < reads], and for the upper half, with
  and without a borrow, [it is 0] and [it is not negative]; a one-time table gives the borrow. These 6 bits are opened
  masked, and each answer is looked up by them (`comparison.Bit.alone`). 2 rounds, 8 bits; offline 9 bytes for w = 8.

Leaks: nothing; opened bits are uniform (docs/security.md, "Brackets").
Sources: one-time truth tables, Ishai et al. 2013.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from protocols.masked import lifted
from protocols.masked.comparison import Bit, Form
from protocols.masked.context import BitOpening, Context, require
from protocols.masked.one_hot import digit
from protocols.masked.shares import Masked, Shared, WideShared
from protocols.schedule import together

LARGEST = 12  # bits of a digit that is looked up at once
HALVES = {"lt": 0, "low": 0, "z0": 1, "z1": 1, "s0": 1, "s1": 1}
INSIDE = Form.of(
    [1, 1],
    {name: HALVES[name] for name in ("lt", "low", "z0", "z1")},
    [(1, frozenset({"low", "z0"})), (-1, frozenset({"low", "z0", "lt"})), (1, frozenset({"low", "z1", "lt"}))],
)
ABOVE = Form.of(
    [1, 1],
    {name: HALVES[name] for name in ("lt", "s0", "s1")},
    [(1, frozenset({"s0"})), (-1, frozenset({"s0", "lt"})), (1, frozenset({"s1", "lt"}))],
)
BOTH = Form.of([1, 1], HALVES, [*INSIDE.polynomial, *ABOVE.polynomial])  # of which parts are taken


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


Predicate = Callable[[Tensor, int, int], Tensor]  # of a digit, for a number of digits and of reads
PREDICATES: dict[str, Predicate] = {
    "below": lambda v, size, reads: v < reads,
    "positive": lambda v, size, reads: v < size // 2,
    "positive less a borrow": lambda v, size, reads: ((v - 1) & (size - 1)) < size // 2,
    "zero": lambda v, size, reads: v == 0,
    "zero less a borrow": lambda v, size, reads: ((v - 1) & (size - 1)) == 0,
}


@cache
def _places(name: str, width: int, reads: int, device: torch.device) -> Tensor:
    """Return by the public digit m the words [2^width, words] whose bit j is set where the predicate holds for m - j."""
    size = 1 << width
    count = min(64, size)
    v = torch.arange(size)
    holds = PREDICATES[name]((v[:, None] - v) & (size - 1), size, reads).to(torch.int64)
    return (holds.reshape(size, -1, count) << torch.arange(count)).sum(-1).to(device)


@dataclass(frozen=True)
class _Digit:
    """A digit's one-hot vector as XOR-shared words [..., words], and the public digit."""

    words: Tensor
    m: Tensor
    width: int

    def share(self, predicate: str, reads: int) -> Tensor:
        """Return this party's XOR share of a predicate of the digit."""
        return _parity(self.words & _places(predicate, self.width, reads, self.words.device)[self.m])


def _parity(words: Tensor) -> Tensor:
    """Return the XOR of all bits of words [..., words]."""
    found = words[..., 0]
    for i in range(1, words.shape[-1]):
        found = found ^ words[..., i]
    for count in (32, 16, 8, 4, 2, 1):
        found = found ^ (found >> count)
    return found & 1


def _one_hot(c: Context, lam_digit: Tensor, width: int) -> Tensor:
    """Return the one-hot vector of a mask's digit as XOR-shared words [..., words]."""
    words, count = max(1, (1 << width) // 64), min(64, 1 << width)

    def point() -> Tensor:
        place = (torch.arange(words, device=lam_digit.device) == (lam_digit >> 6)[..., None]).to(torch.int64)
        return place << (lam_digit & 63)[..., None]

    return c.deal_xor("bracket bits", (*lam_digit.shape, words), point, count)


async def _open(c: Context, form: Form, shape: Sequence[int], found: Callable[[], list[Tensor]]) -> Bit:
    """Open looked-up bits, masked. 1 round, a bit each."""
    whole = (len(form.names), *shape)
    rho = c.tape.random("mask bits", whole, 1)
    if not c.evaluating or rho.is_meta or c.tape.preprocessing:
        return Bit(c, form, await BitOpening(c.blank(whole)), rho)
    return Bit(c, form, await BitOpening(torch.stack(found()) ^ rho, torch.int8), rho)


async def _at_once(c: Context, moved: Masked, low: int, width: int, reads: int) -> tuple[Bit, Bit]:
    m, lam = digit(c, moved, low, width)
    whole = _Digit(_one_hot(c, lam, width), m, width)
    form = Form.of([1], {"inside": 0, "above": 0}, [])
    both = await _open(c, form, moved.shape, lambda: [whole.share("below", reads), whole.share("positive", reads)])
    inside, above = (Form.of([1], {name: 0}, [(1, frozenset({name}))]) for name in form.names)
    return both.part(inside), both.part(above)


async def _in_two_steps(c: Context, moved: Masked, low: int, width: int, reads: int) -> tuple[Bit, Bit]:
    half = _lower_half(width, reads)
    m, lam = digit(c, moved, low, half)
    m_upper, lam_upper = digit(c, moved, low + half, width - half)
    lower = _Digit(_one_hot(c, lam, half), m, half)
    upper = _Digit(_one_hot(c, lam_upper, width - half), m_upper, width - half)
    less = c.deal_xor("borrow bits", moved.shape, lambda: (torch.ones_like(lam) << lam) - 1, 1 << half)

    def found() -> list[Tensor]:
        names = ("zero", "zero less a borrow", "positive", "positive less a borrow")
        return [(less >> m) & 1, lower.share("below", reads), *(upper.share(name, reads) for name in names)]

    six = await _open(c, BOTH, moved.shape, found)
    inside, above = await together(six.part(INSIDE).alone(), six.part(ABOVE).alone())
    return inside, above


def _lower_half(width: int, reads: int) -> int:
    return max(3, reads.bit_length(), width // 2)


def in_steps(width: int, reads: int) -> bool:
    """Return whether a digit of so many bits can be cut in two."""
    half = _lower_half(width, reads)
    return half <= 5 and 1 <= width - half <= 6


async def brackets(c: Context, x: Masked, interval: Interval, at_once: bool) -> tuple[Bit, Bit]:
    """Return (inside, above): that x lies in the interval, and not below it. 1 round, or 2.

    |x| + half + 2^unit < 2^(bits - frac - 1)."""
    low = x.frac + interval.unit
    width = x.bits - low
    words = f"units of 2^{interval.unit} with {x.frac} fraction bits in a ring of {x.bits}"
    require(low > 0 and interval.reads.bit_length() < width <= LARGEST, "brackets", words)
    moved = x.add_public(interval.half << x.frac)
    if at_once or not in_steps(width, interval.reads):
        return await _at_once(c, moved, low, width, interval.reads)
    return await _in_two_steps(c, moved, low, width, interval.reads)


def times(c: Context, op: str, bit: Bit, y: Masked, bits: int) -> Shared | WideShared:
    """Return [bit y] modulo 2^bits, y lifted on the way; local. The bit has y's shape.

    Offline, y of k bits, of each product of mask bits: 2 bits + (bits - k); and bits + (bits - k) where k is less."""
    count = bit.count
    masks = lifted.multiply_known(c, op, y.move(lambda t: t.expand(count, *t.shape)), bit.products, 0, bits)
    whole = lifted.lift(c, y, bits, op)
    if not c.evaluating:
        return whole
    constant, coefficients = bit.coefficients()
    total: Any = whole.x * constant.to(torch.int64)
    for place, coefficient in enumerate(coefficients):
        words = masks.x.map(operator.itemgetter(place)) if isinstance(masks, WideShared) else masks.x[place]
        total = total + words * coefficient.to(torch.int64)
    return lifted.sharing(total, bits, y.frac)
