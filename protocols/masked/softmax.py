"""Softmax of masked scores without a maximum: a shift that is opened masked, exponentials that are opened once.

Scores come as exponents (`exponential`), in units of 3/2 ln 2: all figures below are in these. Only differences within a row
matter to a softmax, so each row is read relative to its own last score (of the masks likewise, local): the scores themselves
may lie anywhere, and may have wrapped modulo 2^r. What must fit is a row's spread.

Shift. The differences are masked values; their high digits are bins of 4. Which bins are empty from some bin on is hashed or
counted locally (`histogram`), the hashes or counts are opened masked and compared with zero (`zero_words`, `zero_test`): the
number of those that are not zero is the highest bin, so the maximum is known to a bin without a single comparison of scores.
The last score is its own difference 0, so only bins above that one's count, up to the bound: 27 of 64. The shift is opened
masked, 7 bits a row; a masked score less a masked shift is masked, so no shifted score is ever opened. 2 rounds with counts,
for which rows are short, or where point functions tell what hashes are zero; else 3, or 4 where many rows make shorter
tables worth one. The shift is the bin's upper edge: exponents are negative, the largest lies above -8.

A hash of what is not empty is zero for one choice of its public words in 2^bits; the shift is then too low by a bin or more,
and the row's largest scores are lost, unflagged. The bits follow from the number of hashes (`hash_bits`), so that this has a
chance of 2^-34 at most in a whole softmax: at least 34 bits and log2 of their number. With 12 layers and heads that is 2^-34
in a token, 3 888 hashes of 46 bits; in the whole prompt of 1 024 tokens, 4 million, 2^-42 where hashes have 64 bits (the way
"two") and 2^-31 in the ways of fewer rounds, 53 bits. A far bin that is not empty escapes its flag by the same chance for a
row: 2^-46 at most. Counts miss nothing.

Exponential: `exponential`, 1 or 2 rounds. The numerators' sum over a row is masked as they are: no opening of its own.

Range: with r = range_bits, a row's spread (largest less smallest score) below 7/8 2^(r-1), 112 by default: 107.7 in units of
exponents, as what stands in brackets. Two flags (`ranges`) tell where it is not. A score that is further from the row's last
one than that and a bin (112), but not by 2^r less that (144), modulo 2^r (256): its bin is among the far ones, of which the
hashes are there anyway. And one that lies above the shift or some 5/4 of the bound (144) below it, modulo 2^(r+1) (512): a
table of 32 bits a score. Where exponentials have one-hot bits, these tell modulo 2^r (256) what lies more than 120 below the
shift, and a table of 8 bits tells what does so by 2^r more or less. Both together flag every score beyond 112 and below 396
from the last one. What is not flagged is right.
Error of a probability: below 2^-11 (see tests for the table). Leaks: nothing (docs/security.md, "Softmax").
A public mask removes positions altogether (`rows`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import get_args

import torch
from torch import Tensor

from mpc.ledger import operation
from protocols.masked import exponential, histogram, zero_test
from protocols.masked.context import Context, XorOpening, open_value, require
from protocols.masked.dealing import table_cost
from protocols.masked.exponential import CIRCLE, Below, Exponents
from protocols.masked.forms import Form, choose
from protocols.masked.power import Power, power
from protocols.masked.ranges import DIGIT, RangeFlags
from protocols.masked.rows import Rows
from protocols.masked.shares import Masked, Shared
from protocols.masked.zero_words import Plan, Way, zero_words

RANGE_BITS = 8  # default: differences of scores are read modulo 2^8 = 256, i.e. in [-128, 128)
BIN_BITS = 2  # a bin is 4 wide
HASH_BITS = {"points": (46, 60), "one": (48, 60), "two": (64, 64)}  # the least and the most that each form has
MISSES = 34  # a softmax has a wrong shift with a chance of 2^-34 at most
COUNTS, COUNTED = "counts", 255  # rows of so many scores may be counted
COARSE_DIGIT = 3  # bits of a digit that tells what has gone around once more
LEAST_BITS = 12  # a row's largest numerator lies between 2^-12, but for its rounding, and 1


@dataclass(frozen=True)
class Spread:
    """What is declared of a row's exponents. range_bits: their differences are read modulo 2^range_bits. limit: in real
    units, what lies further from the last one is flagged. flags: where, if anywhere; without them the range is the limit."""

    range_bits: int = RANGE_BITS
    limit: float = 0.0
    flags: RangeFlags | None = None

    @property
    def score_bits(self) -> int:
        """Bits before the point that an exponent is opened with at least."""
        return max(self.range_bits + 1, CIRCLE)

    @property
    def bins(self) -> int:
        """Bins around the circle."""
        return 1 << (self.range_bits - BIN_BITS)

    @property
    def reach(self) -> int:
        """The highest bin above that of the last score, and the furthest below it; further ones are flagged."""
        return -(-int(self.limit) // (1 << BIN_BITS)) if self.flags is not None else self.bins // 2 - 1


@cache
def _far(bins: int, reach: int, device: str) -> Tensor:
    """Return words in which the bins beyond `reach` are set, the highest bin first: [words]."""
    far = [i <= bins // 2 - 2 - reach or i >= bins // 2 + reach for i in range(bins)]
    masks = [sum(1 << i for i, out in enumerate(far[start : start + 64]) if out) for start in range(0, bins, 64)]
    return torch.tensor([m - ((m >> 63) << 64) for m in masks], device=device)


def _watch_far(words: Tensor, spread: Spread) -> None:
    """Flag rows in which a single bin further away than the limit is not empty; words: what `histogram` tells."""
    assert spread.flags is not None
    if words.is_meta:
        spread.flags.watch("score", words[..., 0])
        return
    mask = _far(spread.bins, spread.reach, str(words.device))
    odd = histogram.parity(words & mask)
    spread.flags.watch("score", odd.sum(-1) & 1)


def _check(x: Masked, spread: Spread, bits: bool) -> Below | None:
    """Flag a score above its row's shift, or further below than the limit and the 8 that the shift may lie above.

    bits: whether exponentials have one-hot bits. Where these do for what does not go around once more, return what is asked
    of them; a digit of 3 bits tells the rest."""
    flags = spread.flags
    if flags is None:
        return None
    lowest = math.ceil((spread.limit + (2 << BIN_BITS)) / (1 << BIN_BITS))  # bins of 4 below the shift that may be read
    half = 1 << (spread.range_bits - 1)
    if bits and (lowest + 1) << BIN_BITS <= half:
        flags.check("score", x.add_public(half // 2 << x.frac), half // 2, width=COARSE_DIGIT)
        return Below(lowest, lambda found: flags.watch("score", found))
    unit = 2.0 ** (spread.range_bits + 1 - DIGIT)
    reach = math.ceil((spread.limit + (2 << BIN_BITS)) / 2 / unit) * unit
    flags.check("score", x.add_public(int(reach * 2.0**x.frac)), reach)
    return None


def _counts_form(c: Context, rows: Rows, tests: int, width: int) -> Form:
    """Return what counts cost beyond the one-hot bits that hashes are dealt."""
    bits = rows.longest.bit_length()
    hot, zero = table_cost(rows.entries, width, bits), zero_test.small_form(tests, bits, width + 1, c.parties, c.prefer)
    dealt = hot.dealt_bytes - (rows.entries << width) / 8 + zero.dealt
    sent = tests * bits * (c.parties - 1) / 8
    return Form(COUNTS, 0, sent, dealt, hot.party + zero.work, hot.dealer + zero.dealing)


def hash_bits(form: str, tests: int) -> int | None:
    """Return the bits of each of so many hashes, none where the form cannot hold as many: what leaves a softmax a chance of
    2^-MISSES that one of them is zero by chance.

    >>> [hash_bits("points", tests) for tests in (12 * 27, 12 * 1024 * 27, 1 << 27)]
    [46, 53, None]
    """
    least, most = HASH_BITS[form]
    bits = max(least, MISSES + max(tests - 1, 0).bit_length())
    return bits if bits <= most else None


def _form(c: Context, rows: Rows, spread: Spread) -> str:
    """Return the form of the shift that is run: a way of `zero_words`, "points" or `COUNTS`."""
    tests, width = rows.rows * spread.reach, spread.range_bits - BIN_BITS
    bits, ways = {form: hash_bits(form, tests) for form in HASH_BITS}, get_args(Way)
    forms = [Plan(way, n).form(tests, _bytes_of(width), c.parties) for way in ways if (n := bits[way]) is not None]
    if c.parties == 2 and (of_points := bits["points"]) is not None:
        forms.append(zero_test.points_form(tests, of_points, _bytes_of(width)))
    if rows.longest <= COUNTED:
        forms.append(_counts_form(c, rows, tests, width))
    require(bool(forms), "softmax", f"{tests} hashes at once; batches of fewer rows need fewer")
    return choose(forms, c.prefer)


def _bytes_of(width: int) -> int:
    """Return the ring of a number of bins: whole bytes are looked up faster."""
    return 8 * -(-(width + 1) // 8)


async def shift(c: Context, y: Masked, rows: Rows, spread: Spread) -> Masked:
    """Return <shift> per row: the row's maximum lies in [shift - 8, shift). 2 to 4 rounds.

    y: masked differences of exponents [entries] (`Rows.relative`). Result: [rows], modulo 2^(score_bits + y.frac).
    """
    return await shift_by(c, y, rows, spread, _form(c, rows, spread))


async def shift_by(c: Context, y: Masked, rows: Rows, spread: Spread, form: str) -> Masked:
    """As `shift`, by one of its forms."""
    width, unit = spread.range_bits - BIN_BITS, y.frac + BIN_BITS

    def watch(words: Tensor) -> None:
        if spread.flags is not None:
            _watch_far(words, spread)

    low = y.to_ring(spread.range_bits + y.frac)
    above = slice(spread.bins // 2 - 1 - spread.reach, spread.bins // 2 - 1)  # bins 1 to reach
    if form == COUNTS:
        found = histogram.counts(c, low, rows, unit, rows.longest.bit_length(), watch).map(lambda t: t[:, above])
        empty = zero_test.of_few_bits(c, await open_value(c, found), spread.score_bits - BIN_BITS)
    else:
        way: Way = "two" if form == "two" else "one"
        bits = hash_bits(form, rows.rows * spread.reach)
        assert bits is not None  # of a form that is offered
        share = histogram.hashes(c, low, rows, unit, bits, watch)[:, above]
        hashes = await XorOpening(share, c.tape.random("open", tuple(share.shape), bits, "xor"), bits)
        if form == "points":
            empty = zero_test.by_points(c, hashes, _bytes_of(width))
        else:
            empty = await zero_words(c, hashes, way, _bytes_of(width))
    edge = c.add_public(
        empty.to_ring(spread.score_bits - BIN_BITS).map(lambda t: -t.sum(-1)), spread.reach + 1
    )  # bins above the last score's, the highest one included
    opened = await open_value(c, edge)
    return Masked(opened.m << unit, lambda: opened.lam << unit, spread.score_bits + y.frac, y.frac)


async def exponentials(c: Context, scores: Exponents, rows: Rows, precision: tuple[int, int], spread: Spread) -> Masked:
    """Return <e^(score - shift)> [entries] with `frac` fraction bits modulo 2^bits; a row's largest is above 2^-12.

    scores: [entries] in a ring of spread.score_bits before the point, or more. precision: (frac, bits). 3 to 6 rounds.
    """
    with operation("softmax shift"):
        y = scores.x
        difference = y.to_ring(spread.score_bits + y.frac).map(rows.relative)
        edge = await shift(c, difference, rows, spread)
        away = Masked(rows.spread(edge.m), lambda: rows.spread(edge.lam), edge.bits, edge.frac).map(torch.neg)
        x = difference.add(away)
        read = x.to_ring(max(spread.range_bits, CIRCLE) + y.frac)
        form = exponential.chosen(c, read, *precision)
        below = _check(x.to_ring(spread.range_bits + 1 + y.frac), spread, form == "bits")
    with operation("exponential"):
        return await exponential.exponential(c, read, *precision, below)


async def inverse_sum(c: Context, p: Masked, rows: Rows) -> Shared:
    """Return [1 / row sum] [rows] of numerators [entries] as `exponentials` gives them, all or the largest of them."""
    with operation("softmax sum"):
        grow = max(rows.longest, 1).bit_length()
        total = p.map(rows.sum).to_ring(p.frac + grow + 1)
        return await power(c, total, Power(p.frac - LEAST_BITS - 1, p.frac + grow, -1.0))


async def numerators(
    c: Context, scores: Exponents, rows: Rows, precision: tuple[int, int], spread: Spread
) -> tuple[Masked, Shared]:
    """Return `exponentials` and their `inverse_sum`. 3 to 7 rounds."""
    p = await exponentials(c, scores, rows, precision, spread)
    return p, await inverse_sum(c, p, rows)
