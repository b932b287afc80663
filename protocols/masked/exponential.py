"""e^s of scores: masked exponents x < 0, in units of 3/2 ln 2, are raised in one opening, or in two for fewer dealt bytes.

Units. e^s = 2^(3/2 x) for x = s / (3/2 ln 2) = 0.9618 s: two units are three bits, so a ring of 2^w units is a circle of 3
2^(w - 1) bits. `exponents` multiplies sharings of scores by 7 879 / 2^13 before they are opened, exact modulo any power of
two: 5e-6 off.

Both forms are made in a ring that is wider by what is cut, so 2^(3/2 x) is opened once in the ring that it is used in.

| form | dealt a number, ring of 62 bits, circle of 2^8 | openings |
| --- | --- | --- |
| `window` | 2^(-3/2 lam) as a number around the circle: 384 bits, 48 B | 1 |
| `bits` | XOR one-hot bits of a digit in units of 4, sigma 2^(-3/2 lam_lo) alone and times a top bit, a mask: 8 + 25 B | 2 |

`window`: the dealer deals N = 2^(-3/2 lam), 30 bits of it, shared modulo 2^L - 1, L the circle's bits (`mpc.cyclic`). Turned
by the public m = 2 a + b by 3 a places, N holds 2^(-3/2 lam + 3 a), and what of it lies around the point is read as a window
modulo a power of two: in the ring of the result, wherever lam is. The public 2^(3/2 b) is multiplied in. What is below the
window is lost but for a carry of one in its last bit. Nothing borrows, as the circle of m and lam is that of the bits.

`bits`, two parties: with a digit in units of 4, 2^(3/2 x) = 2^(6 d) 2^(3/2 m_lo) 2^(-3/2 lam_lo), d = m_hi - lam_hi. The
parties read u = sigma 2^(6 d + 3/2 m_lo) locally, open it, and multiply it by the dealt sigma 2^(-3/2 lam_lo). u is below 1,
opened with a fraction bit more than the result, in a ring with 2 more: only d < 0 is read. The same bits tell whoever asks,
shared, whether d is one of the lowest ones (`Below`).

Public factors are integer tables, equal at all parties (`powers_of_two`).
Rounds: 1 or 2 openings, the last one that of the result. Error: below 2 units of the result, and 2^-17 and 2^-15 relative.
Range: see `exponential`.
Leaks: nothing (docs/security.md, "Exponentials"). Sources: as `signed_one_hot`, `one_hot`, `lifted`.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from mpc.cyclic import placed, subtract, window
from mpc.ring import RING_BITS
from mpc.wide import Wide
from protocols.masked import veiled
from protocols.masked.context import Context, require
from protocols.masked.forms import Form, choose
from protocols.masked.histogram import parity
from protocols.masked.lifted import Factor
from protocols.masked.one_hot import digit
from protocols.masked.powers_of_two import OCTAVES, powers
from protocols.masked.shares import Masked, Shared, WideShared
from protocols.masked.signed_one_hot import one_hot_words, turned
from protocols.masked.truncation import open_cut, truncate
from protocols.masked.veiled import Veiled
from protocols.masked.wide import open_cut_wide

UNITS, UNIT_BITS = 7879, 13  # units of exponents in one of scores, and the fraction bits of that
UNREAD = 64  # units at the lower end of the circle that no x lies in
CIRCLE = 8  # log2 of the circle's units at least: a window and all that may be read as 0 fit
PAIR = 1  # log2 of the units that are whole bits
POINT = 14  # of a window's bits below N's at x = 0
DEALT_BITS = 30  # fraction bits of N's factor 2^(-3/2 lam_lo)
PUBLIC_BITS = 20  # of the public factor
UNIT = 2  # of the form `bits`
FACTOR = 26  # fraction bits of its public factor 2^(3/2 m_lo - 6)
READ = 32  # fraction bits of what its bits are read with, 2^(6 d + 6)
DIGITS = 6  # d = -1 to -6: nothing is left below
HELD = 1  # fraction bits of u beyond those of the result
DEALT_FACTOR = 20  # fraction bits of the dealt 2^(-3/2 lam_lo)
MOST_BEFORE = OCTAVES * UNREAD // 2 - DEALT_BITS - PUBLIC_BITS  # bits before the point of what a window is read as: 46
CUT = HELD + DEALT_FACTOR  # fraction bits of the product beyond those of the result


@dataclass(frozen=True)
class Below:
    """Who is told, of each number, XOR shares of [d < -lowest], 0 or 1; the form `bits` only."""

    lowest: int
    tell: Callable[[Tensor], None]


@dataclass(frozen=True)
class Exponents:
    """Masked x with e^s = 2^(3/2 x) for scores s."""

    x: Masked

    def move(self, f: Callable[[Tensor], Tensor]) -> Exponents:
        """Apply what only moves elements."""
        return Exponents(self.x.move(f))

    def beside(self, other: Exponents) -> Exponents:
        """Return both, joined along the last axis."""
        return Exponents(self.x.beside(other.x))


async def exponents(c: Context, s: Shared, frac: int) -> Exponents:
    """Open [s] as exponents with `frac` fraction bits, modulo what s's ring leaves. 1 round."""
    return await exponents_of_scaled(c, scaled(s), frac)


