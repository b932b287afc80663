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

from mpc.pieced_matrix import pays
from mpc.ring import RING_BITS
from mpc.shape_tensor import shape_tensor
from protocols.masked.context import Context, open_value
from protocols.masked.matrix_weight import DigitWeight, PiecedWeight
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
    c: Context, shape: Sequence[int], share: Tensor | None, ring: tuple[int, int], multiplied: bool = False
) -> FixedWeight:
    """Return a weight of `shape`, [in, out] or [out], from this party's share modulo 2^64 (None where there is none).

    ring: fraction bits, and the bits of the largest ring of its products. multiplied: it is used in products with rows
    alone, so a matrix may lie at several ranks of the party, on a device as digits, and in pieces. The sharing that is kept
    is m - lam, of which the model's owner knows nothing.
    """
    weight = _to_be_filled(c, shape, ring, multiplied)
    dtype = torch.int32 if weight.bits <= 32 else torch.int64
    for rows in _blocks(shape):
        size = (rows.stop - rows.start, *shape[1:])
        part = c.blank(size) if share is None else share[rows].to(c.device)
        opened = await open_value(c, Shared(part, RING_BITS, weight.frac))
        if c.evaluating:
            weight.put(rows, opened.m.to(dtype), c.shared(opened).x.to(dtype))
        if c.tape.dealing:
            weight.put_mask(rows, opened.lam.to(dtype))
    return weight


def _to_be_filled(c: Context, shape: Sequence[int], ring: tuple[int, int], multiplied: bool) -> FixedWeight:
    """Return a weight in the form that this role keeps it in."""
    frac, bits = ring
    width, dtype = (32, torch.int32) if bits <= 32 else (RING_BITS, torch.int64)
    matrix = multiplied and len(shape) == 2
    if matrix and c.ranks is not None and c.evaluating and torch.Size(shape).numel() >= SMALL:
        return SplitWeight.empty(c.ranks, (shape[0], shape[1]), dtype, (frac, width))
    there = matrix and (c.evaluating or c.tape.dealing)
    if there and c.device.type not in ("cpu", "meta"):
        return DigitWeight.empty(shape, (dtype, c.device), (frac, width), c.evaluating)
    if there and c.device.type == "cpu" and pays(shape, dtype):
        return PiecedWeight.empty(shape, dtype, (frac, width), c.evaluating)
    m, own = (_empty(shape, dtype, c.device) if c.evaluating else shape_tensor(shape) for _ in range(2))
    masks = _empty(shape, dtype, c.device) if c.tape.dealing else shape_tensor(shape)
    return FixedWeight(m, own, masks, frac, width)
