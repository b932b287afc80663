"""GELU, its tanh form, SiLU and ReLU of a masked value: opened once, in the ring that the next layer needs.

f(x) = x / 2 + E(x), E even and |x| / 2 far from 0. Brackets on coarse digits of x give inside and above, bits; within the
interval, and a unit more, P = f - x = E(x) - x / 2 is right, outside f is x or 0:

    f(x) = above x + inside P

Inside is never read but where above is, and both are read from the digits that P sees: where they err by a borrow, P holds.

How E comes about:
* `segments`: 1 round, and few dealt bytes (`segments`); P is opened while the brackets' second tables are.
* `brackets`: E by waves at no round (`waves`), P opened beside the brackets, these at once.
* `waves`: one wave for the whole ring of x, no brackets and no round; dealt bytes grow with the range.

How the result comes about:
* `lifted`: bits times x and P are made in the ring that the caller wants, both lifted on the way.
* `opened`: in x's ring, to be opened there, lifted and opened again: a round more, a third of the dealt bytes.

Which forms are run follows from what each would cost here, counted by this very code on shape tensors, and the work of one
core as measured (`forms`). ReLU is x - [x < 0] x, its comparison in one round or two.

Range: |x| <= 3/4 of what x's ring holds. Error: below 2^-12 over the whole range (tabulated by a test).
Rounds from a masked x: 0, 1 or 2, and the opening. Leaks: nothing (docs/security.md, "Activations").
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from mpc.ring import RING_BITS
from mpc.tape import CountingTape
from mpc.wide import WIDE_BITS, Wide
from protocols.masked import curves, lifted
from protocols.masked.brackets import Interval, brackets
from protocols.masked.comparison import Bit, less_than_zero
from protocols.masked.context import Context, open_value, require
from protocols.masked.forms import Form, choose
from protocols.masked.opened_bits import alone, opposite, times
from protocols.masked.segments import result_frac, segments
from protocols.masked.shares import Masked, Shared, WideShared
from protocols.masked.truncation import open_cut, truncate_and_lift
from protocols.masked.waves import FRAC, waves
from protocols.masked.wide import open_any
from protocols.schedule import Scheduler, together

Curve = Literal["segments", "brackets", "waves", "one step", "two steps"]
Result = Literal["lifted", "opened"]

KINDS = ("relu", *curves.HALF)
# the interval of each curve form, and the period (log2) of waves within brackets
SEGMENTED = {"gelu": Interval(4, 2), "gelu_tanh": Interval(4, 2), "silu": Interval(12, 2)}
WAVED = {"gelu": Interval(4, 3), "gelu_tanh": Interval(4, 3), "silu": Interval(12, 3)}
PERIOD = {"gelu": 5, "gelu_tanh": 5, "silu": 6}
LONGEST_PERIOD = 7  # of a wave for the whole ring: some 40 harmonics
SMALL_DIGIT = 6  # bits of a comparison's digits where products of its bits do not count
SAMPLE = 4096  # numbers of which costs are counted
# seconds of one core a number: a party online, the dealer
WORK = {
    "segments": (1e-6, 5e-7),
    "brackets": (7e-7, 6e-7),
    "waves": (2e-6, 2e-6),
    "one step": (1.3e-6, 1.5e-6),
    "two steps": (2.5e-7, 2.5e-7),
}


@dataclass(frozen=True)
class Rings:
    """Of x: its fraction bits and the ring that it takes, |x| <= 3/4 of what that holds. wanted: of f(x), when it is
    opened; no more than x's where there is no need."""

    frac: int
    least: int
    wanted: int


@dataclass(frozen=True)
class Plan:
    """Which forms are run: of the curve, and of the result."""

    rings: Rings
    curve: Curve
    result: Result

    @property
    def x_bits(self) -> int:
        """The ring that x is opened in: half of it is a wave's period."""
        return self.rings.least + int(self.curve == "waves")

    @property
    def left(self) -> int:
        """The ring that the result has at least once it is cut to x's fraction bits."""
        return self.rings.wanted if self.result == "lifted" else self.rings.least


def least_bits(kind: str, frac: int) -> int:
    """Return the smallest ring for x: 3/4 of it holds the curve and its edges."""
    return frac + {"relu": 2, "silu": 7}.get(kind, 6)


def plans(kind: str, rings: Rings) -> list[Plan]:
    """Return the forms that there are."""
    frac, least = rings.frac, rings.least
    results: list[Result] = ["opened", "lifted"] if rings.wanted > least else ["opened"]
    forms: list[Curve] = ["one step", "two steps"] if kind == "relu" else ["segments"]
    if kind != "relu":
        forms += ["brackets"] if least - frac >= PERIOD[kind] + 2 else []
        forms += ["waves"] if least - frac <= LONGEST_PERIOD and rings.wanted + FRAC - frac <= WIDE_BITS else []
    return [Plan(rings, form, result) for form in forms for result in results]


