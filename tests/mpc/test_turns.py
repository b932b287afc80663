"""Turns of threads that compute: one at a time, in order, and nobody waits for long."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch

from mpc import ring
from mpc.in_step import StepGroup, StepMember
from mpc.pieced_matrix import PiecedMatrix
from mpc.turns import Turns, leave, waiting
from tests.mpc.memory_trunk import memory_trunks
from tests.mpc.test_in_step import ROUNDS, running

LONG = 30.0  # longer than any test


def run(*works: Callable[[], None]) -> None:
    """Run works in threads of their own and wait for them; raises what one of them has raised."""
    with ThreadPoolExecutor(len(works)) as threads:
        for found in [threads.submit(work) for work in works]:
            found.result(LONG)


@contextmanager
def computing(turns: Turns) -> Iterator[None]:
    """Take turns in here, as a session does while it decodes."""
    owner = object()
    turns.take(owner)
    try:
        yield
    finally:
        leave()
        turns.give(owner)


class Crowd:
    """Counts how many compute at a time."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.inside, self.most = 0, 0
        self.order: list[str] = []
        self._lock = threading.Lock()

    def compute(self, name: str, seconds: float = 0.002) -> None:
        """Compute for a while."""
        with self._lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
            self.order.append(name)
        time.sleep(seconds)  # without the interpreter, as a large product is
        with self._lock:
            self.inside -= 1


def test_one_computes_at_a_time_and_all_get_their_turn() -> None:
    crowd = Crowd(Turns(patience=LONG))

    def work(name: str) -> Callable[[], None]:
        def rounds() -> None:
            with computing(crowd.turns):
                for _ in range(10):
                    crowd.compute(name)
                    with waiting():
                        time.sleep(0.001)

        return rounds

    run(*(work(name) for name in "abcd"))
    assert crowd.most == 1
    assert sorted(crowd.order) == sorted("abcd" * 10)
    assert not crowd.turns.held


