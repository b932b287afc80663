"""Which way a one-hot lookup is dealt: as a one-time truth table or as distributed point functions.

Every gate asks `one_hot` here. Both dealings give the same sharing; they differ in offline bytes and in work, so the one is
taken that `forms.choose` names, by dealer's work, its bytes to all parties and the busiest party's work. The
rule uses public sizes and the constants of `Rates` only, never a clock, so dealer and parties decide alike.

| | table | point functions |
| --- | --- | --- |
| offline bytes | 2^width bits / 8 at the last party | a few words and a leaf at each of the two, see `dpf` |
| dealer | expand, subtract, pack 2^width entries | 4 AES blocks a level |
| party | unpack or expand 2^width entries | 2 (2^(levels + 1) - 1) AES blocks |

So tables win for small domains and small rings (softmax's 64 bins of 11 bits), point functions for the matrices of top-k and
for large domains. Two parties only; with more it is always the table.

Leaks: nothing; public sizes decide (docs/security.md, "Choice of dealing").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from protocols.masked import dpf
from protocols.masked import one_hot as tables
from protocols.masked.context import Context
from protocols.masked.forms import Form, choose
from protocols.masked.shares import Masked, Shared

Dealing = Literal["table", "dpf"]


@dataclass(frozen=True)
class Rates:
    """Seconds of work on one core: `tests/tools/dealing_rates.py` on an AMD EPYC with AES instructions (entries of whole
    bytes; `loose` is what others take more)."""

    table_dealer_entry: float = 2.5e-9
    table_party_entry: float = 2.0e-9
    loose_entry: float = 2.0e-9
    key_dealer_level: float = 1.1e-7  # of an element
    key_party_block: float = 1.0e-8
    key_party_entry: float = 4.4e-9
    key_call: float = 2.8e-4  # what a call takes more than a table's, whatever its size


@dataclass(frozen=True)
class Cost:
    """offline_bytes: at the party that receives most. dealt_bytes: to all parties. dealer, party: seconds of work."""

    offline_bytes: int
    dealt_bytes: int
    dealer: float
    party: float


def table_cost(elements: int, width: int, bits: int, rates: Rates | None = None) -> Cost:
    """Return the cost of the truth table; headers are not counted."""
    r = rates or Rates()
    size = dpf.Shape(width, bits).table_bytes(elements)
    entries, loose = elements << width, r.loose_entry if bits % 8 else 0.0
    return Cost(size, size, entries * (r.table_dealer_entry + loose), entries * (r.table_party_entry + loose))


def key_cost(elements: int, width: int, bits: int, rates: Rates | None = None) -> Cost:
    """Return the cost of the point functions, two parties."""
    r = rates or Rates()
    shape = dpf.Shape(width, bits)
    size = shape.key_bytes(elements)
    party = elements * shape.blocks * r.key_party_block + (elements << width) * r.key_party_entry
    dealer = elements * (shape.depth + 1) * r.key_dealer_level
    return Cost(size, 2 * size, dealer + r.key_call, party + r.key_call)


def choose_dealing(
    elements: int, width: int, bits: int, parties: int, rates: Rates | None = None, prefer: str = "auto"
) -> Dealing:
    """Return the dealing that `forms.choose` takes. Always "table" for more than two parties, or where a leaf covers the
    domain."""
    if parties != 2 or dpf.Shape(width, bits).depth < 1:
        return "table"
    r = rates or Rates()
    found = {"dpf": key_cost(elements, width, bits, r), "table": table_cost(elements, width, bits, r)}
    costs = [Form(name, 0, 0, cost.dealt_bytes, cost.party, cost.dealer) for name, cost in found.items()]
    return "dpf" if choose(costs, prefer) == "dpf" else "table"


def one_hot(c: Context, x: Masked, low: int, width: int, bits: int) -> Shared:
    """Return a one-hot sharing [..., 2^width] modulo 2^bits of a digit of x, dealt the cheaper way; local. See
    `one_hot_table`."""
    return Shared(one_hot_words(c, x, low, width, bits).to(torch.int64), bits, 0)


def one_hot_words(c: Context, x: Masked, low: int, width: int, bits: int) -> Tensor:
    """Return what `one_hot` shares in integers that need not be wider than `bits` bits: octets of bits, for instance."""
    dealing = choose_dealing(x.shape.numel(), width, bits, c.parties, prefer=c.prefer)
    way = dpf.one_hot_words if dealing == "dpf" else tables.one_hot_words
    return way(c, x, low, width, bits)
