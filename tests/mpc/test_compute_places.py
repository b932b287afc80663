"""Groups of sessions in step that share a process compute one after the other, and never wait for each other for long."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from mpc import compute_places
from mpc.compute_places import ComputePhase, ComputePlaces
from mpc.errors import WireError
from mpc.in_step import StepMember
from tests.mpc.test_in_step import Parties

ROUNDS, COMPUTES = 6, 0.01


class Watched:
    """Programs that note how many of a party's groups compute at the same time."""

    def __init__(self, parties: int) -> None:
        self.most = [0] * parties
        self._now: list[set[int]] = [set() for _ in range(parties)]
        self._lock = threading.Lock()

    def program(self, group: int, computes: float = COMPUTES) -> Callable[[StepMember, int], list[int]]:
        """Return a program of a session of this group: it computes, then sends a byte and adds what came."""

        def run(member: StepMember, party: int) -> list[int]:
            found = []
            for step in range(ROUNDS):
                with self._lock:
                    self._now[party].add(group)
                    self.most[party] = max(self.most[party], len(self._now[party]))
                time.sleep(computes)
                with self._lock:
                    self._now[party].discard(group)
                other = 1 - party
                received = member.exchange({other: bytes([group + step])}, {other: 1})
                found.append(group + step + received[other][0])
            return found

        return run


def started(places: list[ComputePlaces], groups: int) -> list[Parties]:
    found = [Parties(2, places=places) for _ in range(groups)]
    for parties in found:
        parties.start()
    return found


@pytest.mark.parametrize(("count", "most"), [(1, 1), (2, 2)])
def test_so_many_groups_compute_at_a_time(count: int, most: int) -> None:
    """Three groups of two sessions; within a group one session computes at a time as before."""
    watched, groups = Watched(2), started([ComputePlaces(count), ComputePlaces(count)], 3)
    for n, parties in enumerate(groups):
        for session in (1, 2):
            parties.session(session, watched.program(n))
    for parties in groups:
        parties.join()
    assert watched.most == [most, most]
    for n, parties in enumerate(groups):
        for session in (1, 2):
            assert parties.results(session) == [[2 * (n + step) for step in range(ROUNDS)]] * 2


def test_a_group_that_computes_long_does_not_hold_others_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute_places, "PATIENCE_SECONDS", 0.05)
    watched, groups = Watched(2), started([ComputePlaces(1), ComputePlaces(1)], 2)
    groups[0].session(1, watched.program(0, computes=0.5))
    time.sleep(0.1)
    began = time.monotonic()
    groups[1].session(1, watched.program(1, computes=0.0))
    groups[1].join()
    assert time.monotonic() - began < 0.5 * ROUNDS - 0.5
    groups[0].join()
    assert watched.most == [2, 2]


def test_a_session_that_fails_gives_its_place_back() -> None:
    """The other group takes it up at once."""
    places = [ComputePlaces(1), ComputePlaces(1)]

    def failing(member: StepMember, party: int) -> None:
        raise WireError("broken on purpose")

    groups = started(places, 1)
    groups[0].session(1, failing)
    groups[0].join()
    assert [str(one) for one in groups[0].results(1)] == ["broken on purpose"] * 2
    for place in places:
        began = time.monotonic()
        assert place.take()
        assert time.monotonic() - began < 0.1


def test_a_phase_takes_one_place_and_gives_it_back_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute_places, "PATIENCE_SECONDS", 0.01)
    places = ComputePlaces(1)
    first, second = ComputePhase(places), ComputePhase(places)
    first.begin()
    second.begin()
    assert (first.begun, second.begun) == (True, True)
    second.end()
    assert not places.take()
    first.end()
    first.end()
    assert places.take()
    assert not places.take()
