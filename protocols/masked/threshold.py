"""Top-k of thousands of masked values: the k-th largest is found digit by digit, then everything is compared with it once.

1. The values become exact digits of w bits (`exact_digits`), the top one first in what follows.
2. Per digit: dealt one-hot vectors of the digits of all values that are still candidates (equal to the threshold so far) add
   up to a histogram, its suffix sums S_v count the values whose digits reach v. They are opened masked; one-time tables over
   them give [S_v >= k], whose sum is the threshold's digit T, opened masked (round 2). [digit = T] and being a candidate
   before give the new candidates: one XOR-shared looked-up bit a value, opened masked (round 3).
3. With the whole threshold T: [x < T] by one comparison a value, beside the last candidates [x = T]. The running count of
   equal values decides ties: with Q_i = k - #[x > T] - #[x_j = T, j <= i], the marks are
   [x > T] + relu(Q_(i-1)) - relu(Q_i), because relu(Q) falls by one exactly at the equal values that still fit.

Leading axes are independent rows that share the rounds. Per value nothing depends on k.
Rounds, L = ceil((bits - 1) / w) digits: ceil(log2 L) + 3 L + 2, one more if `bits` exceeds n's bits by two.
Online bits per value: about bits - 1 (digits), L (candidates), 3 to 5 (comparison), bit_length(n) + 4 (ties); per row
L (2^w bit_length(n) + w). Offline bytes per value, b = bit_length(n): 2^w (2 L - 1) b / 8 (histograms), about
2^w ((L - 1) w + bits) / 4 (counts), `exact_digits`, and 100 to 300 (comparisons). For 17 bits and 8 192 values 0.8, 1.0,
3.5 kB with w = 4, 6, 8, in 16, 13, 9 rounds.
Valid range: |x| < 2^(x.bits - 2) ring units, 3 <= x.bits <= 32, n < 2^24, 1 <= k <= n (k = n costs nothing).
Error: none, exact on the ring elements; exactly k marks, ties to the earlier position.
Leaks: nothing; digits, counts, thresholds and candidate bits are opened under fresh uniform masks
(docs/security.md, "Top-k by threshold").
Sources: Ishai et al. 2013 (one-time truth tables); Aggarwal, Mishra, Pinkas 2004 (secure k-th ranked element) for counting.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mpc import ring
from protocols.masked.comparison import Bit, less_than_zero
from protocols.masked.context import BitOpening, Context, open_value, require
from protocols.masked.dealing import one_hot
from protocols.masked.digits import even_widths, exact_digits
from protocols.masked.one_hot import deal_scaled, evaluate_table, look_up, rotate
from protocols.masked.selection_matrix import check_budget
from protocols.masked.shares import Masked, Shared
from protocols.schedule import together

DIGIT_BITS = 4
MAX_COUNT_BITS = 24


@dataclass(frozen=True, repr=False)
class Candidates:
    """Which values agree with the threshold's digits so far: the bit is opened ^ rho, opened is public, rho XOR-shared."""

    opened: Tensor
    rho: Tensor

    def share(self, c: Context, bits: int) -> Shared:
        """Return the bits as an arithmetic sharing; local."""
        dealt = c.deal("candidate bit", self.rho.shape, bits, lambda: self.rho)
        if not c.evaluating:
            return Shared(c.blank(self.rho.shape), bits, 0)
        own = self.opened if c.first else torch.zeros_like(self.opened)
        return Shared(ring.reduce(own + (1 - 2 * self.opened) * dealt, bits), bits, 0)


def _histogram(c: Context, digit: Masked, among: Candidates | None, bits: int) -> Shared:
    """Return the number of candidates with each digit, modulo 2^bits: digits [batch, n] -> [batch, 2^w]; local."""
    width = digit.bits
    if among is None:
        return one_hot(c, digit, 0, width, bits).map(lambda t: t.sum(-2))
    lam, rho = digit.lam, among.rho
    dealt = deal_scaled(c, "candidate digit", lam, width, bits, [lambda: torch.ones_like(lam), lambda: rho])
    if not c.evaluating:
        return Shared(c.blank((*digit.shape[:-1], 1 << width)), bits, 0)
    u = among.opened[..., None]
    return Shared(ring.reduce(rotate(u * dealt[0] + (1 - 2 * u) * dealt[1], digit.m).sum(-2), bits), bits, 0)


