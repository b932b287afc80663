"""What a dealing costs on this machine: the constants of `protocols.masked.dealing.Rates`, measured.

`python -m tests.tools.dealing_rates` prints them.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from mpc.random import Prg, new_seed
from mpc.tape import DealerTape, PartyTape, chunks
from protocols.masked import dpf
from protocols.masked.dealing import Rates
from protocols.masked.one_hot import rotate

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
        rotate(dpf.evaluate(1, roots[1], key, shape), digits)

    return _fastest(lambda: dpf.generate(digits, roots, shape), repeat), _fastest(take, repeat)


def _fastest(work: Callable[[], object], repeat: int) -> float:
    best = float("inf")
    for _ in range(repeat):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(measure())
