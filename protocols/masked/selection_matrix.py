"""From a 0/1 indicator with exactly k ones to the k x C matrix whose row j is one-hot at the j-th marked position.

The count of ones up to each position is a prefix sum, local on shares. It is opened masked in just enough bits for 0..k and
looked up: [count_i >= j + 1] steps from 0 to 1 exactly at the j-th marked position, so differences along the positions are
the rows.

Rounds 1; online bit_length(k) bits per position; offline 2^bit_length(k) * bits per position. Valid range: the indicator has
exactly k ones, k public. Error: none.
Leaks: nothing; the counts are opened under fresh uniform masks (docs/security.md, "Selection matrix").
Sources: Ishai et al. 2013 (one-time truth tables); Boyle, Gilboa, Ishai 2019.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mpc.errors import RangeError
from protocols.masked.context import Context, open_value
from protocols.masked.dealing import one_hot
from protocols.masked.shares import Shared


def check_budget(op: str, k: int, count: int) -> None:
    """Raise `RangeError` unless 1 <= k <= count."""
    if not 1 <= k <= count:
        raise RangeError(f"{op}: {k} of {count} values cannot be selected, the budget must be between 1 and {count}")


def count_bits(k: int) -> int:
    """Return the ring bits in which counts of 0..k are exact."""
    return max(1, k.bit_length())


def identity(c: Context, batch: torch.Size, count: int, bits: int) -> Shared:
    """Return the public identity [..., count, count]: everything is selected, in its order."""
    eye = torch.eye(count, dtype=torch.int64, device=c.device)
    return c.public(eye.expand(*batch, count, count), bits, 0)


def rows_of_counts(hot: Tensor, k: int) -> Tensor:
    """Return the rows of one-hot counts of marks up to each position, [..., C, values] -> [..., k, C]: row j is one-hot
    where the count reaches j + 1, zero where it never does; linear."""
    reached = hot.flip(-1).cumsum(-1).flip(-1)[..., 1 : k + 1].transpose(-1, -2)  # [..., k, C]: count_i >= j + 1
    before = torch.cat([torch.zeros_like(reached[..., :1]), reached[..., :-1]], -1)
    return reached - before


async def selection_matrix(c: Context, indicator: Shared, k: int, bits: int) -> Shared:
    """Return the one-hot rows of an indicator: [..., C] (ring of at least bit_length(k) bits) -> [..., k, C] one-hot rows
    modulo 2^bits. 1 round."""
    count = indicator.shape[-1]
    check_budget("selection matrix", k, count)
    if k == count:
        return identity(c, indicator.shape[:-1], count, bits)
    width = count_bits(k)
    counts = await open_value(c, indicator.to_ring(width).map(lambda t: t.cumsum(-1)))
    hot = one_hot(c, counts, 0, width, bits)  # [..., C, 2^width]
    return hot.map(lambda t: rows_of_counts(t, k))
