"""Lookup of a digit of a masked value: a dealt one-hot vector of the mask's digit, rotated by the public digit. No round.

For x = m - lam and a digit of w bits, d = m_digit - lam_digit mod 2^w. The dealer deals [e], e one-hot at lam_digit (times
any factors that it knows). Rotated by the public m_digit it is the one-hot vector of d, so any table T of 2^w public entries
gives T[d] = sum_j e[j] T[m_digit - j]: one dealt vector serves any number of tables.

When lower bits were cut off, d is the true digit or one above (the borrow is not taken out): tables are made so that this
is harmless. Offline: 2^w * bits per element. Online: none.
Leaks: nothing, it is local (docs/security.md, "One-hot lookups").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from mpc import ring
from protocols.masked.context import Context
from protocols.masked.shares import Masked, Shared

LONG = 1 << 10  # entries of a vector that is turned by itself on the CPU


def digit(c: Context, x: Masked, low: int, width: int) -> tuple[Tensor, Tensor]:
    """Return (public digit, mask's digit) of bits low .. low + width of m and lam. The mask's is meaningful at the dealer
    only."""

    def cut(t: Tensor) -> Tensor:
        return ring.digit(t, low, width)

    return (cut(x.m) if c.evaluating else x.m), (cut(x.lam) if c.tape.dealing else x.lam)


def deal_scaled(
    c: Context, op: str, lam_digit: Tensor, width: int, bits: int, factors: Sequence[Callable[[], Tensor]]
) -> Tensor:
    """Return shares of factor_f * e(lam_digit): [factors, ..., 2^width], modulo 2^bits."""
    shape = (len(factors), *lam_digit.shape, 1 << width)

    def value() -> Tensor:
        out = torch.zeros(shape, dtype=torch.int64, device=lam_digit.device)
        for i, factor in enumerate(factors):
            out[i].scatter_(-1, lam_digit[..., None], factor()[..., None])
        return out

    return c.deal_table(op, shape, bits, value)


def look_up(table: Tensor, index: Tensor) -> Tensor:
    """Return table[..., index[...]], int64: one entry of each dealt table [..., entries], however narrow its words are."""
    return table.gather(-1, index[..., None])[..., 0].to(torch.int64)


def evaluate_table(dealt: Tensor, m_digit: Tensor, table: Tensor, bits: int) -> Tensor:
    """Return the sum_j dealt[..., j] table[m_digit - j mod 2^w]: the looked-up share. table: [2^w] public int64 ring
    elements."""
    size = dealt.shape[-1]
    positions = (m_digit[..., None] - torch.arange(size, device=dealt.device)) & (size - 1)
    return ring.reduce((dealt * table[positions]).sum(-1), bits)


def rotate(dealt: Tensor, m_digit: Tensor) -> Tensor:
    """Return the one-hot share itself, in as narrow words as dealt has: out[..., v] = dealt[..., m_digit - v mod 2^w]."""
    size = dealt.shape[-1]
    if size >= LONG and dealt.device.type == "cpu":
        return _rotate_long(dealt, m_digit)
    positions = (m_digit[..., None] - torch.arange(size, device=dealt.device)) & (size - 1)
    return dealt.gather(-1, positions)


def _rotate_long(dealt: Tensor, m_digit: Tensor) -> Tensor:
    """As `rotate`, two pieces a vector: what is copied where is public, and no place is looked up."""
    rows = dealt.reshape(-1, dealt.shape[-1]).numpy()
    out = np.empty_like(rows)
    for row, turned, place in zip(rows, out, m_digit.reshape(-1).tolist(), strict=True):
        turned[: place + 1] = row[place::-1]
        turned[place + 1 :] = row[:place:-1]
    return torch.from_numpy(out).reshape(dealt.shape)


def one_hot_table(c: Context, x: Masked, low: int, width: int, bits: int) -> Shared:
    """Return a one-hot sharing [..., 2^width] modulo 2^bits of a digit of x (exact when low = 0 and width = x.bits), from a
    table.

    Gates call `dealing.one_hot`, which may deal the same in another way."""
    return Shared(one_hot_words(c, x, low, width, bits).to(torch.int64), bits, 0)


def one_hot_words(c: Context, x: Masked, low: int, width: int, bits: int) -> Tensor:
    """Return what `one_hot_table` shares in integers that need not be wider than `bits` bits."""
    m_digit, lam_digit = digit(c, x, low, width)
    dealt = deal_scaled(c, "one-hot", lam_digit, width, bits, [lambda: torch.ones_like(lam_digit)])[0]
    return rotate(dealt, m_digit) if c.evaluating else c.blank((*x.shape, 1 << width))
