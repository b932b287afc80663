"""Comparisons and selection by secret bits.

CrypTen turns every party's share into XOR shares and adds them in a 64-bit circuit: 216 bytes and 8 rounds per comparison
with two parties, more with each further one. Here x + r is opened for a uniform r whose bits the dealer has shared by XOR
(Escudero et al. 2020, edaBits), and the same carry tree runs over as few bits as the comparison needs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mpc import ring
from mpc.crypten_binding import CryptenSession
from mpc.errors import RangeError

WIDTHS = (16, 32, 64)


def _spread(x: Tensor, width: int) -> Tensor:
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
    """AND of words of `bits` bits shared by XOR: left [...] with each of right [q, ...]. 1 round, bits/8 (1 + q) bytes.

    Beaver's protocol over Z_2, as CrypTen's, with words as narrow as their content.
    """
    both = torch.cat([left[None], right])
    masks = s.tape.random("and masks", both.shape, bits, "xor")
    product = s.held(s.tape.dependent("and product", right.shape, lambda: masks[:1] & masks[1:], bits, "xor"))
    masks = s.held(masks)
    opened = s.open(both ^ masks, bits, "xor")
    return product ^ (opened[:1] & right) ^ (masks[:1] & opened[1:])


def less_than(s: CryptenSession, x: Tensor, thresholds: Sequence[int], bits: int = 64, drop: int = 0) -> Tensor:
    """XOR-shared bits (int64, 0 or 1) [x < threshold], shape [thresholds, *x.shape].

    bits: 16, 32 or 64; every |x - threshold| / 2^drop must stay below 2^(bits-1). drop: low bits of x that are ignored:
    then the decision is wrong at most for x within (parties + 1) 2^drop of the threshold, and monotone in the threshold.
    1 + log2(bits) rounds; bits/8 bytes per element of x, and per element and threshold about 3 bits/8 (5.5, 11.6, 23.6).
    """
    if bits not in WIDTHS or drop + bits > 64:
        raise RangeError(f"a comparison takes 16, 32 or 64 bits within the 64 of the ring, got {bits} above {drop}")
    r = s.tape.random("comparison mask", x.shape, bits)
    r_bits = s.held(s.tape.dependent("comparison bits", x.shape, lambda: _spread(r, bits), bits, "xor"))
    m = s.open(ring.reduce(ring.shift_right(x, drop, 64) + s.held(r), bits), bits)
    limits = torch.tensor([t >> drop for t in thresholds], dtype=torch.int64).reshape(-1, *([1] * x.dim()))
    public = _spread(ring.reduce(m[None] - limits.to(m.device), bits), bits)
    # x - threshold = public - r: its sign is top(public) ^ top(r) ^ borrow, the borrow of the bits below the top one
    top = bits - 1
    below = (1 << top) - 1
    generate = ~public & r_bits & below
    propagate = (r_bits & below).expand(public.shape)
    sign = (r_bits >> top) & 1
    if s.party == 0:
        propagate = propagate ^ ((~public & below) | (-1 << top))
        sign = sign ^ ((public >> top) & 1)
    width = bits
    while width > 1:
        width //= 2
        mask = (1 << width) - 1
        high, low = (generate >> width) & mask, generate & mask
        carried = (propagate >> width) & mask
        right = torch.stack([low, propagate & mask]) if width > 1 else low[None]
        update = bit_and(s, carried, right, width)
        generate = high ^ update[0]
        propagate = update[-1]
    return (generate ^ sign) & 1


def _injected(s: CryptenSession, bit: Tensor) -> tuple[Tensor, Tensor]:
    """A dealt bit as XOR share (packed, uniform) and as additive share."""
    rho = s.tape.random("bit mask", bit.shape, 1, "xor")
    return rho, s.tape.dependent("bit mask as sum", bit.shape, lambda: rho)


def to_arithmetic(s: CryptenSession, bit: Tensor) -> Tensor:
    """Additive shares in Z_2^64 of XOR-shared bits. 1 round, 1/8 byte each (CrypTen: 8 bytes)."""
    rho, rho_sum = _injected(s, bit)
    opened = s.open(bit ^ s.held(rho), 1, "xor")
    out = s.held(rho_sum) * (1 - 2 * opened)
    return out + opened if s.party == 0 else out


def select(s: CryptenSession, bits: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """bit * x for each of the XOR-shared `bits` [q, *shape], x [shape]; and the bits as additive shares.

    Exact for every x in the ring. 1 round, 8 bytes per element of x and 1/8 byte per bit: x - a and bit ^ rho are opened,
    the dealer deals rho and rho a. Source: bit injection of ABY2.0 (Patra et al. 2021).
    """
    rho, rho_sum = _injected(s, bits)
    a = s.tape.random("selection mask", x.shape)
    rho_a = s.held(s.tape.dependent("selection product", bits.shape, lambda: rho * a))
    opened_bits, opened = s.open_together([(bits ^ s.held(rho), 1, "xor"), (x - s.held(a), 64, "sum")])
    rho_sum = s.held(rho_sum)
    sign = 1 - 2 * opened_bits
    product = opened_bits * x + sign * (opened * rho_sum + rho_a)
    as_sum = sign * rho_sum
    return product, (as_sum + opened_bits if s.party == 0 else as_sum)


def complement(s: CryptenSession, bit: Tensor) -> Tensor:
    """1 - bit of an XOR-shared bit; local."""
    return bit ^ 1 if s.party == 0 else bit
