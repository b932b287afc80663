"""The secret-shared shuffle and the compaction built on it: results, costs, and uniformity of what is opened."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from mpc.errors import RangeError
from mpc.ledger import operation
from mpc.packing import packed_size
from mpc.random import Prg, new_seed
from mpc.tape import CountingTape, DealerTape, PartyTape
from protocols.masked import compaction
from protocols.masked import shuffle as shuffling
from protocols.masked.context import Context, open_value
from protocols.masked.shares import Masked, Shared
from protocols.masked.shuffle import Reveal, permutation, shuffle
from protocols.schedule import Scheduler, together
from tests.protocols.gate_harness import chi_square, chi_square_limit, run

PARTIES = [2, 3, 4]


def rows(batch: tuple[int, ...], count: int, columns: int) -> Tensor:
    """Rows that name themselves: row i of every batch is [i, i + count, ...]."""
    line = torch.arange(count)[:, None] + count * torch.arange(columns)
    return line.expand(*batch, count, columns).contiguous()


@pytest.mark.parametrize("parties", PARTIES)
@pytest.mark.parametrize("batch", [(), (3,), (2, 2)])
@pytest.mark.parametrize("form", ["shared", "masked", "both"])
def test_shuffle_moves_whole_rows_of_all_tensors(batch: tuple[int, ...], form: str, parties: int) -> None:
    count = 11
    wide, narrow = rows(batch, count, 3), rows(batch, count, 1)[..., 0]

    async def gate(c: Context, a: Shared, b: Shared) -> list[Shared]:
        first = a if form == "shared" else await open_value(c, a)
        second = await open_value(c, b) if form == "masked" else b
        return await shuffle(c, [first, second], len(batch))

    result = run(gate, [(wide, 64), (narrow, 9)], parties)
    moved, order = result.outputs
    assert torch.equal(order.sort(-1).values, narrow)
    assert torch.equal(moved[..., 0], order)
    assert torch.equal(moved, rows((), count, 3)[order])
    if batch:
        assert len({tuple(o.tolist()) for o in order.reshape(-1, count)}) > 1  # independent orders
    one, two = packed_size(wide.numel(), 64), packed_size(narrow.numel(), 9)
    opened = {"shared": 0, "masked": one + two, "both": one}[form] * (parties - 1)
    collected = {"shared": one + two, "masked": 0, "both": two}[form]
    for party, cost in enumerate(result.costs):
        sends = opened + (collected if party else 0) + (one + two if party < parties - 1 else 0)
        receives = opened + (0 if party else (parties - 1) * collected) + (one + two if party else 0)
        assert (cost.bytes_sent, cost.bytes_received) == (sends, receives)
    assert result.costs[0].rounds == {"shared": 0, "masked": 2, "both": 1}[form] + (form != "masked") + parties - 1


@pytest.mark.parametrize("parties", [2, 3])
def test_a_pass_shares_its_round_with_an_opening(parties: int) -> None:
    x, y = torch.arange(50), torch.arange(7)

    async def opened(c: Context, b: Shared) -> Shared:
        with operation("opening"):
            return c.shared(await open_value(c, b))

    async def moved(c: Context, a: Shared) -> Shared:
        with operation("pass"):
            return (await shuffle(c, [a], 0))[0]

    async def gate(c: Context, a: Shared, b: Shared) -> list[Shared]:
        return list(await together(moved(c, a), opened(c, b)))

    result = run(gate, [(x, 12), (y, 9)], parties)
    assert torch.equal(result.outputs[0].sort().values, x)
    assert torch.equal(result.outputs[1], y)
    for party, cost in enumerate(result.costs):
        assert cost.rounds == parties
        sent, received = packed_size(50, 12), packed_size(7, 9) * (parties - 1)
        assert cost.bytes_sent == received + (sent if party else 0) + (sent if party < parties - 1 else 0)
        one = result.operations[party]
        assert (one["opening"].bytes_sent, one["opening"].bytes_received) == (received, received)
        assert one["pass"].bytes_sent == cost.bytes_sent - received


def test_one_row_stays() -> None:
    async def gate(c: Context, a: Shared) -> list[Shared]:
        return await shuffle(c, [a], -2)

    assert torch.equal(run(gate, [(torch.tensor([[5, 7]]), 20)]).out, torch.tensor([[5, 7]]))


@pytest.mark.parametrize("parties", [2, 3])
def test_every_order_is_equally_likely_and_messages_are_uniform(parties: int) -> None:
    count, batch = 4, 6000
    x = rows((batch,), count, 1)[..., 0]

    async def gate(c: Context, a: Shared) -> list[Shared]:
        return await shuffle(c, [await open_value(c, a)], 1)

    result = run(gate, [(x, 6)], parties)
    index = {order: i for i, order in enumerate(itertools.permutations(range(count)))}
    found = torch.tensor([index[tuple(o)] for o in result.out.tolist()])
    assert chi_square(found, len(index)) < chi_square_limit(len(index))
    for seen in result.seen_by:
        for m, bits in seen:
            for position in range(count):
                assert chi_square(m[:, position], 1 << bits) < chi_square_limit(1 << bits)


@pytest.mark.parametrize("broken", [False, True])
def test_what_is_handed_on_cannot_be_matched_with_what_came_in(broken: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Party 1 knows the masked rows before and after party 0's pass: without party 0's own mask it would see its order."""
    if broken:
        for end in (DealerTape, PartyTape):
            real = end.random_shares

            def unmasked(tape: Any, op: str, *args: Any, real: Any = real, **options: Any) -> list[Tensor]:
                found = real(tape, op, *args, **options)
                return [torch.zeros_like(t) for t in found] if op == "shuffle mask" else found

            monkeypatch.setattr(end, "random_shares", unmasked)

    async def gate(c: Context, a: Shared) -> list[Shared]:
        return await shuffle(c, [await open_value(c, a)], 0)

    result = run(gate, [(torch.arange(50), 60)])
    assert torch.equal(result.out.sort().values, torch.arange(50))
    (before, _), (after, _) = result.seen_by[1]
    assert len(set(before.tolist()) & set(after.tolist())) == (50 if broken else 0)


