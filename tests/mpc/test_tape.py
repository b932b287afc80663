"""The tape: sharing, headers, refusal of another program's randomness."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mpc.errors import TapeError
from mpc.ledger import operation
from mpc.random import new_seed
from mpc.ring import reduce
from mpc.tape import HEADER_BYTES, CountingTape, DealerTape, PartyTape, Tape, chunks

Program = Callable[[Tape], list[Tensor]]


def _deal(
    parties: int, program: Program, seeds: list[bytes] | None = None
) -> tuple[list[PartyTape], list[Tensor], list[bytes]]:
    seeds = seeds or [new_seed() for _ in range(parties)]
    pieces: list[list[bytes]] = [[] for _ in range(parties)]
    dealt = program(DealerTape(seeds, lambda i, piece: pieces[i].append(piece)))
    tapes = [PartyTape(seeds[i], i == parties - 1, chunks(iter(pieces[i]))) for i in range(parties)]
    return tapes, dealt, [b"".join(p) for p in pieces]


def _program(tape: Tape) -> list[Tensor]:
    a = tape.random("a", (3, 2))
    b = tape.random("b", (5,), bits=7, kind="xor")
    c = tape.dependent("c", (3, 2), lambda: a * a)
    d = tape.dependent("d", (5,), lambda: b & 1, bits=1, kind="xor")
    return [a, b, c, d]


@pytest.mark.parametrize("parties", [2, 3, 4])
def test_shares_add_up(parties: int) -> None:
    tapes, dealt, streams = _deal(parties, _program)
    shares = [_program(tape) for tape in tapes]
    for i, xor in enumerate([False, True, False, True]):
        total = shares[0][i]
        for other in shares[1:]:
            total = total ^ other[i] if xor else total + other[i]
        assert torch.equal(total, dealt[i])
    assert torch.equal(dealt[2], dealt[0] * dealt[0])
    assert torch.equal(dealt[3], dealt[1] & 1)
    assert [len(s) for s in streams] == [4 * HEADER_BYTES] * (parties - 1) + [4 * HEADER_BYTES + 48 + 1]


@pytest.mark.parametrize("parties", [2, 3])
def test_dealer_may_learn_the_shares(parties: int) -> None:
    seeds = [new_seed() for _ in range(parties)]
    known: list[list[Tensor]] = []

    def program(tape: Tape) -> list[Tensor]:
        known.append(tape.random_shares("r", (4,)))
        return []

    tapes, _, _ = _deal(parties, program, seeds)
    for i, tape in enumerate(tapes):
        (mine,) = tape.random_shares("r", (4,))
        assert torch.equal(mine, known[0][i])


def test_offline_bytes_are_booked() -> None:
    tapes, _, _ = _deal(2, _program)
    for tape, expected in zip(tapes, (64, 64 + 49), strict=True):
        with operation("x"):
            _program(tape)
        assert tape.ledger.by_operation()["x"].offline_bytes == expected
    shapes = CountingTape()
    assert [x.shape for x in _program(shapes)] == [(3, 2), (5,), (3, 2), (5,)]
    assert shapes.ledger.total().offline_bytes == 64 + 49


@pytest.mark.parametrize(
    ("take", "words"),
    [
        (lambda t: t.random("other", (3, 2)), "'other random sum Z_2"),
        (lambda t: t.random("a", (2, 3)), r"\[2, 3\]"),
        (lambda t: t.random("a", (3, 2), bits=63), r"Z_2\^63"),
        (lambda t: t.random("a", (3, 2), kind="xor"), "xor"),
        (lambda t: t.dependent("a", (3, 2), None), "dependent"),
    ],
)
def test_another_program_is_refused(take: Callable[[Tape], Tensor], words: str) -> None:
    for tape in _deal(2, _program)[0]:
        with pytest.raises(TapeError, match=f"tape entry 0: .*{words}"):
            take(tape)


def test_an_entry_cannot_be_taken_twice() -> None:
    tape = _deal(2, _program)[0][0]
    tape.random("a", (3, 2))
    with pytest.raises(TapeError, match="tape entry 1"):
        tape.random("a", (3, 2))


def test_truncated_tape() -> None:
    seeds = [new_seed(), new_seed()]
    _, _, streams = _deal(2, _program, seeds)
    tape = PartyTape(seeds[1], True, chunks(iter([streams[1][:-1]])))
    with pytest.raises(TapeError, match="ended before the program did"):
        _program(tape)


def test_an_entry_that_promises_another_size_is_refused() -> None:
    seeds = [new_seed(), new_seed()]
    _, _, streams = _deal(2, _program, seeds)
    for party, stream in enumerate(streams):
        wrong = stream[: HEADER_BYTES - 8] + (7).to_bytes(8, "little") + stream[HEADER_BYTES:]
        tape = PartyTape(seeds[party], party == 1, chunks(iter([wrong])))
        with pytest.raises(TapeError, match=r"tape entry 0: .*\(7 bytes\)"):
            _program(tape)


def test_entries_of_the_same_kind_in_another_order_are_refused() -> None:
    def twice(tape: Tape) -> list[Tensor]:
        return [tape.dependent("c", (4,), lambda n=n: torch.full((4,), n), bits=8) for n in range(2)]  # type: ignore[misc]

    seeds = [new_seed(), new_seed()]
    _, _, streams = _deal(2, twice, seeds)
    entry = HEADER_BYTES + 4
    tape = PartyTape(seeds[1], True, chunks(iter([streams[1][entry:] + streams[1][:entry]])))
    with pytest.raises(TapeError, match="tape entry 0"):
        twice(tape)


def test_dealer_checks_what_it_deals() -> None:
    tape = DealerTape([new_seed(), new_seed()], lambda i, piece: None)
    with pytest.raises(TapeError, match=r"c: the dealer computed shape \[3\], declared \[4\]"):
        tape.dependent("c", (4,), lambda: torch.zeros(3, dtype=torch.int64))


def test_a_party_without_the_others_seeds_sees_uniform_values() -> None:
    def constant(tape: Tape) -> list[Tensor]:
        return [tape.dependent("c", (40_000,), lambda: torch.full((40_000,), 12345), bits=4)]

    for tape in _deal(2, constant)[0]:
        counts = torch.bincount(reduce(constant(tape)[0], 4), minlength=16).double()
        assert float(((counts - 2500) ** 2 / 2500).sum()) < 60


@pytest.mark.parametrize("parties", [2, 3])
def test_a_common_value_reaches_every_party(parties: int) -> None:
    def program(tape: Tape) -> list[Tensor]:
        return [tape.random("a", (2,)), tape.common("key", (3, 2), lambda: torch.arange(6).reshape(3, 2), 5)]

    tapes, dealt, streams = _deal(parties, program)
    for tape, stream in zip(tapes, streams, strict=True):
        assert torch.equal(program(tape)[1], dealt[1])
        assert len(stream) == 2 * HEADER_BYTES + 4 == tape.ledger.total().offline_bytes
    counting = CountingTape()
    assert program(counting)[1].shape == (3, 2)
    assert counting.ledger.total().offline_bytes == 2 * HEADER_BYTES + 4
    tapes, _, _ = _deal(2, lambda tape: [tape.common("key", (3,), lambda: torch.zeros(3, dtype=torch.int64), 5)])
    with pytest.raises(TapeError, match="'key dependent sum"):
        tapes[0].dependent("key", (3,), None, 5)
    with pytest.raises(TapeError, match="declared"):
        _deal(2, lambda tape: [tape.common("key", (4,), lambda: torch.zeros(3, dtype=torch.int64))])
