"""Maximum and arg-max by groups: all pairs of a group are compared at once, the best of each group goes on.

A level takes three rounds: every pair's comparison; ranks, sums of bits, opened masked (a few bits); the value and the place
at rank 0, what a dealt table (of long ranks and two parties, a point function) gives at the rank times the masked values,
Shared, opened. The last level takes two, since nothing of it is opened again: the maximum is left Shared; the one-hot row of
the arg-max is, block by block of the last group's members, [rank = 0] times the one-hot vector of the member's place within
its block. With two parties that is one point function of rank and place (`dpf.one_hot_below`); with more, [rank = 0] is
opened once more.

Groups are chosen by predicted bytes and rounds (`group_sizes`). A vocabulary of 50 257 takes twelve rounds, the opening of
the logits counted, or nine where rounds are preferred; one more with more than two parties. Logits of 20 bits, two parties:

| groups | rounds | sent | dealt |
| --- | --- | --- | --- |
| 37, 37, 37 | 9 | 982 kB | 35.4 MB |
| 8, 28, 225 | 9 | 419 kB | 9.9 MB |
| 4, 6, 16, 131 | 12 | 307 kB | 4.2 MB |
| 4, 4, 8, 16, 25 | 15 | 290 kB | 3.2 MB |
| 16 times 2 | 48 | 364 kB | 1.0 MB |

Ties go to the earlier position: of a pair i < j, i loses exactly when x_i < x_j, so ranks are a permutation.
Valid range: |x| <= reach, 2 reach < 2^(x.bits - 1). Error: none (exact on the ring elements).
Leaks: nothing; comparison bits, ranks, places and values are opened under fresh uniform masks
(docs/security.md, "Maximum and arg-max").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from mpc import ring
from mpc.errors import RangeError
from mpc.wide import Wide, Words
from protocols.masked import idpf
from protocols.masked.comparison import digit_bits, sign_form
from protocols.masked.context import Context, open_value, require
from protocols.masked.dpf import one_hot_below, reads_below
from protocols.masked.forms import round_bytes
from protocols.masked.one_hot import deal_scaled, look_up, rotate
from protocols.masked.shares import Masked, Shared
from protocols.masked.top_k import rank_bits, rank_shares, ranks
from protocols.masked.zero_test import by_points
from protocols.schedule import together

SIZES = (*range(2, 17), 20, 24, 28, 32, 40, 48, 56, 64)  # of groups, but for the last
PLACE_BITS = 8  # of a place, about
KEY_BITS = 130  # of a level of a point function
POINT_BITS = 5  # of ranks whose tables are longer than keys
LEVEL_ROUNDS, LAST_ROUNDS = 3, 2


# ---- groups --------------------------------------------------------------------------------------------------------------
def _pair_bits(size: int, bits: int) -> tuple[int, int]:
    """Return the bits that a comparison in a group of `size` is dealt, and those it sends."""
    of = rank_bits(size)
    form = sign_form(bits, digit_bits(bits, of))
    return form.table_bits + form.products * of, len(form.bits)


def level_bits(count: int, size: int, bits: int, parties: int) -> tuple[int, int]:
    """Return the bits that a level of groups of `size` of `count` values is dealt and sends, a row."""
    groups, of = -(-count // size), rank_bits(size)
    dealt, sent = _pair_bits(size, bits)
    pairs, values = groups * size * (size - 1) // 2, groups * (size - 1)
    picked = KEY_BITS * of + 2 * bits if by_keys(of, parties) else 2 * bits * ((1 << of) - 1)
    return pairs * dealt + values * picked, pairs * sent + values * of + groups * (bits + PLACE_BITS)


def last_bits(count: int, bits: int, parties: int) -> tuple[int, int]:
    """Return the bits that the last level, of `count` values, is dealt and sends, a row."""
    of = rank_bits(count)
    dealt, sent = _pair_bits(count, bits)
    pairs = count * (count - 1) // 2
    picked = KEY_BITS * (of + PLACE_BITS) if parties == 2 else bits * ((1 << of) - 1)
    return pairs * dealt + count * picked, pairs * sent + count * of


@lru_cache(1 << 14)
def _chosen(count: int, bits: int, parties: int, worth: float) -> tuple[float, tuple[int, ...]]:
    """Return (bytes a row, and `worth` a round; sizes of groups) of the cheapest levels for `count` values a row."""
    found = (worth * LAST_ROUNDS + sum(last_bits(count, bits, parties)) / 8, (count,))
    for size in SIZES:
        if size < count:
            rest, sizes = _chosen(-(-count // size), bits, parties, worth)
            here = worth * LEVEL_ROUNDS + sum(level_bits(count, size, bits, parties)) / 8
            found = min(found, (here + rest, (size, *sizes)))
    return found


def group_sizes(shape: Sequence[int], bits: int, parties: int, prefer: str = "auto") -> tuple[int, ...]:
    """Return the sizes of groups, level by level, for values [..., n] in a ring of `bits` bits; the last is that of the only
    group of the last level.

    >>> group_sizes((1, 50257), 20, 2), group_sizes((1, 100), 20, 3)
    ((4, 7, 16, 113), (100,))
    """
    return _chosen(shape[-1], bits, parties, round_bytes(prefer) / max(1, math.prod(shape[:-1])))[1]


# ---- levels --------------------------------------------------------------------------------------------------------------
def _grouped(x: Masked, size: int, fill: int) -> Masked:
    """Return [rows, groups, size], filled up with a public value (mask 0: it is public)."""
    missing = -x.shape[-1] % size
    shape = (*x.shape[:-1], -(-x.shape[-1] // size), size)

    def grow(t: Tensor, value: int) -> Tensor:
        if not missing:
            return t.reshape(shape)
        more = torch.full((*t.shape[:-1], missing), value, dtype=t.dtype, device=t.device)
        return torch.cat([t, more], -1).reshape(shape)

    return Masked(ring.reduce(grow(x.m, fill), x.bits), lambda: grow(x.lam, 0), x.bits, x.frac)


def at_first(c: Context, rank: Masked, factor: Callable[[], Tensor], bits: int) -> Tensor:
    """Return shares of [rank = 0] times a factor, modulo 2^bits; local.

    factor: gives the whole at the dealer and a party's share there: all entries of the table add up to it, so the last one
    is not dealt."""
    last = (1 << rank.bits) - 1

    def table() -> Tensor:
        places = torch.arange(last, device=rank.lam.device)
        return torch.where(rank.lam[..., None] == places, factor()[..., None], 0)

    dealt = c.deal_table("rank one-hot", (*rank.shape, last), bits, table)
    if not c.evaluating:
        return c.blank(rank.shape)
    rest = factor() - dealt.sum(-1, dtype=torch.int64)
    return ring.reduce(torch.where(rank.m == last, rest, look_up(dealt, rank.m.clamp(max=last - 1))), bits)


def is_first(c: Context, rank: Masked, bits: int) -> Shared:
    """Return [rank = 0] modulo 2^bits; local."""
    if by_keys(rank.bits, c.parties):
        return by_points(c, rank, bits)
    return Shared(at_first(c, rank, _one(c, rank), bits), bits, 0)


def _one(c: Context, rank: Masked) -> Callable[[], Tensor]:
    """Return what gives 1 at the dealer, and a party's share of it there."""
    return lambda: torch.full_like(rank.lam, int(c.first or not c.evaluating))


