"""[x != 0] of a masked counter, without a round: one dealt table over the public opened value.

For x = m - lam modulo 2^b the dealer deals, for every value p of m, [p != lam]; the party looks its m up.
Rounds 0; online nothing beyond the opening of x; offline bits per element: 2^b times the result's ring bits, so for small
rings only (`affordable`). `less_than_zero` of a ring one bit wider does the same in a round, for a hundred bytes.
Valid range: any. Error: none. Leaks: nothing (docs/security.md, "Non-zero counts").
Source: Ishai et al. 2013 (one-time truth tables).
"""

from __future__ import annotations

import torch
from torch import Tensor

from protocols.masked.context import Context
from protocols.masked.one_hot import look_up
from protocols.masked.shares import Masked, Shared

ENTRIES = 1 << 20  # of all tables of a call: 768 kB in a ring of 6 bits


def affordable(elements: int, bits: int) -> bool:
    """Whether tables for so many elements modulo 2^bits are worth a round."""
    return elements << bits <= ENTRIES


def non_zero(c: Context, x: Masked, bits: int) -> Shared:
    """Return 1 where x is not 0, else 0, modulo 2^bits; local."""
    size = 1 << x.bits
    lam = x.lam

    def table() -> Tensor:
        return (torch.arange(size, device=lam.device) != lam[..., None]).to(torch.int64)

    dealt = c.deal_table("non-zero", (*lam.shape, size), bits, table)
    if not c.evaluating:
        return Shared(c.blank(lam.shape), bits, 0)
    return Shared(look_up(dealt, x.m), bits, 0)
