"""Softmax of masked scores without a maximum: a shift found in two rounds, exponentials in no round.

Only differences within a row matter to a softmax, so each row is read relative to its own last score (of the masks likewise,
local): the scores themselves may lie anywhere, and may have wrapped modulo 2^r. What must fit is a row's spread.

Shift. The differences are masked values. Their high digits (units of 4) give one-hot vectors locally; summed over a row
they are a histogram in a small ring. Its suffix sums are opened (masked) and compared with zero: the number of non-empty
ones is the highest bin, so the maximum is known to +-4 without a single comparison of scores. 2 rounds, about 1.6 x 63
bytes a *row*; per score nothing but 64 small dealt elements. A token's few rows take 1 round with two parties: point
functions say which counts are zero (`zero_test`).

Exponential. x = m - lam, so e^x = e^(8 d - lam_lo) e^(m_lo) with d the difference of the high digits (units of 8): the
dealer deals one table of 32 entries over the public high digit, the second factor is public. Exact to rounding over the
whole range, no polynomial, no clamp. The numerators carry about 42 fraction bits and are cut when they are opened.

Range: with r = range_bits, a row's spread (largest less smallest score) below 7/8 2^(r-1): 112 by default. What is computed
is right while each score is less than 15/16 2^(r-1) away from the row's last one, and flagged otherwise (`ranges`).
Error of a probability: below 2^-11 (see tests for the table). Offline: 64 (1 + log2 n) bits and 32 x 64 bits per score,
twice that for each further bit of r. Leaks: nothing (docs/security.md, "Softmax").
A public mask removes positions altogether.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mpc import ring
from mpc.errors import RangeError
from mpc.ledger import operation
from protocols.masked.context import Context, open_value, require
from protocols.masked.dealing import one_hot
from protocols.masked.one_hot import digit, look_up
from protocols.masked.power import Power, power
from protocols.masked.shares import Masked, Shared
from protocols.masked.truncation import lift, open_cut
from protocols.masked.zero_test import zero_test
from protocols.schedule import together

RANGE_BITS = 8  # default: differences of scores are read modulo 2^8 = 256, i.e. in [-128, 128)
BIN_BITS = 2  # a bin is 4 wide
WIDE_BITS = 3  # the exponential's digit is 8 wide
FACTOR_BITS = 12  # of the public factor e^(m_lo)
TABLE_BITS = 33  # of the dealt table
PEAK = 4  # the largest numerator lies between e^-4 and e^4
PEAK_BITS = 6  # e^4 < 2^6


@dataclass(frozen=True)
class Rows:
    """Public positions of a [rows, columns] matrix that take part, flattened in row-major order."""

    rows: int
    columns: int
    index: Tensor | None  # [entries] positions row * columns + column, None when all take part

    @staticmethod
    def of(shape: torch.Size, mask: Tensor | None) -> Rows:
        """Return the rows of a mask broadcastable to [..., columns]; all leading axes are rows."""
        columns = shape[-1]
        rows = math.prod(shape[:-1])
        if mask is None or bool(mask.all()):
            return Rows(rows, columns, None)
        full = mask.expand(shape).reshape(rows, columns)
        if not bool(full.any(-1).all()):
            raise RangeError("softmax: a row of the mask is False everywhere; every query needs at least one key")
        return Rows(rows, columns, full.reshape(-1).nonzero()[:, 0])

    @property
    def longest(self) -> int:
        """An upper bound on the entries of a row."""
        return self.columns

    def take(self, x: Tensor) -> Tensor:
        """Return the entries that take part: [..., columns], all leading axes rows -> [entries]."""
        flat = x.reshape(-1)
        return flat if self.index is None else flat[self.index.to(flat.device)]

    def relative(self, x: Tensor) -> Tensor:
        """Return each entry less the last entry of its row: [entries] -> [entries]."""
        if self.index is None:
            whole = x.reshape(self.rows, self.columns)
            return (whole - whole[:, -1:]).reshape(-1)
        row = torch.div(self.index, self.columns, rounding_mode="floor")
        last = torch.bincount(row, minlength=self.rows).cumsum(0) - 1
        return x - x[last[row].to(x.device)]

    def sum(self, x: Tensor) -> Tensor:
        """Return the sum of each row: [entries, ...] -> [rows, ...]."""
        if self.index is None:
            return x.reshape(self.rows, self.columns, *x.shape[1:]).sum(1)
        out = x.new_zeros((self.rows, *x.shape[1:]))
        return out.index_add_(0, torch.div(self.index, self.columns, rounding_mode="floor").to(x.device), x)

    def spread(self, x: Tensor) -> Tensor:
        """Return the value of its row for each entry: [rows] -> [entries]."""
        if self.index is None:
            return x[:, None].expand(self.rows, self.columns).reshape(-1)
        return x[torch.div(self.index, self.columns, rounding_mode="floor").to(x.device)]

    def put(self, x: Tensor) -> Tensor:
        """Return entries in their places, zero where masked out: [entries] -> [rows, columns]."""
        if self.index is None:
            return x.reshape(self.rows, self.columns)
        out = x.new_zeros((self.rows * self.columns,))
        out[self.index.to(x.device)] = x
        return out.reshape(self.rows, self.columns)


async def shift(c: Context, y: Masked, rows: Rows, range_bits: int) -> Shared:
    """Return [shift] per row modulo 2^(range_bits + frac): the row's maximum lies in [shift - 4, shift + 4). 2 rounds.

    y: masked differences of scores [entries] (`Rows.relative`). Result: [rows], y.frac fraction bits.
    """
    bins = 1 << (range_bits - BIN_BITS)
    bits = range_bits + y.frac
    count_bits = max(rows.longest, 1).bit_length()
    hot = one_hot(c, y.to_ring(bits), y.frac + BIN_BITS, range_bits - BIN_BITS, count_bits)  # [entries, bins]

    def suffixes(t: Tensor) -> Tensor:
        histogram = rows.sum(t).roll(bins // 2, -1)  # bin 0 is the lowest score
        return histogram.flip(-1).cumsum(-1).flip(-1)[:, 1:]

    counts = await open_value(c, hot.map(suffixes))
    unit = y.frac + BIN_BITS
    lowest = ((bins - 1) << unit) - (1 << (range_bits - 1 + y.frac))
    empty = await zero_test(c, counts, range_bits - BIN_BITS)
    highest = empty.map(lambda t: -(t.sum(-1) << unit))
    return c.add_public(Shared(highest.x, bits, y.frac), lowest)


def _exponential_tables(x: Masked, table_bits: int) -> Tensor:
    low_bits = x.frac + WIDE_BITS
    size = 1 << (x.bits - low_bits)
    lam_hi = ring.shift_right(x.lam, low_bits, x.bits)
    lam_lo = (x.lam & ((1 << low_bits) - 1)).to(torch.float64) / 2.0**x.frac
    d = (torch.arange(size, device=x.lam.device) - lam_hi[..., None]) & (size - 1)
    units = torch.where(d < 1, d, d - size).to(torch.float64)
    exponent = units * (1 << WIDE_BITS) - lam_lo[..., None] + PEAK
    return torch.round(torch.exp(exponent) * 2.0**table_bits).to(torch.int64)


def exponential(c: Context, x: Masked, bits: int, table_bits: int = TABLE_BITS) -> Shared:
    """Return [e^(x + 4)] for x in [-2^r + 8, 0), r = x.bits - x.frac; local, modulo 2^bits. table_bits + FACTOR_BITS
    fraction bits."""
    low_bits = x.frac + WIDE_BITS
    require(x.bits > low_bits + 1, "exponential", f"a ring of {x.bits} bits is too small")
    shape = (*x.shape, 1 << (x.bits - low_bits))
    dealt = c.deal_table("exponential table", shape, bits, lambda: _exponential_tables(x, table_bits))
    frac = table_bits + FACTOR_BITS
    if not c.evaluating:
        return Shared(c.blank(x.shape), bits, frac)
    m_hi, _ = digit(c, x, low_bits, x.bits - low_bits)
    m_lo = (x.m & ((1 << low_bits) - 1)).to(torch.float64) / 2.0**x.frac
    factor = torch.round(torch.exp(m_lo) * 2.0**FACTOR_BITS).to(torch.int64)
    return Shared(look_up(dealt, m_hi) * factor, bits, frac)


async def numerators(
    c: Context,
    y: Masked,
    rows: Rows,
    frac: int,
    bits: int,
    range_bits: int = RANGE_BITS,
    flags: Callable[[Masked], None] | None = None,
) -> tuple[Masked, Shared]:
    """Return (<e^(y - shift)> [entries] with `frac` fraction bits modulo 2^bits, [1 / row sum] [rows]). 5 rounds, or 4.

    y: masked scores [entries] in a ring of range_bits + y.frac bits or more. flags: told of differences beyond the spread.
    The reciprocal needs no round beyond these: it runs beside the opening of the numerators.
    """
    with operation("softmax shift"):
        ring_bits = range_bits + y.frac
        difference = y.map(rows.relative)
        if flags is not None:
            flags(difference)
        difference = difference.to_ring(ring_bits)
        offset = await shift(c, difference, rows, range_bits)
        x = c.shared(difference).add(offset.map(rows.spread).negate())
        x = c.add_public(x, -(PEAK << x.frac))
    with operation("exponential"):
        masked_x = await open_value(c, x)
        grow = PEAK_BITS + max(rows.longest, 1).bit_length()  # of a row's sum
        table_bits = min(TABLE_BITS, 62 - FACTOR_BITS - grow)
        e_bits = min(64, -(-(table_bits + FACTOR_BITS + grow + 1) // 8) * 8)  # whole bytes are unpacked faster
        e = exponential(c, masked_x, e_bits, table_bits)
    entry_bits = e.frac + PEAK_BITS + 2

    async def cut() -> Masked:
        with operation("exponential"):
            opened = await open_cut(c, e.to_ring(entry_bits), e.frac - frac)
            return await open_value(c, lift(c, opened, bits))

    async def inverse() -> Shared:
        with operation("softmax sum"):
            total = await open_value(c, e.map(rows.sum))
            return await power(c, total, Power(e.frac - PEAK_BITS - 1, e.frac + grow, -1.0))

    p, one_over = await together(cut(), inverse())
    return p, one_over