def test_permutations_have_no_bias() -> None:
    found = permutation(Prg(new_seed()).ring((2, 60000, 3)))
    index = {order: i for i, order in enumerate(itertools.permutations(range(3)))}
    codes = torch.tensor([index[tuple(o)] for o in found.tolist()])
    assert chi_square(codes, 6) < chi_square_limit(6)


@pytest.mark.parametrize("parties", [2, 3])
def test_reveal(parties: int) -> None:
    x = torch.arange(-5, 8)

    async def gate(c: Context, a: Shared) -> Shared:
        (moved,) = await shuffle(c, [a], 0)
        return c.public(await Reveal(moved), a.bits, 0)

    assert torch.equal(run(gate, [(x, 13)], parties).out.sort().values, x)


def test_tensors_that_do_not_fit_are_named() -> None:
    c = Context(CountingTape(), None, 2)
    a, b = Shared(c.blank((2, 5, 3)), 8, 0), Shared(c.blank((2, 4)), 8, 0)
    with pytest.raises(RangeError, match=r"shapes \[2, 5, 3\] and \[2, 4\] differ up to axis 1"):
        shuffle(c, [a, b], 1).send(None)
    with pytest.raises(RangeError, match=r"axis 3 does not exist in a tensor of shape \[2, 5, 3\]"):
        shuffle(c, [a], 3).send(None)
    with pytest.raises(RangeError, match="no tensor"):
        shuffle(c, [], 0).send(None)


def indicators(batch: tuple[int, ...], count: int, k: int) -> Tensor:
    out = torch.zeros(*batch, count, dtype=torch.int64)
    flat = out.reshape(-1, count)
    for row in range(len(flat)):
        chosen = [torch.arange(k), torch.arange(count - k, count)][row] if row < 2 else torch.randperm(count)[:k]
        flat[row, chosen] = 1
    return out


@pytest.mark.parametrize("parties", [2, 3])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("method", ["shuffle", "matrix", None])
@pytest.mark.parametrize(("count", "k"), [(1, 1), (9, 9), (9, 8), (20, 7)])
def test_compaction(count: int, k: int, method: compaction.Method | None, masked: bool, parties: int) -> None:
    batch = (2, 2)
    marks = indicators(batch, count, k)
    wide = torch.randint(-(1 << 40), 1 << 40, (*batch, count, 2, 3))
    narrow = torch.randint(-(1 << 9), 1 << 9, (*batch, count))

    async def gate(c: Context, s: Shared, a: Shared, b: Shared) -> list[Shared]:
        forms = [await open_value(c, x) for x in (s, a, b)] if masked else [s, a, b]
        return await compaction.compact(c, forms[0], forms[1:], k, method)

    result = run(gate, [(marks, 7), (wide, 64), (narrow, 10)], parties)
    chosen = marks.bool()
    assert torch.equal(result.outputs[0], wide[chosen].reshape(*batch, k, 2, 3))
    assert torch.equal(result.outputs[1], narrow[chosen].reshape(*batch, k))
    if k == count:
        assert result.costs[0].rounds == 3 * masked
    elif method == "matrix":
        assert result.costs[0].rounds == (3 if masked else 0) + 2
    elif method == "shuffle":
        assert result.costs[0].rounds == (3 + parties + 1 if masked else parties + 2)