def scaled(s: Shared) -> Shared:
    """Return scores in units of exponents, with as many more fraction bits as the unit has, in the same ring; local."""
    return Shared(s.x * UNITS, s.bits, s.frac + UNIT_BITS)


async def exponents_of_scaled(c: Context, s: Shared, frac: int) -> Exponents:
    """Open what is in units of exponents already, as `exponents` does."""
    return Exponents(await open_cut(c, s, s.frac - frac))


async def exponents_of_veiled(c: Context, s: Veiled, frac: int) -> Exponents:
    """Open scores behind a veil as exponents with `frac` fraction bits. 1 round."""
    units = s.times_odd(UNITS, UNIT_BITS)
    return Exponents(await veiled.open_cut(c, units, units.frac - frac))


def exponents_of_masked(c: Context, s: Masked) -> Exponents:
    """Return masked scores as exponents, in a ring that is smaller by 13 bits; local."""
    scaled = s.map(lambda t: t * UNITS).with_frac(s.frac + UNIT_BITS)
    return Exponents(truncate(c, scaled, UNIT_BITS))


def in_units(score: float) -> float:
    """Return a public bound on scores as one on exponents."""
    return score * UNITS / 2.0**UNIT_BITS


def _circle_bits(range_bits: int) -> int:
    return OCTAVES << (range_bits - PAIR)


def _window_cut(frac: int) -> int:
    return POINT + DEALT_BITS + PUBLIC_BITS - frac


def _opened(frac: int) -> int:
    """Return the ring of u."""
    return frac + HELD + 2


def exponential_forms(elements: int, range_bits: int, frac: int, bits: int, parties: int) -> list[Form]:
    """Return what each form costs for so many x with range_bits before the point; results modulo 2^bits.

    Seconds: of one core of an AMD EPYC, rings of 62 bits."""
    others, left = parties - 1, bits if parties == 2 else bits + _window_cut(frac)
    dealt = _circle_bits(range_bits) + (bits if parties > 2 else 0)
    sent = left * others
    forms = [Form("window", 0, elements * sent / 8, elements * dealt / 8, elements * 1.1e-7, elements * 1.4e-7)]
    if parties == 2:
        dealt = (1 << (range_bits - UNIT)) + 3 * bits + 2 * CUT - _opened(frac)
        sent = bits + _opened(frac)
        forms.append(Form("bits", 1, elements * sent / 8, elements * dealt / 8, elements * 1.2e-7, elements * 1.6e-7))
    return forms


def chosen(c: Context, x: Masked, frac: int, bits: int) -> str:
    """Return the form to run, "window" or "bits"."""
    return choose(exponential_forms(x.shape.numel(), x.bits - x.frac, frac, bits, c.parties), c.prefer)


async def exponential(c: Context, x: Masked, frac: int, bits: int, below: Below | None = None) -> Masked:
    """Return <2^(3/2 x)> with `frac` fraction bits modulo 2^bits, x in a ring of 2^8 units or more. 1 or 2 rounds.

    x < 0, and not within 64 of the lowest value of its ring. The digit above the lowest x.frac + 2 bits must be negative
    even with a borrow from below: so it is for x < -4, and for all x < 0 that are a masked value less a multiple of 4 beyond
    its digit (`softmax`). below: told only where the form is `bits` (`chosen`)."""
    require(frac <= 30, "exponential", f"{frac} fraction bits, at most 30")
    if chosen(c, x, frac, bits) == "window":
        return await by_window(c, x, frac, bits)
    return await by_bits(c, x, frac, bits, below)