def _reaching(c: Context, counts: Masked, k: int, bits: int) -> Shared:
    """Return how many of all but the last masked suffix counts are >= k, modulo 2^bits: [batch, 2^w] -> [batch]; local."""
    lam = counts.lam[..., :-1]
    size = 1 << counts.bits

    def table() -> Tensor:
        return (((torch.arange(size, device=lam.device) - lam[..., None]) & (size - 1)) >= k).to(torch.int64)

    dealt = c.deal_table("count reached", (*lam.shape, size), bits, table)
    if not c.evaluating:
        return Shared(c.blank(lam.shape[:-1]), bits, 0)
    found = look_up(dealt, counts.m[..., :-1]).sum(-1)
    return Shared(ring.reduce(found, bits), bits, 0)


def _pick(c: Context, counts: Masked, t: Masked) -> Shared:
    """Return counts[t] for a masked index t: [batch, 2^w] by [batch] -> [batch]; local."""
    hot = one_hot(c, t, 0, t.bits, counts.bits)
    positions = torch.arange(1 << t.bits, device=t.lam.device)

    def table() -> Tensor:
        return counts.lam.gather(-1, (positions - t.lam[..., None]) & ((1 << t.bits) - 1))

    crossed = c.deal("count at threshold", counts.shape, counts.bits, table)
    if not c.evaluating:
        return Shared(c.blank(t.shape), counts.bits, 0)
    out = (hot.x * counts.m).sum(-1) - crossed.gather(-1, t.m[..., None])[..., 0]
    return Shared(ring.reduce(out, counts.bits), counts.bits, 0)


async def _agree(c: Context, digit: Masked, t: Masked, before: Candidates | None) -> Candidates:
    """Return the candidates whose digit equals the threshold's. 1 round, 1 bit a value; offline 2^w (2^(w+1) after the
    first) bits."""
    width = digit.bits
    lam = ring.reduce(digit.lam - t.lam[..., None], width)
    size = 1 << width
    shape = (*digit.shape, size if before is None else 2 * size)

    def table() -> Tensor:
        hit = (torch.arange(size, device=lam.device) == lam[..., None]).to(torch.int64)
        if before is None:
            return hit
        return torch.cat([hit * before.rho[..., None], hit * (1 - before.rho[..., None])], -1)  # opened bit 0, 1

    dealt = c.tape.dependent("candidate table", shape, table if c.tape.dealing else None, 1, "xor")
    rho = c.tape.random("candidate mask", tuple(digit.shape), 1)
    if not c.evaluating:
        return Candidates(await BitOpening(c.blank(digit.shape)), rho)
    index = ring.reduce(digit.m - t.m[..., None], width)
    if before is not None:
        index = index + before.opened * size
    return Candidates(await BitOpening(dealt.gather(-1, index[..., None])[..., 0] ^ rho), rho)


async def _threshold(c: Context, digits: list[Masked], k: int, bits: int) -> tuple[Masked, Candidates | None]:
    """Return (<k-th largest value> [batch] modulo 2^bits, candidates for all digits but the lowest)."""
    n = digits[0].shape[-1]
    batch = digits[0].shape[:-1]
    count_bits = n.bit_length()
    above = c.public(torch.zeros(batch, dtype=torch.int64, device=c.device), count_bits, 0)  # larger than the threshold
    total = c.public(torch.zeros(batch, dtype=torch.int64, device=c.device), bits, 0)
    among: Candidates | None = None
    offset = sum(d.bits for d in digits)
    for level, digit in enumerate(reversed(digits)):
        offset -= digit.bits
        histogram = _histogram(c, digit, among, count_bits)
        suffix = histogram.map(lambda t: t.flip(-1).cumsum(-1).flip(-1)[..., 1:])
        both = torch.cat([suffix.x, torch.zeros_like(suffix.x[..., :1])], -1) + above.x[..., None]
        counts = await open_value(c, Shared(ring.reduce(both, count_bits), count_bits, 0))
        if level == len(digits) - 1:
            last = _reaching(c, counts, k, bits)
            return await open_value(c, total.add(last)), among
        t = await open_value(c, _reaching(c, counts, k, digit.bits))
        above = _pick(c, counts, t)
        total = total.add(_value(c, t, bits).map(lambda v, o=offset: v << o))  # type: ignore[misc]
        among = await _agree(c, digit, t, among)
    raise AssertionError("a value has at least one digit")