@pytest.mark.parametrize("parties", [2, 3])
def test_what_compaction_reveals_is_a_random_injection(parties: int) -> None:
    count, k, batch = 6, 2, 6000
    marks = torch.zeros(batch, count, dtype=torch.int64)
    marks[:, 1] = marks[:, 2] = 1  # always the same rows
    pairs = {pair: i for i, pair in enumerate(itertools.permutations(range(count), k))}

    async def gate(c: Context, s: Shared) -> list[Shared]:
        return await compaction.compact(c, s, [s], k, "shuffle")

    result = run(gate, [(marks, 8)], parties)
    for seen, revealed in zip(result.seen_by, result.revealed, strict=True):
        for m, bits in seen:
            assert chi_square(m, 1 << bits) < chi_square_limit(1 << bits)
        (mark, _), (reached, _) = revealed
        assert reached.shape == (batch, k)
        at = mark.nonzero()[:, -1].reshape(batch, k)
        first = at.gather(1, (reached == 1).long().argmax(1)[:, None])[:, 0]
        second = at.gather(1, (reached == 2).long().argmax(1)[:, None])[:, 0]
        found = torch.tensor([pairs[pair] for pair in zip(first.tolist(), second.tolist(), strict=True)])
        assert chi_square(found, len(pairs)) < chi_square_limit(len(pairs))


def test_without_a_shuffle_what_is_revealed_is_not_uniform(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shuffling, "permutation", lambda keys: torch.arange(keys.shape[-1]).expand(keys.shape[1:]))
    marks = torch.zeros(500, 6, dtype=torch.int64)
    marks[:, 1] = marks[:, 2] = 1

    async def gate(c: Context, s: Shared) -> list[Shared]:
        return await compaction.compact(c, s, [s], 2, "shuffle")

    (mark, _), _ = run(gate, [(marks, 8)]).revealed[0]
    assert chi_square(mark.nonzero()[:, -1], 6) > 1000


def test_the_cheaper_method_is_taken() -> None:
    c = Context(CountingTape(), None, 2)
    for columns, k in itertools.product((1, 4, 64, 1000), (2, 30, 50)):
        s, a = Shared(c.blank((64,)), 8, 0), Masked(c.blank((64, columns)), c.blank((64, columns)), 40, 0)
        sent = {
            method: max(cost.bytes_sent for cost in compaction.predict(2, s, [a], k, method))
            for method in compaction.METHODS
        }
        assert sent[compaction.cheapest(2, s, [a], k)] == min(sent.values())
    assert compaction.cheapest(2, s, [Masked(c.blank((64, 1)), c.blank((64, 1)), 40, 0)], 50) == "shuffle"
    assert compaction.cheapest(2, s, [Masked(c.blank((64, 1000)), c.blank((64, 1000)), 40, 0)], 50) == "matrix"


@pytest.mark.parametrize(
    ("marks", "method", "words"),
    [([1, 1, 1, 0], "shuffle", "exactly the 2 ones"), ([0, 2, 1, 1], "shuffle", "other than 0 and 1")],
)
def test_a_broken_indicator_is_refused(marks: list[int], method: compaction.Method, words: str) -> None:
    async def gate(c: Context, s: Shared) -> list[Shared]:
        return await compaction.compact(c, s, [s], 2, method)

    with pytest.raises(RangeError, match=words):
        run(gate, [(torch.tensor(marks), 8)])


def test_bad_arguments_of_compaction_are_named() -> None:
    c = Context(CountingTape(), None, 2)
    s, a = Shared(c.blank((3, 8)), 8, 0), Shared(c.blank((3, 8, 2)), 8, 0)

    def attempt(marks: Shared, tensor: Shared, k: int, method: str | None = None) -> None:
        Scheduler(c.flush).run(compaction.compact(c, marks, [tensor], k, method))  # type: ignore[arg-type]

    with pytest.raises(RangeError, match="9 of 8 values cannot be selected"):
        attempt(s, a, 9)
    with pytest.raises(RangeError, match=r"need an indicator modulo 2\^3, got 2\^2"):
        attempt(s.to_ring(2), a, 5)
    with pytest.raises(RangeError, match=r"shapes \[3, 8\] and \[3, 7, 2\] differ"):
        attempt(s, Shared(c.blank((3, 7, 2)), 8, 0), 5)
    with pytest.raises(RangeError, match="method 'sort' is unknown"):
        attempt(s, a, 5, "sort")