def chosen(c: Context, kind: str, count: int, rings: Rings) -> Plan:
    """Return the forms to run for so many numbers. Raises `RangeError` where x's ring is too small, and for an unknown
    kind."""
    require(kind in KINDS, "activation", f"unknown function '{kind}'; known: {', '.join(KINDS)}")
    least = least_bits(kind, rings.frac)
    require(rings.least >= least, kind, f"a ring of {rings.least} bits is too small, {least} are needed")
    found = {f"{plan.curve}, {plan.result}": plan for plan in plans(kind, rings)}
    forms = []
    for name, plan in found.items():
        rounds, sent, dealt = counted(kind, c.parties, plan)
        online, dealing = WORK[plan.curve]
        forms.append(Form(name, rounds, sent * count, dealt * count, online * count, dealing * count))
    return found[choose(forms, c.prefer)]


async def activation(c: Context, x: Masked, kind: str, plan: Plan) -> Shared | WideShared:
    """Return [f(x)], in a ring of `plan.left` bits and what is to be cut; f(x) > -1. 0 to 2 rounds.

    x: in a ring of `plan.x_bits`."""
    x = x.to_ring(plan.x_bits)
    if kind == "relu":
        return await _relu(c, x, plan)
    if plan.curve == "waves":
        return _whole(c, x, kind, plan)
    inside, above, p = await _bracketed(c, x, kind, plan.curve)
    reach = _interval(kind, plan.curve).reach << x.frac
    upper = times(c, "above", above, x.starting(-reach), plan.left)
    return lifted.add(upper, times(c, "inside", inside, p, plan.left))


async def _relu(c: Context, x: Masked, plan: Plan) -> Shared | WideShared:
    if plan.curve == "one step":
        negative = await less_than_zero(c, x)
    else:
        negative = await alone(await less_than_zero(c, x, SMALL_DIGIT))
    return times(c, "positive", opposite(negative), x.starting(0), plan.left)


def _interval(kind: str, form: Curve) -> Interval:
    return SEGMENTED[kind] if form == "segments" else WAVED[kind]


async def _even_part(c: Context, x: Masked, kind: str, bits: int, form: Curve) -> Shared | WideShared:
    """Return [E(x)] modulo 2^bits, right within the interval."""
    if form == "brackets":
        return waves(c, kind, x, PERIOD[kind], bits)
    return await segments(c, kind, x, bits)


def _half(c: Context, x: Masked, bits: int, frac: int) -> Shared | WideShared:
    """Return [x / 2] modulo 2^bits with `frac` fraction bits."""
    up = frac - x.frac - 1
    found = lifted.lift(c, x, bits - up, "half")
    words = Wide.of(found.x) if isinstance(found, Shared) and bits > RING_BITS else found.x
    return lifted.sharing(words << up, bits, frac)


def _whole(c: Context, x: Masked, kind: str, plan: Plan) -> Shared | WideShared:
    """Return [x / 2 + E(x)]."""
    bits = plan.left + FRAC - x.frac
    return lifted.add(waves(c, kind, x, plan.rings.least - x.frac, bits), _half(c, x, bits, FRAC))


async def _bracketed(c: Context, x: Masked, kind: str, form: Curve) -> tuple[Bit, Bit, Masked]:
    """Return inside, above and <P>. 1 round, or 2."""
    interval = _interval(kind, form)
    frac = result_frac(kind, x.frac) if form == "segments" else FRAC
    excess = frac - x.frac
    bits = (interval.reach << x.frac).bit_length() + 2 + excess

    async def curve() -> Masked:
        even = await _even_part(c, x, kind, bits, form)
        half = _half(c, x, bits, frac)
        assert isinstance(even, Shared)
        assert isinstance(half, Shared)
        return await open_cut(c, even.add(half.negate()), excess)

    (inside, above), p = await together(brackets(c, x, interval, form == "brackets"), curve())
    return inside, above, p


# ---- what a form costs -----------------------------------------------------------------------------------------------
@cache
def counted(kind: str, parties: int, plan: Plan) -> tuple[int, float, float]:
    """Return rounds until f(x) is opened in the ring that is wanted, and bytes a number that a party sends and is dealt."""
    rings, c = plan.rings, Context(CountingTape(), None, parties)
    x = Masked(c.blank((SAMPLE,)), c.blank((SAMPLE,)), plan.x_bits, rings.frac)

    async def program() -> Any:
        found = await activation(c, x, kind, plan)
        excess = found.frac - rings.frac
        opened = await open_any(c, found.to_ring(plan.left + excess), excess)
        if opened.bits < rings.wanted:
            await open_value(c, truncate_and_lift(c, opened, 0, rings.wanted, 1 << rings.frac))

    Scheduler(c.flush).run(program())
    cost = c.ledger.total()
    extra = (plan.x_bits - rings.least) * (parties - 1) / 8
    return cost.rounds, cost.bytes_sent / SAMPLE + extra, cost.offline_bytes / SAMPLE
