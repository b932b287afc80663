"""Comparisons and selection by secret bits.

CrypTen turns every party's share into XOR shares and adds them in a 64-bit circuit: 216 bytes and 8 rounds per comparison
with two parties, more with each further one. Here x + r is opened for a uniform r whose bits the dealer has shared by XOR
(Escudero et al. 2020, edaBits), and the same carry tree runs over as few bits as the comparison needs.

Leaks: nothing; all that is opened has a fresh uniform mask (docs/security.md, "Comparisons, crypten").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mpc import ring
from mpc.errors import RangeError
from protocols.crypten.binding.library import CryptenSession

WIDTHS = (16, 32, 64)
SUM_BITS, LEAST = 32, 3403  # ring of the sums of range checks, and the least that is beyond


def spread(x: Tensor, width: int) -> Tensor:
    """Move bit i of each word to position (i with its log2(width) index bits reversed).

    Then the two halves of a word hold the more and the less significant bit of each pair of neighbours, and so on in the
    halves: a carry tree needs no further shuffling.
    """
    index_bits = width.bit_length() - 1
    for low in range(index_bits // 2):
        high = index_bits - 1 - low
        shift = (1 << high) - (1 << low)
        mask = sum(1 << i for i in range(width) if i >> low & 1 and not i >> high & 1)
        swapped = (ring.shift_right(x, shift, 64) ^ x) & mask
        x = x ^ swapped ^ (swapped << shift)
    return x


def bit_and(s: CryptenSession, left: Tensor, right: Tensor, bits: int) -> Tensor:
    """Return the AND of words of `bits` bits shared by XOR: left [...] with each of right [q, ...]. 1 round, bits/8 (1 + q)
    bytes.

    Beaver's protocol over Z_2, as CrypTen's, with words as narrow as their content.
    """
    both = torch.cat([left[None], right])
    masks = s.tape.random("and masks", both.shape, bits, "xor")
    product = s.held(s.tape.dependent("and product", right.shape, lambda: masks[:1] & masks[1:], bits, "xor"))
    masks = s.held(masks)
    opened = s.open(both ^ masks, bits, "xor")
    return product ^ (opened[:1] & right) ^ (masks[:1] & opened[1:])


def less_than(s: CryptenSession, x: Tensor, thresholds: Sequence[int], bits: int = 64, drop: int = 0) -> Tensor:
    """Return the XOR-shared bits (int64, 0 or 1) [x < threshold], shape [thresholds, *x.shape].

    bits: 16, 32 or 64; every |x - threshold| / 2^drop must stay below 2^(bits-1). drop: low bits of x that are ignored:
    then the decision is wrong at most for x within (parties + 1) 2^drop of the threshold, and monotone in the threshold.
    1 + log2(bits) rounds; bits/8 bytes per element of x, and per element and threshold about 3 bits/8 (5.5, 11.6, 23.6).
    """
    return less_than_together(s, [Comparison(x, thresholds, bits, drop)])[0]


class Comparison(NamedTuple):
    """x [...] with each of the thresholds, in so many bits above `drop`; see `less_than`."""

    x: Tensor
    thresholds: Sequence[int]
    bits: int = 64
    drop: int = 0

    @property
    def limits(self) -> Tensor:
        """Thresholds in units of 2^drop, [thresholds, 1]."""
        return torch.tensor([t >> self.drop for t in self.thresholds], dtype=torch.int64).reshape(-1, 1)


def less_than_together(s: CryptenSession, items: Sequence[Comparison]) -> list[Tensor]:
    """Return `less_than` of several values, in the rounds of the widest.

    From 32 bits on, range checks that wait (`protocols.crypten.ranges`) overlap these rounds.
    """
    for item in items:
        if item.bits not in WIDTHS or item.drop + item.bits > 64:
            raise RangeError(
                f"a comparison takes 16, 32 or 64 bits within the 64 of the ring, got {item.bits} above {item.drop}"
            )
    ready = s.ranges is not None and any(item.bits >= SUM_BITS for item in items)
    waiting = s.ranges.take() if ready else None
    if waiting is None:
        return _less_than(s, items)
    *out, below = _less_than(s, [*items, Comparison(waiting, [0, LEAST], SUM_BITS)])
    s.ranges.settle(below[0] ^ below[1])
    return out


def _less_than(s: CryptenSession, items: Sequence[Comparison]) -> list[Tensor]:
    masked, dealt = [], []
    for item in items:
        x = ring.shift_right(item.x, item.drop, 64).reshape(-1)
        r = s.tape.random("comparison mask", x.shape, item.bits)
        r_bits = s.tape.dependent("comparison bits", x.shape, lambda r=r, n=item.bits: spread(r, n), item.bits, "xor")  # type: ignore[misc]
        masked.append((ring.reduce(x + s.held(r), item.bits), item.bits, "sum"))
        dealt.append(s.held(r_bits))
    differences = []
    for item, m, r_bits in zip(items, s.open_together(masked), dealt, strict=True):
        difference = m[None] - item.limits.to(m.device)
        differences.append((difference.reshape(-1), r_bits.expand(difference.shape).reshape(-1), item.bits))
    below = negative(s, differences)
    return [bit.reshape(len(item.thresholds), *item.x.shape) for item, bit in zip(items, below, strict=True)]


def negative(s: CryptenSession, items: Sequence[tuple[Tensor, Tensor, int]]) -> list[Tensor]:
    """Return the XOR-shared sign bits of d - r [n] in Z_2^bits for each (d public, r's bits spread and shared, bits).

    log2(bits) rounds of the widest: a narrower one joins the tree of the others when that has come down to its width.
    """
    order = sorted(range(len(items)), key=lambda i: -items[i][2])
    width = items[order[0]][2]
    parts = {i: _borrows(s, *items[i]) for i in order}
    generate: list[Tensor] = []
    propagate: list[Tensor] = []
    while width > 1:
        joining = [i for i in order if items[i][2] == width]
        g = torch.cat([*generate, *(parts[i][0] for i in joining)])
        p = torch.cat([*propagate, *(parts[i][1] for i in joining)])
        width //= 2
        mask = (1 << width) - 1
        right = torch.stack([g & mask, p & mask]) if width > 1 else (g & mask)[None]
        update = bit_and(s, (p >> width) & mask, right, width)
        generate, propagate = [((g >> width) & mask) ^ update[0]], [update[-1]]
    signs, start = {}, 0
    for i in order:
        sign = parts[i][2]
        signs[i] = (generate[0][start : start + sign.numel()] ^ sign) & 1
        start += sign.numel()
    return [signs[i] for i in range(len(items))]


def _borrows(s: CryptenSession, difference: Tensor, r_bits: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return what a tree finds the borrow of difference - r from: shares of (generate, propagate, its sign without the
    borrow).

    The sign is top(difference) ^ top(r) ^ borrow, the borrow of the bits below the top one.
    """
    public = spread(ring.reduce(difference, bits), bits)
    top = bits - 1
    below = (1 << top) - 1
    generate = ~public & r_bits & below
    propagate = r_bits & below
    sign = (r_bits >> top) & 1
    if s.party == 0:
        propagate = propagate ^ ((~public & below) | (-1 << top))
        sign = sign ^ ((public >> top) & 1)
    return generate, propagate, sign


def _injected(s: CryptenSession, bit: Tensor) -> tuple[Tensor, Tensor]:
    """Return a dealt bit as XOR share (packed, uniform) and as additive share."""
    rho = s.tape.random("bit mask", bit.shape, 1, "xor")
    return rho, s.tape.dependent("bit mask as sum", bit.shape, lambda: rho)


def to_arithmetic(s: CryptenSession, bit: Tensor) -> Tensor:
    """Return the additive shares in Z_2^64 of XOR-shared bits. 1 round, 1/8 byte each (CrypTen: 8 bytes)."""
    rho, rho_sum = _injected(s, bit)
    opened = s.open(bit ^ s.held(rho), 1, "xor")
    out = s.held(rho_sum) * (1 - 2 * opened)
    return out + opened if s.party == 0 else out


def to_arithmetic_under(s: CryptenSession, condition: Tensor, bits: Tensor, others: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the additive shares of XOR-shared bits: the condition [...], condition AND bit for `bits` [q, ...], and
    `others` [p, ...].

    1 round, 1/8 byte each, as `to_arithmetic`: the products are of dealt bits, condition ^ rho_0 and bit ^ rho are public.
    """
    under = bits.shape[0]
    together = torch.cat([condition[None], bits, others])
    rho, rho_sum = _injected(s, together)
    product = s.held(s.tape.dependent("bit mask product", bits.shape, lambda: rho[:1] & rho[1 : 1 + under]))
    opened = s.open(together ^ s.held(rho), 1, "xor")
    rho_sum = s.held(rho_sum)
    sign = 1 - 2 * opened
    plain = sign * rho_sum  # less the public part, `opened`
    masked = opened[:1] * plain[1 : 1 + under] + opened[1 : 1 + under] * plain[:1] + sign[:1] * sign[1 : 1 + under] * product
    if s.party == 0:
        plain = plain + opened
        masked = masked + opened[:1] * opened[1 : 1 + under]
    return plain[0], masked, plain[1 + under :]


Watched = Callable[[Tensor, Tensor], None]
"""Sees an opening x - a and its mask a, see `protocols.crypten.ranges`."""


def select(s: CryptenSession, bits: Tensor, x: Tensor, watched: Watched | None = None) -> tuple[Tensor, Tensor]:
    """Return bit * x for each of the XOR-shared `bits` [q, *shape], x [shape]; and the bits as additive shares.

    Exact for every x in the ring. 1 round, 8 bytes per element of x and 1/8 byte per bit: x - a and bit ^ rho are opened,
    the dealer deals rho and rho a. Source: bit injection of ABY2.0 (Patra et al. 2021).
    """
    rho, rho_sum = _injected(s, bits)
    a = s.tape.random("selection mask", x.shape)
    rho_a = s.held(s.tape.dependent("selection product", bits.shape, lambda: rho * a))
    opened_bits, opened = s.open_together([(bits ^ s.held(rho), 1, "xor"), (x - s.held(a), 64, "sum")])
    if watched is not None:
        watched(opened, a)
    rho_sum = s.held(rho_sum)
    sign = 1 - 2 * opened_bits
    product = opened_bits * x + sign * (opened * rho_sum + rho_a)
    as_sum = sign * rho_sum
    return product, (as_sum + opened_bits if s.party == 0 else as_sum)


def complement(s: CryptenSession, bit: Tensor) -> Tensor:
    """Return 1 - bit of an XOR-shared bit; local."""
    return bit ^ 1 if s.party == 0 else bit
