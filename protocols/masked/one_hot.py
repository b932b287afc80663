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

import torch
from torch import Tensor

from mpc import ring
from protocols.masked.context import Context
from protocols.masked.shares import Masked, Shared


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
    """Return the one-hot share itself: out[..., v] = dealt[..., m_digit - v mod 2^w]."""
    size = dealt.shape[-1]
    positions = (m_digit[..., None] - torch.arange(size, device=dealt.device)) & (size - 1)
    return dealt.gather(-1, positions).to(torch.int64)


def one_hot_table(c: Context, x: Masked, low: int, width: int, bits: int) -> Shared:
    """Return a one-hot sharing [..., 2^width] modulo 2^bits of a digit of x (exact when low = 0 and width = x.bits), from a
    table.

    Gates call `dealing.one_hot`, which may deal the same in another way."""
    m_digit, lam_digit = digit(c, x, low, width)
    dealt = deal_scaled(c, "one-hot", lam_digit, width, bits, [lambda: torch.ones_like(lam_digit)])[0]
    if not c.evaluating:
        return Shared(c.blank((*x.shape, 1 << width)), bits, 0)
    return Shared(rotate(dealt, m_digit), bits, 0)
