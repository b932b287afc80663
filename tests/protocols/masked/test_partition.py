"""The oblivious partition: results, costs, and uniformity of what is revealed."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from mpc.errors import RangeError
from mpc.tape import CountingTape
from protocols.masked import partitioning
from protocols.masked.compaction import METHODS, Method
from protocols.masked.context import Context, open_value
from protocols.masked.shares import Masked, Shared
from protocols.schedule import Scheduler
from tests.protocols.gate_harness import chi_square, chi_square_limit, run


def indicators(batch: tuple[int, ...], count: int, k: int) -> Tensor:
    out = torch.zeros(*batch, count, dtype=torch.int64)
    for row in out.reshape(-1, count):
        row[torch.randperm(count)[:k]] = 1
    return out


@pytest.mark.parametrize("parties", [2, 3])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("method", ["shuffle", "matrix", None])
@pytest.mark.parametrize(("count", "k"), [(2, 1), (9, 8), (20, 7)])
def test_marked_rows_then_the_others(count: int, k: int, method: Method | None, masked: bool, parties: int) -> None:
    batch = (2, 2)
    marks = indicators(batch, count, k)
    wide = torch.randint(-(1 << 40), 1 << 40, (*batch, count, 2, 3))
    narrow = torch.randint(-(1 << 9), 1 << 9, (*batch, count))

    async def gate(c: Context, s: Shared, a: Shared, b: Shared) -> list[Shared]:
        forms = [await open_value(c, x) for x in (s, a, b)] if masked else [s, a, b]
        return await partitioning.partition(c, forms[0], forms[1:], k, method)

    result = run(gate, [(marks, 7), (wide, 64), (narrow, 10)], parties)
    order = marks.argsort(dim=-1, descending=True, stable=True)
    assert torch.equal(result.outputs[0], wide.gather(2, order[..., None, None].expand_as(wide)))
    assert torch.equal(result.outputs[1], narrow.gather(2, order))
    if method == "matrix":
        assert result.costs[0].rounds == (3 if masked else 0) + 2
    elif method == "shuffle":
        assert result.costs[0].rounds == (3 + parties + 1 if masked else parties + 2)


MARKS = {"front": [1, 1, 0, 0], "spread": [0, 1, 0, 1]}
ORDERS = {order: n for n, order in enumerate(itertools.permutations(range(4)))}
BATCH = 6000


def revealed(marks: list[int], parties: int = 2) -> list[list[tuple[Tensor, int]]]:
    """What each party sees in the clear of BATCH partitions with the same marks."""

    async def gate(c: Context, s: Shared) -> list[Shared]:
        return await partitioning.partition(c, s, [s], 2, "shuffle")

    result = run(gate, [(torch.tensor(marks).expand(BATCH, 4).contiguous(), 8)], parties)
    for seen in result.seen_by:
        for m, bits in seen:
            assert chi_square(m, 1 << bits) < chi_square_limit(1 << bits)
    return [list(seen) for seen in result.revealed]


@pytest.mark.parametrize("parties", [2, 3])
@pytest.mark.parametrize("marks", MARKS)
def test_what_is_revealed_is_a_random_bijection(marks: str, parties: int) -> None:
    for (mark, _), (reached, _) in revealed(MARKS[marks], parties):
        destination = reached - 1 + 2 * (1 - mark)
        found = torch.tensor([ORDERS[tuple(row)] for row in destination.tolist()])
        assert chi_square(found, len(ORDERS)) < chi_square_limit(len(ORDERS))


def test_counts_of_marked_rows_up_to_the_others_would_tell_how_marks_are_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variant that opens one count for all rows is found out: what it shows depends on the marks."""
    shown: list[Tensor] = []

    def counts_of_all(marks: Tensor, ones: Tensor, zeros: Tensor) -> Tensor:
        return ones

    monkeypatch.setattr(partitioning, "own_counts", counts_of_all)
    for marks in MARKS.values():
        with pytest.raises(RangeError, match="other than 0 and 1"):
            revealed(marks)

    async def gate(c: Context, s: Shared) -> list[Shared]:
        c.revealed = lambda x, bits: shown.append(x)
        try:
            return await partitioning.partition(c, s, [s], 2, "shuffle")
        except RangeError:
            return [s]

    totals = []
    for marks in MARKS.values():
        shown.clear()
        run(gate, [(torch.tensor(marks).expand(BATCH, 4).contiguous(), 8)])
        reached = next(x for x in shown if int(x.max()) > 1)
        totals.append(reached.sum().item() / BATCH)
    assert totals == [1 + 2 + 2 + 2, 0 + 1 + 1 + 2]  # a simulator that knows k and n alone cannot give both


def test_the_cheaper_method_is_taken() -> None:
    c = Context(CountingTape(), None, 2)
    for columns, k in itertools.product((1, 64, 1000), (2, 30)):
        s, a = Shared(c.blank((64,)), 8, 0), Masked(c.blank((64, columns)), c.blank((64, columns)), 40, 0)
        sent = {method: max(cost.bytes_sent for cost in partitioning.predict(2, s, [a], k, method)) for method in METHODS}
        assert sent[partitioning.cheapest(2, s, [a], k)] == min(sent.values())


@pytest.mark.parametrize(("marks", "words"), [([1, 1, 1, 0], "exactly the 2 ones"), ([0, 2, 1, 1], "other than 0 and 1")])
def test_a_broken_indicator_is_refused(marks: list[int], words: str) -> None:
    async def gate(c: Context, s: Shared) -> list[Shared]:
        return await partitioning.partition(c, s, [s], 2, "shuffle")

    with pytest.raises(RangeError, match=words):
        run(gate, [(torch.tensor(marks), 8)])


def test_bad_arguments_are_named() -> None:
    c = Context(CountingTape(), None, 2)
    s, a = Shared(c.blank((3, 8)), 8, 0), Shared(c.blank((3, 8, 2)), 8, 0)

    def attempt(marks: Shared, tensor: Shared, k: int, method: Any = None) -> None:
        Scheduler(c.flush).run(partitioning.partition(c, marks, [tensor], k, method))

    with pytest.raises(RangeError, match="8 of 8 rows cannot be split off"):
        attempt(s, a, 8)
    with pytest.raises(RangeError, match=r"need an indicator modulo 2\^4, got 2\^2"):
        attempt(s.to_ring(2), a, 5)
    with pytest.raises(RangeError, match=r"shapes \[3, 8\] and \[3, 7, 2\] differ"):
        attempt(s, Shared(c.blank((3, 7, 2)), 8, 0), 5)
    with pytest.raises(RangeError, match="method 'sort' is unknown"):
        attempt(s, a, 5, "sort")
