"""Long numbers around a circle: integers modulo 2^L - 1, as L / 64 words of 64 bits, the lowest first: [words, ...].

Modulo 2^L - 1 a product with 2^k turns a number's bits around the circle by k places, so shares of a number, turned alike,
are shares of the turned number. Words are int64 tensors, read as unsigned.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mpc.ring import RING_BITS
from mpc.wide import Wide, below


def subtract(x: Tensor, y: Tensor) -> Tensor:
    """Return x - y, both [words, ...].

    >>> subtract(torch.tensor([[5], [0]]), torch.tensor([[7], [0]])).flatten().tolist()  # 2^128 - 3
    [-3, -1]
    """
    found, borrow = _less(x, list(y.unbind(0)), torch.zeros_like(x[0]))
    return _less(found, [torch.zeros_like(borrow)] * len(x), borrow)[0]


def _less(x: Tensor, y: list[Tensor], borrow: Tensor) -> tuple[Tensor, Tensor]:
    """Return x - y - borrow, and the borrow out of the highest word."""
    out = []
    for a, b in zip(x.unbind(0), y, strict=True):
        part = a - b
        out.append(part - borrow)
        borrow = below(a, b) + below(part, borrow)
    return torch.stack(out), borrow


def placed(value: Tensor, at: Tensor, words: int) -> Tensor:
    """Return value 2^at, 0 <= value < 2^63 and 0 <= at < 64 words: [words, ...]."""
    place, inside = at >> 6, at & 63
    out = torch.zeros((words, *value.shape), dtype=torch.int64, device=value.device)
    out.scatter_(0, place[None], (value << inside)[None])
    over = (value >> 1) >> (RING_BITS - 1 - inside)  # a shift by 64 is none
    return out.scatter_add_(0, ((place + 1) % words)[None], over[None])


def window(x: Tensor, start: Tensor) -> Wide:
    """Return the 128 bits from bit `start` [...] on, around the circle, of [words, ...]."""
    place, inside = start >> 6, start & 63
    first, second, third = (x.gather(0, ((place + i) % x.shape[0])[None])[0] for i in range(3))
    return Wide(_joined(first, second, inside), _joined(second, third, inside))


def _joined(low: Tensor, high: Tensor, inside: Tensor) -> Tensor:
    """Return the word that starts at bit `inside` of the lower one."""
    left = RING_BITS - 1 - inside
    return ((low >> inside) & ((2 << left) - 1)) | ((high << left) << 1)
