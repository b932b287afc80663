"""Preprocessing: what is prepared is what a direct pass gets, bit for bit and byte for byte; nothing else is handed out."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from launch.local import in_process
from launch.local.in_process import run_in_process
from launch.measure.bench.inputs import BenchInputs
from launch.measure.bench.plan import BenchPlan
from launch.measure.bench.run import counts
from launch.measure.bench.sources import SharedInputs
from launch.measure.bench.worker import Segmented, preparation
from models.costs.program import NoInputs
from models.shapes import SHAPES, with_layers
from mpc.errors import TapeError
from mpc.ledger import Ledger, operation
from mpc.preprocessing import PrecomputedTape, PrecomputedValues, PreprocessingTape, Stopped
from mpc.random import new_seed
from mpc.tape import DealerTape, PartyTape, Tape, chunks
from protocols.suite import OutputShare

LIMIT = 1 << 12
Program = Callable[[Tape], list[Tensor]]


def program(tape: Tape) -> list[Tensor]:
    """One entry of every kind."""
    a = tape.random("a", (3, 2))
    (b,) = tape.random_shares("b", (4,), 9)[:1]
    with operation("tables"):
        c = tape.dependent("c", (5,), lambda: torch.ones(5, dtype=torch.int64), 64, "xor")
        d = tape.table("d", (2, 8), lambda: torch.arange(16).reshape(2, 8), 5)
    e = tape.common("e", (3,), lambda: torch.arange(3), 7)
    return [a, b, c, d, e, tape.precompute("f", (3, 2), lambda: a * 3)]


def tapes(parties: int, seeds: list[bytes]) -> list[PartyTape]:
    pieces: list[list[bytes]] = [[] for _ in range(parties)]
    program(DealerTape(seeds, lambda i, piece: pieces[i].append(piece)))
    return [PartyTape(seeds[i], i == parties - 1, chunks(iter(pieces[i]))) for i in range(parties)]


@pytest.mark.parametrize("parties", [2, 3])
def test_prepared_entries_are_the_direct_ones(parties: int) -> None:
    seeds = [new_seed() for _ in range(parties)]
    for direct, other in zip(tapes(parties, seeds), tapes(parties, seeds), strict=True):
        expected = program(direct)
        store = PrecomputedValues()
        seen = program(PreprocessingTape(other, store))
        assert store.waiting_bytes == sum(x.numel() * x.element_size() for x in expected)
        prepared = PrecomputedTape(store, Ledger())
        for found, value, wanted in zip(program(prepared), seen, expected, strict=True):
            assert found.dtype == wanted.dtype
            assert torch.equal(found, wanted)
            assert torch.equal(value, wanted)
        assert (len(store), store.waiting_bytes) == (0, 0)
        assert prepared.ledger.costs == direct.ledger.costs
        assert other.ledger.costs == {}
        assert prepared.position == direct.position + 1  # `ahead` is no entry of the tape


def test_narrow_tables_are_congruent() -> None:
    seeds = [new_seed(), new_seed()]
    total = sum(program(tape)[3].to(torch.int64) for tape in tapes(2, seeds))
    assert torch.equal(total & 31, torch.arange(16).reshape(2, 8))
    assert program(tapes(2, seeds)[1])[3].dtype == torch.int8


@pytest.mark.parametrize(
    ("take", "words"),
    [
        (lambda t: t.random("other", (3, 2)), "needs 'other'"),
        (lambda t: t.random("a", (2, 3)), r"shape \[2, 3\]"),
        (lambda t: t.random("a", (3, 2), 63), "63"),
        (lambda t: t.random("a", (3, 2), 64, "xor"), "xor"),
        (lambda t: t.dependent("a", (3, 2), None), "dependent"),
        (lambda t: t.table("a", (3, 2), None), "table"),
        (lambda t: t.common("a", (3, 2), None), "common"),
        (lambda t: t.precompute("a", (3, 2), lambda: torch.zeros(3, 2)), "precomputed"),
    ],
)
def test_another_program_is_refused(take: Callable[[Tape], Any], words: str) -> None:
    store = PrecomputedValues()
    program(PreprocessingTape(tapes(2, [new_seed(), new_seed()])[1], store))
    with pytest.raises(TapeError, match=f"prepared 'a' .*{words}"):
        take(PrecomputedTape(store, Ledger()))


def test_what_was_not_prepared_is_an_error() -> None:
    store = PrecomputedValues()
    program(PreprocessingTape(tapes(2, [new_seed(), new_seed()])[0], store))
    prepared = PrecomputedTape(store, Ledger())
    program(prepared)
    with pytest.raises(TapeError, match="prepared nothing more where this party's program needs 'a'"):
        prepared.random("a", (3, 2))


def test_an_entry_of_another_dealer_program_is_refused_while_preparing() -> None:
    with pytest.raises(TapeError, match="tape entry 0"):
        PreprocessingTape(tapes(2, [new_seed(), new_seed()])[0], PrecomputedValues()).random("z", (3, 2))


def test_a_bounded_store_makes_the_preparing_pass_wait() -> None:
    store = PrecomputedValues(LIMIT)
    sizes: list[int] = []

    def prepare() -> None:
        for n in range(50):
            store.put(("x", n, (64,)), torch.full((64,), n), 1)
            sizes.append(store.waiting_bytes)
        store.finish()

    thread = threading.Thread(target=prepare)
    thread.start()
    for n in range(50):
        value, offline = store.take(("x", n, (64,)))
        assert (int(value[0]), offline) == (n, 1)
    thread.join(10)
    assert not thread.is_alive()
    assert max(sizes) <= LIMIT + 64 * 8
    with pytest.raises(TapeError, match="nothing more"):
        store.take(("x", 50, (64,)))


def test_errors_of_the_preparing_pass_come_after_what_it_prepared() -> None:
    store = PrecomputedValues(LIMIT)
    store.put(("x", 0, ()), torch.zeros(1), 0)
    store.finish(TapeError("dealt something else"))
    store.take(("x", 0, ()))
    with pytest.raises(TapeError, match="dealt something else"):
        store.take(("x", 1, ()))


def test_a_stopped_store_ends_a_waiting_pass() -> None:
    store, ended = PrecomputedValues(1), threading.Event()

    def prepare() -> None:
        try:
            for n in range(5):
                store.put(("x", n, ()), torch.zeros(4), 0)
        except Stopped:
            ended.set()

    thread = threading.Thread(target=prepare)
    thread.start()
    store.stop()
    assert ended.wait(10)
    assert len(store) <= 1
    thread.join(10)


def test_a_vain_wait_raises_the_session_error() -> None:
    def check() -> None:
        raise TapeError("the session is over")

    with pytest.raises(TapeError, match="the session is over"):
        PrecomputedValues(LIMIT, check).take(("x", 0, ()))


@pytest.mark.parametrize("parties", [2, 3])
def test_a_whole_step_is_the_same(parties: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shares of the logits, every count of every part, and nothing left over, with and without preprocessing."""
    architecture = with_layers(SHAPES["tiny"], 2)
    plan = BenchPlan(architecture=architecture.to_json(), suite="masked", cached=9, repeat=2, parties=parties)
    inputs = BenchInputs(architecture, plan.seed, parties)
    seeds = iter([new_seed() for _ in range(parties)] * 2)
    monkeypatch.setattr(in_process, "new_seed", lambda: next(seeds))

    def party(channel: Any, tape: PartyTape, ahead: bool) -> tuple[OutputShare, Ledger]:
        work = Segmented(plan, plan.make_suite(tape, channel), SharedInputs(inputs, channel.party))
        preparing, store, output = None, PrecomputedValues(), None
        with torch.inference_mode():
            for number, (_, run) in enumerate(work.segments()):
                if number == 1 and ahead:
                    preparing = preparation(work, tape, store, channel)
                if preparing is not None:
                    next(preparing)[1]()
                    assert len(store) > 0
                output = run()
                assert len(store) == 0
        assert isinstance(output, OutputShare)
        return output, channel.ledger

    def dealer(tape: DealerTape) -> None:
        with torch.inference_mode():
            for _, run in Segmented(plan, plan.make_suite(tape, None), NoInputs()).segments():
                run()

    direct, prepared = (run_in_process(parties, lambda c, t, a=a: party(c, t, a), dealer)[0] for a in (False, True))
    for (share, ledger), (other, other_ledger) in zip(direct, prepared, strict=True):
        assert torch.equal(share.share, other.share)
        assert counts(ledger, "") == counts(other_ledger, "")


def test_neither_end_sleeps_while_the_other_waits_for_it() -> None:
    """An entry at a time, each larger than the limit: both ends wait for each other all the time."""
    store = PrecomputedValues(1)
    count = 2000

    def put() -> None:
        for n in range(count):
            store.put((n,), torch.zeros(4, dtype=torch.int64), 0)
        store.finish()

    thread = threading.Thread(target=put, daemon=True)
    start = time.perf_counter()
    thread.start()
    for n in range(count):
        store.take((n,))
    thread.join(5)
    assert not thread.is_alive()
    assert time.perf_counter() - start < 5  # a lost wake-up costs a second
