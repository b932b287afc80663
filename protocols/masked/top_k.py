"""Top-k of up to a few hundred masked values by ranks: two rounds to a shared k x C selection matrix, nothing is revealed.

All C(C-1)/2 pairs i < j are compared at once. Position i loses exactly when x_i < x_j, so a tie goes to the earlier
position and the ranks (0 is the largest) are a permutation, always, without appending positions as low bits. A rank is a
sum of comparison bits, local in a ring of log2 C bits; it is opened masked, and a dealt one-hot vector of its mask gives
whatever is wanted of it: the matrix with row j one-hot at the value of rank j, the indicator of rank < k, or, one round
later, the matrix in order of position. Leading axes are independent problems that share the rounds.

Rounds: 2 (`indicator`, order "value"), 3 (order "position"), from a masked input; none for k = C unless ranks are wanted.
Online bits per problem: v C(C-1)/2 + C ceil(log2 C), with v = 3, 5, 7 opened bits for input rings of up to 16, 24, 32 bits
(1 up to 8 bits); order "position" C bit_length(k) more.
Offline bits per problem, r = ceil(log2 C): for each pair v 2^d (d the width of a digit, tables of at least 64 bits) and 5 r
(17 r beyond 16 bits); for each value 2^r bits for the matrix or the indicator.
Valid range: |x| < 2^(x.bits - 2) ring units, 2 <= x.bits <= 32, 1 <= k <= C. Error: none (exact on the ring elements).
Leaks: nothing; comparison bits, ranks and counts are opened under fresh uniform masks
(docs/security.md, "Top-k by ranks").
Sources: Ishai et al. 2013 (one-time truth tables); Boyle, Gilboa, Ishai 2019 (gates on masked inputs).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from protocols.masked.comparison import digit_bits, less_than_zero
from protocols.masked.context import Context, open_value
from protocols.masked.dealing import one_hot
from protocols.masked.one_hot import look_up
from protocols.masked.selection_matrix import check_budget, count_bits, identity, selection_matrix
from protocols.masked.shares import Masked, Shared

Order = Literal["value", "position"]


def rank_bits(count: int) -> int:
    """Return the ring bits in which ranks 0..count - 1 are exact."""
    return max(1, (count - 1).bit_length())


async def rank_shares(c: Context, x: Masked) -> Shared:
    """Return [rank] of every value along the last axis, 0 for the largest, modulo 2^rank_bits: [..., C] -> [..., C]. 1
    round."""
    count = x.shape[-1]
    bits = rank_bits(count)
    if count == 1:
        return c.public(torch.zeros(x.shape, dtype=torch.int64, device=c.device), bits, 0)
    i, j = torch.triu_indices(count, count, 1, device=c.device).unbind(0)
    pairs = x.map(lambda t: t[..., i.to(t.device)] - t[..., j.to(t.device)])
    loses = (await less_than_zero(c, pairs, digit_bits(x.bits, bits))).share(bits)  # i loses against j, j > i

    def balance(t: Tensor) -> Tensor:
        out = t.new_zeros((*t.shape[:-1], count))
        return out.index_add_(-1, i.to(t.device), t).index_add_(-1, j.to(t.device), -t)

    # j loses against every earlier i that does not lose against it: j minus the sum of their bits
    position = torch.arange(count, device=c.device)
    return c.add_public(loses.map(balance), position.expand(x.shape))


async def ranks(c: Context, x: Masked) -> Masked:
    """Return <rank> of every value along the last axis, see `rank_shares`. 2 rounds."""
    if x.shape[-1] == 1:
        zero = torch.zeros_like(x.lam)
        return Masked(zero if c.evaluating else c.blank(x.shape), zero, 1, 0)
    return await open_value(c, await rank_shares(c, x))


def by_value(c: Context, rank: Masked, k: int, bits: int) -> Shared:
    """Return the one-hot rows of <rank>: [..., C] -> [..., k, C], row j one-hot at the value of rank j, modulo 2^bits;
    local."""
    hot = one_hot(c, rank, 0, rank.bits, bits)
    return hot.map(lambda t: t[..., :k].transpose(-1, -2))


def indicator(c: Context, rank: Masked, k: int, bits: int) -> Shared:
    """Return [rank < k] of <rank>, [..., C] -> [..., C], modulo 2^bits; local. It has exactly k ones."""
    if k == rank.shape[-1]:
        return c.public(torch.ones(rank.shape, dtype=torch.int64, device=c.device), bits, 0)
    size = 1 << rank.bits

    def table() -> Tensor:
        value = (torch.arange(size, device=rank.lam.device) - rank.lam[..., None]) & (size - 1)
        return (value < k).to(torch.int64)

    dealt = c.deal_table("rank indicator", (*rank.shape, size), bits, table)
    if not c.evaluating:
        return Shared(c.blank(rank.shape), bits, 0)
    return Shared(look_up(dealt, rank.m), bits, 0)


async def top_k_indicator(c: Context, x: Masked, k: int, bits: int) -> Shared:
    """Return marks 0/1 modulo 2^bits, [..., C] -> [..., C], with a one at the k largest, ties to the earlier. 2 rounds (k =
    C: 0)."""
    check_budget("top-k", k, x.shape[-1])
    if k == x.shape[-1]:
        return c.public(torch.ones(x.shape, dtype=torch.int64, device=c.device), bits, 0)
    return indicator(c, await ranks(c, x), k, bits)


async def top_k(c: Context, x: Masked, k: int, bits: int, order: Order = "value") -> Shared:
    """Return the one-hot rows, [..., C] -> [..., k, C], modulo 2^bits: row j is one-hot at the j-th of the k largest, ties
    to the earlier.

    order "value": from the largest down, 2 rounds. order "position": in order of position, 3 rounds, 0 for k = C.
    """
    count = x.shape[-1]
    check_budget("top-k", k, count)
    if order == "value":
        return by_value(c, await ranks(c, x), k, bits)
    if k == count:
        return identity(c, x.shape[:-1], count, bits)
    chosen = indicator(c, await ranks(c, x), k, count_bits(k))
    return await selection_matrix(c, chosen, k, bits)