def _value(c: Context, t: Masked, bits: int) -> Shared:
    """Return [t] in a larger ring by a lookup of its 2^t.bits values; local."""
    size = 1 << t.bits
    lam = t.lam
    dealt = deal_scaled(c, "threshold digit", lam, t.bits, bits, [lambda: torch.ones_like(lam)])[0]
    if not c.evaluating:
        return Shared(c.blank(t.shape), bits, 0)
    return Shared(evaluate_table(dealt, t.m, torch.arange(size, device=t.m.device), bits), bits, 0)


async def top_k_by_threshold(c: Context, x: Masked, k: int, bits: int, digit_bits: int = DIGIT_BITS) -> Shared:
    """Return marks 0/1 modulo 2^bits, [..., n] -> [..., n], with a one at the k largest, ties to the earlier position.

    digit_bits: fewer rounds (8) or fewer offline bytes (4), see above.
    """
    n = x.shape[-1]
    check_budget("threshold", k, n)
    require(3 <= x.bits <= 32, "threshold", f"rings of 3 to 32 bits are supported, got {x.bits}")
    require(n.bit_length() <= MAX_COUNT_BITS, "threshold", f"{n} values are too many")
    require(1 <= digit_bits <= 10, "threshold", f"digits of 1 to 10 bits are supported, got {digit_bits}")
    if k == n:
        return c.public(torch.ones(x.shape, dtype=torch.int64, device=c.device), bits, 0)
    unsigned = x.add_public(1 << (x.bits - 2))  # in [0, 2^(bits - 1))
    digits = await exact_digits(c, unsigned.to_ring(x.bits - 1), even_widths(x.bits - 1, digit_bits))
    threshold, among = await _threshold(c, digits, k, x.bits)
    difference = Masked(
        ring.reduce(unsigned.m - threshold.m[..., None], x.bits),
        ring.reduce(unsigned.lam - threshold.lam[..., None], x.bits),
        x.bits,
        0,
    )
    below, equal = await together(
        less_than_zero(c, difference), _agree(c, digits[0], threshold.to_ring(digits[0].bits), among)
    )
    return await _mark(c, below, equal, k, bits)


async def _mark(c: Context, below: Bit, equal: Candidates, k: int, bits: int) -> Shared:
    """Return the marks of the k largest from [x < T] and [x = T]. 2 rounds, 3 if `bits` > bit_length(n) + 1."""
    n = below.shape[-1]
    ring_bits = n.bit_length() + 1
    eq = equal.share(c, ring_bits)
    above = c.add_public(
        below.share(ring_bits).add(eq).negate(), torch.ones(below.shape, dtype=torch.int64, device=c.device)
    )
    room = above.map(lambda t: -t.sum(-1, keepdim=True))
    room = c.add_public(room, torch.full(room.shape, k, dtype=torch.int64, device=c.device))  # k - #[x > T] >= 1
    left = await open_value(c, Shared(ring.reduce(room.x - eq.x.cumsum(-1), ring_bits), ring_bits, 0))
    overrun = (await less_than_zero(c, left)).times(left)
    positive = c.shared(left).add(overrun.negate())
    before = torch.cat([room.x, positive.x[..., :-1]], -1)
    marks = Shared(ring.reduce(above.x + before - positive.x, ring_bits), ring_bits, 0)
    if bits <= ring_bits:
        return marks.to_ring(bits)
    return one_hot(c, await open_value(c, marks.to_ring(1)), 0, 1, bits).map(lambda t: t[..., 1])
