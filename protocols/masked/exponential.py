"""e^x of masked x < 0: one opening, and one more where fewer dealt bytes are worth it. No clamp, no polynomial.

With x = m - lam and digits of 2^unit, e^x = e^(2^unit d) e^(m_lo) e^(-lam_lo), d = m_hi - lam_hi. Both forms are made in a
ring that is wider by what is cut, so e^x is opened once in the ring that it is used in.

| form | unit | dealt a number, ring of 62 bits, x with 8 bits before the point | openings |
| --- | --- | --- | --- |
| `table` | 32 | e^(32 d - lam_lo) for each of 8 public digits; the entry is multiplied by the public e^(m_lo): 124 B | 1 |
| `bits` | 4 | XOR one-hot bits of the digit, and sigma e^(-lam_lo) alone and times a mask: 8 + 28 B | 2 |

With `bits` the parties read u = sigma e^(4 d + m_lo) locally, open it, and multiply it by the dealt sigma e^(-lam_lo).
u is below 1, opened with a fraction bit more than the result, in a ring with 2 more: only d < 0 is read (`exponential`).
The same bits tell whoever asks, shared, whether d is one of the lowest ones (`Below`). Public factors are integer tables,
equal at all parties (`natural_powers`). More than two parties have no sign, and deal the digit's one-hot vector in u's
ring; they take the table.

Rounds: 1 or 2 openings, the last one that of the result. Error: below 2 units of the result, and 2^-15 relative. Range: see
`exponential`.
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

from mpc.wide import Wide
from protocols.masked import lifted
from protocols.masked.context import Context, require
from protocols.masked.forms import Form, choose
from protocols.masked.histogram import parity
from protocols.masked.natural_powers import powers, powers_wide
from protocols.masked.one_hot import digit
from protocols.masked.shares import Masked, Shared, WideShared
from protocols.masked.signed_one_hot import one_hot_words, turned
from protocols.masked.truncation import open_cut
from protocols.masked.wide import deal, open_any, open_cut_wide

TABLE_UNIT = 5  # log2 of the digit's unit at most
TABLE_PEAK = 46  # bits of e^32: a table's entry is multiplied by so much
LOWEST = 24  # e^-24 < 2^-34: nothing is left
TABLE_FACTOR = 16  # fraction bits of the public factor
UNIT = 2  # of the form `bits`
FACTOR = 26  # fraction bits of its public factor e^(m_lo - 4)
READ = 32  # fraction bits of what its bits are read with, e^(4 d + 4)
DIGITS = 1 + (LOWEST >> UNIT)  # d = -1 to -7
HELD = 1  # fraction bits of u beyond those of the result
DEALT_FACTOR = 20  # fraction bits of the dealt e^(-lam_lo)
CUT = HELD + DEALT_FACTOR  # fraction bits of the product beyond those of the result


@dataclass(frozen=True)
class Below:
    """Who is told, of each number, XOR shares of [d < -lowest], 0 or 1; the form `bits` only."""

    lowest: int
    tell: Callable[[Tensor], None]


def exponential_forms(elements: int, range_bits: int, frac: int, bits: int, parties: int) -> list[Form]:
    """Return what each form costs for so many x with range_bits before the point; results modulo 2^bits."""
    others = parties - 1
    ring_bits = bits + TABLE_PEAK + TABLE_FACTOR
    table = (ring_bits << range_bits) >> _table_unit(range_bits)
    opened = bits if parties == 2 else ring_bits
    forms = [Form("table", 0, elements * opened * others / 8, elements * table / 8, elements * 3e-7, elements * 5e-7)]
    if parties == 2:
        dealt = (1 << (range_bits - UNIT)) + 3 * (bits + CUT) - _opened(frac)
        sent = elements * (bits + _opened(frac)) / 8
        forms.append(Form("bits", 1, sent, elements * dealt / 8, elements * 3e-7, elements * 2e-7))
    return forms


def chosen(c: Context, x: Masked, frac: int, bits: int) -> str:
    """Return the form to run, "table" or "bits"."""
    return choose(exponential_forms(x.shape.numel(), x.bits - x.frac, frac, bits, c.parties), c.prefer)


def _table_unit(range_bits: int) -> int:
    return min(TABLE_UNIT, range_bits - 2)


def _opened(frac: int) -> int:
    """Return the ring of u."""
    return frac + HELD + 2


async def exponential(c: Context, x: Masked, frac: int, bits: int, below: Below | None = None) -> Masked:
    """Return <e^x> with `frac` fraction bits modulo 2^bits. 1 or 2 rounds.

    x < 0, and not within 32 of the lowest value of its ring (16 with 6 bits before the point). The digit above the lowest
    x.frac + 2 bits must be negative even with a borrow from below: so it is for x < -4, and for all x < 0 that are a masked
    value less a multiple of 4 beyond its digit (`softmax`). below: told only where the form is `bits` (`chosen`)."""
    require(frac <= 30, "exponential", f"{frac} fraction bits, at most 30")
    if chosen(c, x, frac, bits) == "table":
        return await by_table(c, x, frac, bits)
    return await by_bits(c, x, frac, bits, below)


async def by_table(c: Context, x: Masked, frac: int, bits: int) -> Masked:
    """As `exponential`, from dealt tables, whatever the digit; any number of parties. 1 round."""
    unit = _table_unit(x.bits - x.frac)
    low, width = x.frac + unit, x.bits - x.frac - unit
    out = bits + TABLE_PEAK + TABLE_FACTOR
    m_hi, lam_hi = digit(c, x, low, width)

    def table() -> Wide:
        below = x.lam & ((1 << low) - 1)
        d = (torch.arange(1 << width, device=x.lam.device) - lam_hi[..., None]) & ((1 << width) - 1)
        words = torch.zeros((2, *d.shape), dtype=torch.int64, device=x.lam.device)
        for below_zero in range(1 - (-LOWEST >> unit)):
            entry = powers_wide(-1, low, x.frac, -(below_zero << unit), frac + TABLE_PEAK, str(below.device))
            for word, of in zip(words, (entry.low, entry.high), strict=True):
                word += torch.where(d == (-below_zero & ((1 << width) - 1)), of[below][..., None], 0)
        return Wide(words[0], words[1])

    dealt = deal(c, "exponential table", (*x.shape, 1 << width), out, table)
    count = TABLE_PEAK + TABLE_FACTOR
    if not c.evaluating:
        return await open_cut_wide(c, WideShared(Wide(c.blank(x.shape), c.blank(x.shape)), out, frac + count), count)
    assert isinstance(dealt, Wide)
    entry = dealt.map(lambda t: t.gather(-1, m_hi[..., None])[..., 0])
    factor = powers(1, low, x.frac, 0, TABLE_FACTOR, str(x.m.device))[x.m & ((1 << low) - 1)]
    return await open_cut_wide(c, WideShared(entry * factor, out, frac + count), count)


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
        factor = powers(1, low, x.frac, -(1 << UNIT), FACTOR, str(x.m.device))[x.m & ((1 << low) - 1)]
        found = _read(str(x.m.device))[read] * factor
        signed = Shared(found if c.first else -found, signed.bits, signed.frac)
    u = await open_cut(c, signed, count)

    def known() -> Tensor:
        word = shares[0].gather(-1, (lam_hi >> 6)[..., None])[..., 0]
        bit = (word >> (lam_hi & 63)) & 1
        value = powers(-1, low, x.frac, 0, DEALT_FACTOR, str(x.lam.device))[x.lam & ((1 << low) - 1)]
        return torch.where(bit == 1, value, -value)

    product = lifted.multiply_known(c, "exponential", u, known, DEALT_FACTOR, bits + CUT)
    return await open_any(c, product, CUT)


def _is_below(c: Context, words: Tensor, m_hi: Tensor, width: int, lowest: int) -> Tensor:
    """Return this party's XOR share of [d < -lowest] from its one-hot bits [..., words]: the parity of those places."""
    if not c.evaluating or words.is_meta or m_hi.is_meta:
        return c.blank(m_hi.shape)
    found = turned(words, (m_hi + 1) & ((1 << width) - 1), width)  # bit i: d = -1 - i
    places = [min(max(lowest - start, 0), 64) for start in range(0, 64 * found.shape[-1], 64)]
    return parity(functools.reduce(operator.xor, (found[..., i] & (-1 << n) for i, n in enumerate(places) if n < 64)))


@cache
def _read(device: str) -> Tensor:
    """Return the sums of e^(4 d + 4) over the set bits, the lowest that of d = -1: [2^DIGITS], READ fraction bits."""
    values = powers(-1, 5, 0, 0, READ)[: DIGITS << UNIT : 1 << UNIT]
    bits = (torch.arange(1 << DIGITS)[:, None] >> torch.arange(DIGITS)) & 1
    return (bits * values).sum(-1).to(device)
