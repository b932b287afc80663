"""Copying along a row: at each place the value at the last marked place up to it.

A pair of numbers a place: whether there was a mark among the 1, 2, 4, .. places up to it, and the value at the last one. A
step takes what the place 1, 2, 4, .. before it has wherever there is nothing yet: pair + (1 - has) pair of that place. Pairs
are opened masked; the products are local.

Rounds: ceil(log2 n). Bytes online: 2 bits an element a round, bits: of the values' ring; offline as much. Valid range: marks
0 or 1, values 0 where nothing is marked, |value| < 2^(bits - 1). Error: none.
Leaks: nothing; pairs are opened under fresh masks, and which places they are taken from is public
(docs/security.md, "Copying along a row").
Source: Hillis, Steele, "Data parallel algorithms", 1986 (prefix by doubling).
"""

from __future__ import annotations

import torch
from torch import Tensor

from protocols.masked import product
from protocols.masked.context import Context, open_value
from protocols.masked.shares import Shared


async def copy_scan(c: Context, marks: Shared, values: Shared, reverse: bool = False) -> Shared:
    """Return at each place the value at the last marked place up to it, [..., n] -> [..., n], in the smaller ring of both; 0
    where there is none. reverse: at the next one from it on."""
    bits, count = min(marks.bits, values.bits), values.shape[-1]
    found = Shared(torch.stack([marks.x, values.x]), bits, values.frac)
    step = 1
    while step < count:

        def moved(t: Tensor, step: int = step) -> Tensor:
            ends = torch.zeros_like(t[..., :step])
            return torch.cat([t[..., step:], ends] if reverse else [ends, t[..., :-step]], -1)

        opened = await open_value(c, found)
        free = opened.map(lambda t: -t[:1]).add_public(1).with_frac(0)
        taken = product.product(c, "scan", free, opened.move(moved))
        found = c.shared(opened).add(taken)
        step *= 2
    return found.map(lambda t: t[1])
