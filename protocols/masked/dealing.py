"""Which way a one-hot lookup is dealt: as a one-time truth table or as distributed point functions. The one place.

Every gate asks `one_hot` here. Both dealings give the same sharing; they differ in offline bytes and in work, so the one is
taken that is done sooner: dealer's work, then its bytes to all parties over its link, then the busiest party's work. The
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

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from mpc.random import Prg, new_seed
from mpc.tape import DealerTape, PartyTape, chunks
from protocols.masked import dpf
from protocols.masked.context import Context
from protocols.masked.one_hot import one_hot_table, rotate
from protocols.masked.shares import Masked, Shared

Dealing = Literal["table", "dpf"]


@dataclass(frozen=True)
class Rates:
    """Seconds of work on one core, and bytes a second of the dealer's link (1 Gbit/s).

    Work: `measure()` on an AMD EPYC with AES instructions (entries of whole bytes; `loose` is what others take more).
    """

    table_dealer_entry: float = 2.5e-9
    table_party_entry: float = 2.0e-9
    loose_entry: float = 2.0e-9
    key_dealer_level: float = 1.1e-7  # of an element
    key_party_block: float = 1.0e-8
    key_party_entry: float = 4.4e-9
    key_call: float = 2.8e-4  # what a call takes more than a table's, whatever its size
    bytes_per_second: float = 1.25e8


@dataclass(frozen=True)
class Cost:
    """offline_bytes: at the party that receives most. dealt_bytes: to all parties. dealer, party: seconds of work."""

    offline_bytes: int
    dealt_bytes: int
    dealer: float
    party: float

    def seconds(self, rates: Rates) -> float:
        """From the dealer's first step to the party's last."""
        return self.dealer + self.dealt_bytes / rates.bytes_per_second + self.party


def table_cost(elements: int, width: int, bits: int, rates: Rates | None = None) -> Cost:
    """Of the truth table; headers are not counted."""
    r = rates or Rates()
    size = dpf.Shape(width, bits).table_bytes(elements)
    entries, loose = elements << width, r.loose_entry if bits % 8 else 0.0
    return Cost(size, size, entries * (r.table_dealer_entry + loose), entries * (r.table_party_entry + loose))


def key_cost(elements: int, width: int, bits: int, rates: Rates | None = None) -> Cost:
    """Of the point functions, two parties."""
    r = rates or Rates()
    shape = dpf.Shape(width, bits)
    size = shape.key_bytes(elements)
    party = elements * shape.blocks * r.key_party_block + (elements << width) * r.key_party_entry
    dealer = elements * (shape.depth + 1) * r.key_dealer_level
    return Cost(size, 2 * size, dealer + r.key_call, party + r.key_call)


def choose_dealing(elements: int, width: int, bits: int, parties: int, rates: Rates | None = None) -> Dealing:
    """The dealing that is done sooner. Always "table" for more than two parties, or where a leaf covers the domain."""
    if parties != 2 or dpf.Shape(width, bits).depth < 1:
        return "table"
    r = rates or Rates()
    keys, table = key_cost(elements, width, bits, r), table_cost(elements, width, bits, r)
    return "dpf" if keys.seconds(r) < table.seconds(r) else "table"


def one_hot(c: Context, x: Masked, low: int, width: int, bits: int) -> Shared:
    """[..., 2^width] one-hot sharing modulo 2^bits of a digit of x, dealt the cheaper way; local. See `one_hot_table`."""
    if choose_dealing(x.shape.numel(), width, bits, c.parties) == "dpf":
        return dpf.one_hot_dpf(c, x, low, width, bits)
    return one_hot_table(c, x, low, width, bits)


MEASURED = ((6, 11), (6, 64), (8, 16), (8, 64), (10, 16), (10, 64))
"""(width, bits) of what `measure` times."""


def measure(entries: int = 200_000, repeat: int = 10) -> Rates:
    """Time both dealings on one thread of this machine, the fastest of `repeat` runs each; the link stays as assumed.

    A party's seconds for keys are fitted (least squares of relative errors) as blocks * block + entries * entry.
    """
    shapes = [dpf.Shape(width, bits) for width, bits in MEASURED]
    counts = [max(entries >> s.width, 1) for s in shapes]
    keys = [_key_seconds(s, n, repeat) for s, n in zip(shapes, counts, strict=True)]
    tables = [_table_seconds(s, n, repeat) for s, n in zip(shapes, counts, strict=True)]

    def entry(index: int, part: int) -> float:
        return tables[index][part] / (counts[index] << shapes[index].width)

    work = torch.tensor([[s.blocks, 1 << s.width] for s in shapes], dtype=torch.float64)
    taken = torch.tensor([party / n for (_, party), n in zip(keys, counts, strict=True)], dtype=torch.float64)
    block, each = torch.linalg.lstsq(work / taken[:, None], torch.ones(len(shapes), 1, dtype=torch.float64)).solution[:, 0]
    levels = [dealer / n / (s.depth + 1) for (dealer, _), n, s in zip(keys, counts, shapes, strict=True)]
    whole = [i for i, s in enumerate(shapes) if s.bits % 8 == 0]
    dealer_entry, party_entry = (sum(entry(i, part) for i in whole) / len(whole) for part in (0, 1))
    one = _key_seconds(shapes[3], 1, repeat)[1] - _table_seconds(shapes[3], 1, repeat)[1]
    return Rates(
        table_dealer_entry=dealer_entry,
        table_party_entry=party_entry,
        loose_entry=max((entry(0, 0) - dealer_entry + entry(0, 1) - party_entry) / 2, 0.0),
        key_dealer_level=min(levels),
        key_party_block=max(float(block), 0.0),
        key_party_entry=max(float(each), 0.0),
        key_call=max(one, 0.0),
    )


def _table_seconds(shape: dpf.Shape, elements: int, repeat: int) -> tuple[float, float]:
    """(dealer's, last party's) seconds for a truth table."""
    digits = torch.zeros(elements, dtype=torch.int64)
    dims = (elements, 1 << shape.width)
    sent: list[bytes] = []

    def keep(party: int, piece: bytes) -> None:
        if party == 1:
            sent.append(piece)

    seeds = [new_seed(), new_seed()]

    def deal() -> None:
        sent.clear()
        value = torch.zeros(dims, dtype=torch.int64).scatter_(-1, digits[:, None], 1)
        DealerTape(seeds, keep).table("one-hot", dims, lambda: value, shape.bits)

    def take() -> None:
        rotate(PartyTape(seeds[1], True, chunks(iter(sent))).table("one-hot", dims, None, shape.bits), digits)

    return _fastest(deal, repeat), _fastest(take, repeat)


def _key_seconds(shape: dpf.Shape, elements: int, repeat: int) -> tuple[float, float]:
    """(dealer's, a party's) seconds for point functions."""
    prg = Prg(new_seed())
    roots = [prg.ring((elements, 2)) for _ in range(2)]
    digits = torch.zeros(elements, dtype=torch.int64)
    key = dpf.generate(digits, roots, shape)

    def take() -> None:
        rotate(dpf.evaluate(1, roots[1], *key, shape), digits)

    return _fastest(lambda: dpf.generate(digits, roots, shape), repeat), _fastest(take, repeat)


def _fastest(work: Callable[[], object], repeat: int) -> float:
    best = float("inf")
    for _ in range(repeat):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best
