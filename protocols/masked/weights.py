"""Weights masked once for all their products: W + lam is opened, in blocks of rows, so that loading takes little more
memory than what is kept.

Rounds: 1 for every `BLOCK_ENTRIES` elements, or part of them. Bytes to each other party: 8 an element. Offline: none but the
masks' seeds. Error: none.

Leaks: nothing: the mask is uniform, and known to the dealer alone (docs/security.md, "Openings").
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mpc.ring import RING_BITS
from mpc.shape_tensor import shape_tensor
from protocols.masked.context import Context, open_value
from protocols.masked.product import FixedWeight
from protocols.masked.shares import Shared
from protocols.masked.split_weight import SMALL, SplitWeight

BLOCK_ENTRIES = 1 << 22  # 32 MiB of 64-bit words


def _blocks(shape: Sequence[int]) -> Iterator[slice]:
    """Return the consecutive rows of a weight that are opened at the same time."""
    step = max(1, BLOCK_ENTRIES // max(1, torch.Size(shape[1:]).numel()))
    for start in range(0, shape[0], step):
        yield slice(start, min(start + step, shape[0]))


def _empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a matrix to be filled, column-major."""
    turned = torch.empty(tuple(reversed(shape)), dtype=dtype, device=device)
    return turned.t() if len(shape) == 2 else turned


async def fixed_weight(
    c: Context, shape: Sequence[int], share: Tensor | None, ring: tuple[int, int], spread: bool = False
) -> FixedWeight:
    """Return a weight of `shape`, [in, out] or [out], from this party's share modulo 2^64 (None where there is none).

    ring: fraction bits, and the bits of the largest ring of its products. spread: it may lie at several ranks of the party,
    since it is used in products with rows alone. The sharing that is kept is m - lam, of which the model's owner knows
    nothing.
    """
    frac, bits = ring
    width, dtype = (32, torch.int32) if bits <= 32 else (RING_BITS, torch.int64)
    split = _split(c, shape, (dtype, frac, width)) if spread else None
    m, own = (_empty(shape, dtype, c.device) if c.evaluating and split is None else shape_tensor(shape) for _ in range(2))
    masks = _empty(shape, dtype, c.device) if c.tape.dealing else shape_tensor(shape)
    for rows in _blocks(shape):
        size = (rows.stop - rows.start, *shape[1:])
        part = c.blank(size) if share is None else share[rows].to(c.device)
        opened = await open_value(c, Shared(part, RING_BITS, frac))
        if split is not None:
            split.put(rows, opened.m.to(dtype), c.shared(opened).x.to(dtype))
        elif c.evaluating:
            m[rows] = opened.m.to(dtype)
            own[rows] = c.shared(opened).x.to(dtype)
        if c.tape.dealing:
            masks[rows] = opened.lam.to(dtype)
    return FixedWeight(m, own, masks, frac, width) if split is None else split


def _split(c: Context, shape: Sequence[int], form: tuple[torch.dtype, int, int]) -> SplitWeight | None:
    """Return a weight over the ranks of this party, to be filled; None where it has none, or the weight is not worth it."""
    if c.ranks is None or not c.evaluating or len(shape) != 2 or torch.Size(shape).numel() < SMALL:
        return None
    dtype, frac, width = form
    return SplitWeight.empty(c.ranks, (shape[0], shape[1]), dtype, (frac, width))