# ---- by windows ------------------------------------------------------------------------------------------------------
async def by_window(c: Context, x: Masked, frac: int, bits: int) -> Masked:
    """As `exponential`, from windows of dealt numbers, also for x up to 8; any number of parties. 1 round.

    bits - frac <= `MOST_BEFORE`: of the lowest x that is allowed, 64 above the circle's lowest, N's lowest bit stands 96
    places above the one that x = 0 has, POINT, and a window must end below it."""
    range_bits, count = x.bits - x.frac, _window_cut(frac)
    require(range_bits >= CIRCLE, "exponential", f"{range_bits} bits before the point, at least {CIRCLE}")
    before = bits - frac
    require(before <= MOST_BEFORE, "exponential", f"{before} bits before the result's point, at most {MOST_BEFORE}")
    circle, low = _circle_bits(range_bits), x.frac + PAIR
    words = circle // RING_BITS

    def pairs(t: Tensor) -> Tensor:
        return OCTAVES * (t >> low)

    def last(others: list[Tensor]) -> Tensor:
        value = powers(-1, low, x.frac, 0, DEALT_BITS, str(x.lam.device))[x.lam & ((1 << low) - 1)]
        whole = placed(value, (POINT - pairs(x.lam)) % circle, words)
        for other in others:
            whole = subtract(whole, other)
        return whole

    dealt = c.tape.completed("exponential", (words, *x.shape), last if c.tape.dealing else None)
    out = bits + count
    if not c.evaluating:
        blank = Wide(c.blank(x.shape), c.blank(x.shape))
        return await open_cut_wide(c, WideShared(blank, out, frac + count), count)
    found = window(dealt, -pairs(x.m) % circle)
    factor = powers(1, low, x.frac, 0, PUBLIC_BITS, str(x.m.device))[x.m & ((1 << low) - 1)]
    return await open_cut_wide(c, WideShared(found * factor, out, frac + count), count)


# ---- by bits ---------------------------------------------------------------------------------------------------------
async def by_bits(c: Context, x: Masked, frac: int, bits: int, below: Below | None = None) -> Masked:
    """As `exponential`, from one-hot bits; two parties. 2 rounds."""
    low = x.frac + UNIT
    width = x.bits - low
    m_hi, lam_hi = digit(c, x, low, width)
    shares = one_hot_words(c, lam_hi, width, "exponential bits")
    count = READ + FACTOR - frac - HELD
    signed = Shared(c.blank(x.shape), _opened(frac) + count, READ + FACTOR)
    if below is not None:
        below.tell(_is_below(c, shares[0], m_hi, width, below.lowest))
    if c.evaluating:
        read = turned(shares[0], (m_hi + 1) & ((1 << width) - 1), width, 1)[..., 0] & ((1 << DIGITS) - 1)
        factor = powers(1, low, x.frac, -OCTAVES * (1 << UNIT) // 2, FACTOR, str(x.m.device))[x.m & ((1 << low) - 1)]
        found = _read(str(x.m.device))[read] * factor
        signed = Shared(found if c.first else -found, signed.bits, signed.frac)
    u = await open_cut(c, signed, count)

    def known() -> Tensor:
        word = shares[0].gather(-1, (lam_hi >> 6)[..., None])[..., 0]
        bit = (word >> (lam_hi & 63)) & 1
        value = powers(-1, low, x.frac, 0, DEALT_FACTOR, str(x.lam.device))[x.lam & ((1 << low) - 1)]
        return torch.where(bit == 1, value, -value)

    product = veiled.sum_known(c, "exponential", [(u, Factor(known, DEALT_FACTOR))], bits + CUT)
    return await veiled.open_cut(c, product, CUT)


def _is_below(c: Context, words: Tensor, m_hi: Tensor, width: int, lowest: int) -> Tensor:
    """Return this party's XOR share of [d < -lowest] from its one-hot bits [..., words]: the parity of those places."""
    if not c.evaluating or words.is_meta or m_hi.is_meta:
        return c.blank(m_hi.shape)
    found = turned(words, (m_hi + 1) & ((1 << width) - 1), width)  # bit i: d = -1 - i
    places = [min(max(lowest - start, 0), 64) for start in range(0, 64 * found.shape[-1], 64)]
    return parity(functools.reduce(operator.xor, (found[..., i] & (-1 << n) for i, n in enumerate(places) if n < 64)))


@cache
def _read(device: str) -> Tensor:
    """Return the sums of 2^(6 d + 6) over the set bits, the lowest that of d = -1: [2^DIGITS], READ fraction bits."""
    values = 1 << (READ - torch.arange(DIGITS) * (OCTAVES << UNIT) // 2)
    bits = (torch.arange(1 << DIGITS)[:, None] >> torch.arange(DIGITS)) & 1
    return (bits * values).sum(-1).to(device)