async def _others_ranks(c: Context, x: Masked) -> Masked:
    """Return <rank> of all but the last of each group: what none of them is, the last one is. 2 rounds."""
    return await open_value(c, (await rank_shares(c, x)).map(lambda t: t[..., :-1]))


def _above_last(x: Masked) -> Masked:
    """Return what each of the others is more than the last."""
    return x.map(lambda t: t[..., :-1] - t[..., -1:])


def _picks(c: Context, rank: Masked, of: Sequence[Masked], bits: int) -> list[Tensor]:
    """Return shares of [rank = 0] modulo 2^bits, at least the largest ring of `of`, and of its products with each one's
    mask; local."""
    if not by_keys(rank.bits, c.parties):
        ones = at_first(c, rank, _one(c, rank), bits)
        return [ones, *(at_first(c, rank, lambda x=x: x.lam, x.bits) for x in of)]  # type: ignore[misc]
    tree = idpf.Points((rank.bits,), 0, 0, 1 + len(of), bits)

    def payloads() -> Tensor:
        return torch.stack([torch.ones_like(rank.lam), *(x.lam for x in of)], -1).reshape(1, -1, tree.values)

    found = idpf.read_narrow(c, rank, tree, payloads, _all_values)
    return list(found.unbind(-1)) if c.evaluating else [found] * tree.values


def _all_values(share: Words, m: Tensor, cut: slice) -> Words:
    """Return every payload of the only level and point."""
    assert not isinstance(share, Wide)
    return share[0, 0]


def by_keys(rank_bits: int, parties: int) -> bool:
    """Whether ranks of so many bits are read from point functions, which are dealt in fewer bytes than tables."""
    return parties == 2 and rank_bits >= POINT_BITS


