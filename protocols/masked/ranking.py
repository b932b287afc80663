"""Maximum and argmax by groups: all pairs of a group are compared at once, the best of each group goes on.

One level: every pair's comparison (1 round), ranks are sums of bits and are opened masked (1 round, 2 to 4 bits), the value
and index at rank 0 are a dealt one-hot of the rank times the masked values: Shared, opened (1 round). Groups of 2, 4, 8, 8,
16 and 7 bring a vocabulary of 50 257 to one in six levels, eighteen rounds.

Ties go to the earlier position: of a pair i < j, i loses exactly when x_i < x_j, so ranks are a permutation.
Leaks: nothing; comparison bits, ranks and values are opened under fresh uniform masks
(docs/security.md, "Maximum and arg-max").
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mpc import ring
from protocols.masked.comparison import less_than_zero
from protocols.masked.context import Context, open_value, require
from protocols.masked.one_hot import deal_scaled, look_up
from protocols.masked.shares import Masked, Shared
from protocols.schedule import together

INDEX_DIGIT = 8


@dataclass(frozen=True)
class Best:
    """Best of each row: its value and its index as base-256 digits, low first."""

    value: Masked
    digits: tuple[Masked, ...]


def group_sizes(count: int, rows: int = 1, background: bool = False) -> list[int]:
    """Return the sizes of groups level by level, until one of `count` is left in each of `rows` rows: small ones while there
    are many values (fewest comparisons), then large ones (fewest rounds). background: pairs throughout."""
    sizes: list[int] = []
    many = 1 << (15 if rows == 1 else 17)  # of one row's argmax the rounds are few beside those of the whole model
    while count > 1:
        total = rows * count
        size = min(count, 2 if background or total > many else 4 if total > 1 << 14 else 8 if total > 256 else 16)
        sizes.append(size)
        count = -(-count // size)
    return sizes


def _pad(x: Masked, size: int, fill: int) -> Masked:
    """Pad the last axis to a multiple of `size` with a public value (mask 0: it is public)."""
    missing = -x.shape[-1] % size
    if not missing:
        return x

    def grow(t: Tensor, value: int) -> Tensor:
        return torch.cat([t, torch.full((*t.shape[:-1], missing), value, dtype=t.dtype, device=t.device)], -1)

    return Masked(ring.reduce(grow(x.m, fill), x.bits), lambda: grow(x.lam, 0), x.bits, x.frac)


async def _level(c: Context, values: Masked, digits: list[Masked], size: int, lowest: int) -> Best:
    """Reduce a level: [rows, count] -> [rows, ceil(count / size)]."""
    values = _pad(values, size, lowest)
    digits = [_pad(d, size, 0) for d in digits]
    groups = (*values.shape[:-1], values.shape[-1] // size, size)
    x = values.move(lambda t: t.reshape(groups))
    ds = [d.move(lambda t: t.reshape(groups)) for d in digits]
    rank_bits = (size - 1).bit_length()
    i, j = torch.triu_indices(size, size, 1).unbind(0)
    pairs = x.map(lambda t: t[..., i] - t[..., j])
    loses = (await less_than_zero(c, pairs)).share(rank_bits)  # position i loses against j, j > i

    def ranks(t: Tensor) -> Tensor:
        out = t.new_zeros((*t.shape[:-1], size))
        return out.index_add(-1, i.to(t.device), t).index_add(-1, j.to(t.device), -t)

    base = torch.zeros(size, dtype=torch.int64).index_add(0, j, torch.ones_like(j)).to(c.device)
    rank = await open_value(c, c.add_public(loses.map(ranks), base.expand(groups)))

    async def select(of: Masked) -> Masked:
        """Return <sum over the group of [rank = 0] of>."""
        hot = deal_scaled(
            c, "rank one-hot", rank.lam, rank_bits, of.bits, [lambda: torch.ones_like(rank.lam), lambda: of.lam]
        )
        if not c.evaluating:
            return await open_value(c, Shared(c.blank(groups[:-1]), of.bits, of.frac))
        bit, bit_lam = look_up(hot[0], rank.m), look_up(hot[1], rank.m)
        return await open_value(c, Shared((of.m * bit - bit_lam).sum(-1), of.bits, of.frac))

    opened = await together(*(select(of) for of in [x, *ds]))
    return Best(opened[0], tuple(opened[1:]))


async def best(c: Context, x: Masked, reach: int, with_index: bool, background: bool = False) -> Best:
    """Return the maximum (and index) over the last axis: [..., n] -> [...]. |x| <= reach ring units; a difference of both
    ends must fit the ring. background: see `group_sizes`."""
    require(2 * reach < 1 << (x.bits - 1), "argmax", f"a ring of {x.bits} bits is too small")
    n = x.shape[-1]
    digits: list[Masked] = []
    if with_index:
        position = torch.arange(n, device=c.device)
        for k in range(max(1, -(-(n - 1).bit_length() // INDEX_DIGIT))):
            public = ((position >> (k * INDEX_DIGIT)) & 255).expand(x.shape)
            digits.append(Masked(public, torch.zeros_like(x.lam), INDEX_DIGIT, 0))
    lowest = -reach
    out = Best(x, tuple(digits))
    for size in group_sizes(n, x.shape[:-1].numel(), background):
        out = await _level(c, out.value, list(out.digits), size, lowest)
    return Best(out.value.map(lambda t: t[..., 0]), tuple(d.map(lambda t: t[..., 0]) for d in out.digits))
