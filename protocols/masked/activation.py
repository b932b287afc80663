"""GELU, its tanh form, SiLU and ReLU of a masked value: opened once, in the ring that the next layer needs.

f(x) = x / 2 + E(x), E even and |x| / 2 far from 0. Brackets on coarse digits of x give inside and above, bits; within the
interval, and a unit more, P = f - x = E(x) - x / 2 is right, outside f is x or 0:

    f(x) = above x + inside P

Inside is never read but where above is, and both are read from the digits that P sees: where they err by a borrow, P holds.

How inside P comes about:
* `segments`: few dealt bytes (`segments`); what is read of P's segment is opened beside the brackets, these at once; their
  bit is multiplied in on the way.
* `halved digits`: a round more, 3 bytes more sent, and a quarter of the dealt bytes less, more where the range is large: the
  brackets in two steps, P opened beside the second.
* `brackets`: E by waves at no round (`waves`), P opened beside the brackets, these at once.
* `waves`: one wave for the whole ring of x, no brackets and no round; dealt bytes grow with the range.

How the result comes about:
* `lifted`: bits times x and P are made in the ring that the caller wants, both lifted on the way; not of segments.
* `opened`: in x's ring, to be opened there and raised to the wanted one: a round more, fewer dealt bytes.

Which forms are run follows from what each would cost here, counted by this very code on shape tensors, and the work of one
core as measured (`forms`). ReLU is x - [x < 0] x, its comparison in one round or two.

Range: |x| <= 3/4 of what x's ring holds. Error: below 2^-12 over the whole range (tabulated by a test).
Rounds from a masked x: 0, 1 or (`halved digits`, `two steps`) 2, and the opening.
Leaks: nothing (docs/security.md, "Activations").
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from mpc.tape import CountingTape
from mpc.wide import WIDE_BITS
from protocols.masked import curves, lifted, veiled
from protocols.masked.brackets import Interval, brackets
from protocols.masked.comparison import Bit, less_than_zero
from protocols.masked.context import Context, require
from protocols.masked.forms import Form, choose
from protocols.masked.opened_bits import alone, opposite, times
from protocols.masked.segments import segment
from protocols.masked.shares import Masked, Shared, WideShared
from protocols.masked.truncation import open_cut, raise_ring
from protocols.masked.waves import fraction_bits, waves
from protocols.masked.wide import open_any
from protocols.schedule import Scheduler, together

Curve = Literal["segments", "halved digits", "brackets", "waves", "one step", "two steps"]
Result = Literal["lifted", "opened"]

KINDS = ("relu", *curves.HALF)
INTERVAL = {kind: Interval(half, curves.UNIT) for kind, half in curves.HALF.items()}
PERIOD = {"gelu": 5, "gelu_tanh": 5, "silu": 6}  # log2 of that of waves within brackets
LONGEST_PERIOD = 7  # of a wave for the whole ring: some 40 harmonics
SMALL_DIGIT = 6  # bits of a comparison's digits where products of its bits do not count
SAMPLE = 4096  # numbers of which costs are counted
# seconds of one core a number: a party online, the dealer
WORK = {
    "segments": (7e-7, 3.5e-7),
    "halved digits": (7.5e-7, 3e-7),
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
    if kind == "relu":
        return [Plan(rings, form, result) for form in ("one step", "two steps") for result in results]
    found = []
    if least - frac >= PERIOD[kind] + 2:
        found += [Plan(rings, "segments", "opened"), Plan(rings, "halved digits", "opened")]
        found += [Plan(rings, "brackets", result) for result in results]
    if least - frac <= LONGEST_PERIOD and rings.wanted + fraction_bits(least - frac) - frac <= WIDE_BITS:
        found += [Plan(rings, "waves", result) for result in results]
    return found


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
    form = _segmented if plan.curve == "segments" else _opened_apart
    lower, above = await form(c, x, kind, plan)
    upper = times(c, "above", above, x.starting(-INTERVAL[kind].reach << x.frac), plan.left)
    return lifted.add(lifted.finer(upper, lower.frac), lower)


async def _relu(c: Context, x: Masked, plan: Plan) -> Shared | WideShared:
    if plan.curve == "one step":
        negative = await less_than_zero(c, x)
    else:
        negative = await alone(await less_than_zero(c, x, SMALL_DIGIT))
    return times(c, "positive", opposite(negative), x.starting(0), plan.left)


def _half(c: Context, x: Masked, bits: int, frac: int) -> Shared | WideShared:
    """Return [x / 2] modulo 2^bits with `frac` fraction bits."""
    whole = lifted.finer(lifted.lift(c, x, bits - (frac - x.frac - 1), "half"), frac - 1)
    return lifted.sharing(whole.x, bits, frac)


def _whole(c: Context, x: Masked, kind: str, plan: Plan) -> Shared | WideShared:
    """Return [x / 2 + E(x)]."""
    period = plan.rings.least - x.frac
    frac = fraction_bits(period)
    bits = plan.left + frac - x.frac
    return lifted.add(waves(c, kind, x, period, bits), _half(c, x, bits, frac))


async def _segmented(c: Context, x: Masked, kind: str, plan: Plan) -> tuple[Shared | WideShared, Bit]:
    """Return [inside P] and above. 1 round."""
    (inside, above), read = await together(brackets(c, x, INTERVAL[kind], True), segment(c, kind, x))
    return read.times(c, inside, plan.left + read.frac - x.frac), above


async def _opened_apart(c: Context, x: Masked, kind: str, plan: Plan) -> tuple[Shared | WideShared, Bit]:
    """Return [inside P] and above, P opened by itself. 1 round (`brackets`), or 2."""
    interval, waved = INTERVAL[kind], plan.curve == "brackets"
    bits = (interval.reach << x.frac).bit_length() + 2

    async def curve() -> Masked:
        if not waved:
            read = await segment(c, kind, x)
            behind = read.value(c, bits + read.frac - x.frac)
            return await veiled.open_cut(c, behind, behind.frac - x.frac, wraps=True)
        frac = fraction_bits(PERIOD[kind])
        whole = bits + frac - x.frac
        half = _half(c, x, whole, frac)
        p = lifted.add(waves(c, kind, x, PERIOD[kind], whole), lifted.sharing(-half.x, whole, frac))
        assert isinstance(p, Shared)
        return await open_cut(c, p, p.frac - x.frac, wraps=True)

    (inside, above), p = await together(brackets(c, x, interval, waved), curve())
    return times(c, "inside", inside, p, plan.left), above


# ---- what a form costs -----------------------------------------------------------------------------------------------
@cache
def counted(kind: str, parties: int, plan: Plan) -> tuple[int, float, float]:
    """Return rounds until f(x) is opened in the ring that is wanted, and bytes a number that a party sends and is dealt."""
    rings, c = plan.rings, Context(CountingTape(), None, parties)
    x = Masked(c.blank((SAMPLE,)), c.blank((SAMPLE,)), plan.x_bits, rings.frac)

    async def program() -> Any:
        found = await activation(c, x, kind, plan)
        excess = found.frac - rings.frac
        opened = await open_any(c, found.to_ring(plan.left + excess), excess, wraps=plan.left < rings.wanted)
        if opened.bits < rings.wanted:
            await raise_ring(c, opened, 0, rings.wanted, 1 << rings.frac)

    Scheduler(c.flush).run(program())
    cost = c.ledger.total()
    extra = (plan.x_bits - rings.least) * (parties - 1) / 8
    return cost.rounds, cost.bytes_sent / SAMPLE + extra, cost.offline_bytes / SAMPLE