@pytest.mark.parametrize("pieces", [False, True])
@pytest.mark.parametrize("large", [False, True])
def test_a_large_product_of_a_row_is_made_beside_others(large: bool, pieces: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    turns, held, real = Turns(patience=LONG), list[bool](), ring._dots
    matrix = torch.arange(3 * 1500).reshape(3, 1500).t()
    kept = PiecedMatrix.empty(matrix.shape, matrix.dtype)
    kept[:] = matrix
    row = torch.ones(1, 1500, dtype=torch.int64)
    monkeypatch.setattr(ring, "_ASIDE", matrix.numel() + int(not large))  # a piece alone is not large
    monkeypatch.setattr(ring, "_dots", lambda *given: (held.append(turns.held), real(*given))[1])
    with computing(turns):
        found = ring.matmul(row, kept if pieces else matrix)
        assert turns.held
    assert found.tolist() == [[sum(column) for column in matrix.t().tolist()]]
    assert held == [not large] * (2 if pieces else 1)


def test_others_compute_while_one_waits() -> None:
    turns, began, done = Turns(patience=LONG), threading.Event(), threading.Event()

    def waits() -> None:
        with computing(turns):
            began.set()
            with waiting():
                assert done.wait(LONG / 3)
            assert turns.held

    def computes() -> None:
        began.wait(LONG)
        with computing(turns):
            done.set()

    run(waits, computes)
    assert done.is_set()


def test_turns_are_given_in_the_order_of_asking() -> None:
    crowd, ready = Crowd(Turns(patience=LONG)), threading.Semaphore(0)

    def work(name: str) -> Callable[[], None]:
        def compute() -> None:
            with computing(crowd.turns):
                crowd.compute(name)

        return compute

    def first() -> None:
        with computing(crowd.turns):
            for name in "abc":
                threads.append(threading.Thread(target=work(name)))
                threads[-1].start()
                while len(crowd.turns._queue) < len(threads):
                    time.sleep(0.001)
            ready.release()

    threads: list[threading.Thread] = []
    run(first)
    ready.acquire()
    for thread in threads:
        thread.join(LONG)
    assert crowd.order == ["a", "b", "c"]


def test_who_keeps_its_turn_holds_nobody_up() -> None:
    turns, done, waited = Turns(patience=0.05), threading.Event(), []

    def keeps() -> None:
        with computing(turns):
            began.set()
            assert done.wait(LONG)  # a wait that gives nothing back
            assert not turns.held
        assert turns.held is False

    def goes_on() -> None:
        began.wait(LONG)
        start = time.monotonic()
        with computing(turns):
            waited.append(time.monotonic() - start)
            assert turns.held
            done.set()

    began = threading.Event()
    run(keeps, goes_on)
    assert 0.04 < waited[0] < 5.0


def test_who_lost_its_turn_does_not_end_another_ones() -> None:
    turns, first, second = Turns(patience=0.01), threading.Event(), threading.Event()
    held = []

    def slow() -> None:
        with computing(turns):
            first.set()
            second.wait(LONG)
        held.append("slow is done")
        third.set()

    def quick() -> None:
        first.wait(LONG)
        with computing(turns):
            second.set()
            third.wait(LONG)
            held.append("mine" if turns.held else "lost")

    third = threading.Event()
    run(slow, quick)
    assert held == ["slow is done", "mine"]


def test_an_error_gives_the_turn_back() -> None:
    turns = Turns(patience=LONG)
    with pytest.raises(ValueError, match="wrong"), computing(turns):
        raise ValueError("wrong")
    assert not turns.held
    with pytest.raises(ValueError, match="away"), computing(turns), waiting():
        raise ValueError("away")
    assert not turns.held
    assert turns.free


def test_a_thread_that_takes_no_turns_waits_for_none() -> None:
    turns = Turns(patience=LONG)

    def outside() -> None:
        with waiting():
            pass
        assert not turns.held

    with computing(turns):
        run(outside)
        assert turns.held


def test_a_thread_has_one_turn_however_often_it_takes_it() -> None:
    turns = Turns(patience=LONG)
    with computing(turns):
        with waiting(), waiting():
            assert not turns.held
        assert turns.held
    assert turns.free


def test_threads_of_one_owner_hand_their_turn_on() -> None:
    turns, owner, other = Turns(patience=LONG), object(), object()
    turns.take(owner)
    leave()
    assert not turns.held
    start = time.monotonic()
    run(lambda: turns.take(owner))  # waits for nobody
    assert time.monotonic() - start < LONG / 2
    taken = threading.Thread(target=lambda: turns.take(other))
    taken.start()
    taken.join(0.05)
    assert taken.is_alive()
    turns.give(object())  # not its own
    taken.join(0.05)
    assert taken.is_alive()
    turns.give(owner)
    taken.join(LONG)
    assert not taken.is_alive()


def test_a_group_has_one_turn_of_the_process_between_its_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = Turns(patience=60.0)
    monkeypatch.setattr("mpc.in_step.SESSIONS", turns)
    seen: list[tuple[int, bool]] = []

    def program(member: StepMember, party: int) -> None:
        for _ in range(ROUNDS):
            seen.append((party, turns.held))
            member.exchange({1 - party: b"x"}, {1 - party: 1})
        with member.away():
            seen.append((party, not turns.held))

    with running(2) as found:
        for number in range(3):
            found.session(number, program)
        found.start()
    assert len(seen) == 2 * 3 * (ROUNDS + 1)
    assert all(held for _, held in seen)
    assert turns.free  # both groups have given theirs back


def test_a_session_that_has_left_its_group_takes_no_turn_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = Turns(patience=LONG)
    monkeypatch.setattr("mpc.in_step.SESSIONS", turns)
    group = StepGroup(memory_trunks(2)[0], LONG)
    member = group.join(1, lambda: None)
    member.enter()
    assert turns.held
    member.leave()
    with waiting():  # such as for its peers to know how it ended
        pass
    assert turns.free