def _best(
    c: Context, rank: Masked, values: Sequence[Masked], steps: Tensor | None = None, step_bits: int = 0
) -> list[Shared]:
    """Return [value at rank 0] of each group for several values, [..., groups, size] -> [..., groups]: the last one's, and
    what rank 0 is more. steps: public values of a group [size] that are looked up beside them, last, modulo 2^step_bits or a
    larger ring. Local."""
    above = [_above_last(x) for x in values]
    bits = max(step_bits, *(x.bits for x in above))
    ones, *hot_lams = _picks(c, rank, above, bits)
    if not c.evaluating:
        blank = c.blank(rank.shape[:-1])
        return [Shared(blank, x.bits, x.frac) for x in values] + ([] if steps is None else [Shared(blank, bits, 0)])
    out = []
    for x, d, hot_lam in zip(values, above, hot_lams, strict=True):
        more = Shared((d.m * ones - hot_lam).sum(-1), x.bits, x.frac)
        out.append(c.shared(x.move(lambda t: t[..., -1])).add(more))
    if steps is not None:
        more = Shared((ones * (steps[:-1] - steps[-1])).sum(-1), bits, 0)
        out.append(c.add_public(more, steps[-1]))
    return out


@dataclass(frozen=True)
class _Places:
    """Where the values that are left stood: within blocks of `size` values each, masked modulo 2^bits; None: each is its
    own block."""

    size: int
    bits: int
    masked: Masked | None = None

    @property
    def width(self) -> int:
        """Bits of a place."""
        return (self.size - 1).bit_length()


async def _level(c: Context, x: Masked, places: _Places | None, size: int, lowest: int) -> tuple[Masked, _Places | None]:
    """Reduce a level: [rows, count] -> [rows, ceil(count / size)]. 3 rounds."""
    x = _grouped(x, size, lowest)
    rank = await _others_ranks(c, x)
    if places is None:
        return await open_value(c, _best(c, rank, [x])[0]), None
    steps = torch.arange(size, device=c.device) * places.size
    if places.masked is None:
        value, place = _best(c, rank, [x], steps, places.bits)
    else:
        value, place = _best(c, rank, [x, _grouped(places.masked, size, 0).add_public(steps)])
    opened, place_opened = await together(open_value(c, value), open_value(c, place.to_ring(places.bits)))
    return opened, _Places(places.size * size, places.bits, place_opened)


async def maximum(c: Context, x: Masked, reach: int, sizes: Sequence[int]) -> Shared:
    """Return the maximum over the last axis, [..., n] -> [...], in groups of `sizes` (`group_sizes`). |x| <= reach ring
    units; a difference of both ends must fit the ring."""
    _check(x, reach, sizes)
    for size in sizes[:-1]:
        x, _ = await _level(c, x, None, size, -reach)
    if x.shape[-1] == 1:
        return c.shared(x.move(lambda t: t[..., 0]))
    return _best(c, await _others_ranks(c, x), [x])[0]


async def first_largest(c: Context, x: Masked, reach: int, sizes: Sequence[int], bits: int) -> Shared:
    """Return the one-hot row of the arg-max over the last axis, [..., n] -> [..., n], modulo 2^bits. reach, sizes: as in
    `maximum`."""
    _check(x, reach, sizes)
    count, block = x.shape[-1], math.prod(sizes[:-1])
    places: _Places | None = _Places(1, (block - 1).bit_length())
    for size in sizes[:-1]:
        x, places = await _level(c, x, places, size, -reach)
    assert places is not None
    if places.masked is None:
        rank = await ranks(c, x)
        return is_first(c, rank, bits)
    row = await _blocks(c, x, places, bits)
    return row.map(lambda t: t.flatten(-2)[..., :count])


async def _blocks(c: Context, x: Masked, places: _Places, bits: int) -> Shared:
    """Return the one-hot row, a block of each member of the last group: [..., last] -> [..., last, block]."""
    rank, width = await ranks(c, x), places.width
    assert places.masked is not None
    place = places.masked.to_ring(width)
    if c.parties == 2 and reads_below(rank.bits, width, bits):
        return one_hot_below(c, rank, place, bits).map(lambda t: t[..., : places.size])
    first = await open_value(c, is_first(c, rank, bits))
    dealt = deal_scaled(c, "place", place.lam, width, bits, [lambda: torch.ones_like(place.lam), lambda: first.lam])
    if not c.evaluating:
        return Shared(c.blank((*x.shape, places.size)), bits, 0)
    hot, hot_lam = (rotate(part, place.m).to(torch.int64) for part in dealt)
    return Shared((first.m[..., None] * hot - hot_lam)[..., : places.size], bits, 0)


def _check(x: Masked, reach: int, sizes: Sequence[int]) -> None:
    require(2 * reach < 1 << (x.bits - 1), "argmax", f"a ring of {x.bits} bits is too small")
    left = x.shape[-1]
    for size in sizes:
        left = -(-left // size)
    if left != 1:
        raise RangeError(f"argmax: groups of {list(sizes)} leave {left} of {x.shape[-1]} values; they must leave one")
