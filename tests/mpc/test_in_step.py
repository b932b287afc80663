"""Sessions in step: rounds are shared, sections reach their session alone, and whoever is late or gone holds nobody up."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest

from mpc.errors import MpcacheError, PeerLost, PeerSilent, WireError
from mpc.in_step import StepGroup, StepMember
from mpc.step_messages import HEADER, SECTION, overhead
from tests.mpc.memory_trunk import MemoryTrunk, memory_trunks

ROUNDS = 5


def nothing() -> None:
    """A session without an error."""


class Parties:
    """Groups of all parties, each with a thread that makes rounds; errors: how those ended."""

    def __init__(self, parties: int, patience: float = 20.0) -> None:
        self.trunks: list[MemoryTrunk] = memory_trunks(parties)
        self.groups = [StepGroup(trunk, patience) for trunk in self.trunks]
        self.errors: list[MpcacheError | None] = [None] * parties
        self._threads: list[threading.Thread] = []
        self._results: dict[tuple[int, int], Any] = {}

    def start(self) -> None:
        """Let the groups make rounds."""
        for party in range(len(self.groups)):
            self._run(partial(self._make_rounds, party))

    def session(self, number: int, program: Callable[[StepMember, int], Any]) -> None:
        """Run a program as session `number` at all parties."""
        members = [group.join(number, nothing) for group in self.groups]  # before anybody sends anything of it
        for party, member in enumerate(members):
            self._run(partial(self._session, number, member, party, program))

    def results(self, number: int) -> list[Any]:
        """Return what the program of a session gave at each party."""
        return [self._results[number, party] for party in range(len(self.groups))]

    def join(self) -> None:
        """Wait for everything to end."""
        for group in self.groups:
            group.close()
        for thread in self._threads:
            thread.join(20)
            assert not thread.is_alive()

    def _run(self, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=target, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _make_rounds(self, party: int) -> None:
        try:
            self.groups[party].run()
        except MpcacheError as error:
            self.errors[party] = error
            self.groups[party].end(error)

    def _session(self, number: int, member: StepMember, party: int, program: Callable[[StepMember, int], Any]) -> None:
        try:
            member.enter()
            self._results[number, party] = program(member, party)
        except MpcacheError as error:
            self._results[number, party] = error
        finally:
            member.leave()


@contextmanager
def running(parties: int, patience: float = 20.0) -> Iterator[Parties]:
    """Yield parties that make rounds from the first session on."""
    found = Parties(parties, patience)
    yield found
    found.join()


def sums(number: int, parties: int, rounds: int = ROUNDS) -> Callable[[StepMember, int], list[int]]:
    """Return a program that adds up, in each round, one byte of every party."""

    def program(member: StepMember, party: int) -> list[int]:
        out = []
        for step in range(rounds):
            own = bytes([10 * number + party + step])
            peers = [i for i in range(parties) if i != party]
            received = member.exchange({peer: own for peer in peers}, {peer: 1 for peer in peers})
            out.append(own[0] + sum(payload[0] for payload in received.values()))
        return out

    return program


def expected(number: int, parties: int, rounds: int = ROUNDS) -> list[int]:
    return [sum(10 * number + party + step for party in range(parties)) for step in range(rounds)]


@pytest.mark.parametrize("parties", [2, 3])
def test_sessions_that_begin_together_share_every_message(parties: int) -> None:
    with running(parties) as found:
        for number in range(4):
            found.session(number, sums(number, parties))
        wait_until(lambda: all(group.all_posted(4) for group in map(View, found.groups)))
        found.start()
    for number in range(4):
        assert found.results(number) == [expected(number, parties)] * parties
    for group, trunk in zip(found.groups, found.trunks, strict=True):
        assert (group.costs.rounds, group.costs.sections) == (ROUNDS, 4 * ROUNDS)
        assert group.costs.overhead_bytes == ROUNDS * overhead(4) * (parties - 1)
        sent = sum(len(message) for messages in trunk.sent.values() for message in messages)
        assert sent == group.costs.overhead_bytes + 4 * ROUNDS * (parties - 1)


class View:
    """What a test may look at."""

    def __init__(self, group: StepGroup) -> None:
        self._group = group

    def all_posted(self, members: int) -> bool:
        """Whether so many members wait to send."""
        with self._group.lock:
            return sum(self._group._is_posted(number) for number in self._group._members) == members


def wait_until(ready: Callable[[], bool]) -> None:
    """Wait until ready(), 10 s at most."""
    for _ in range(10_000):
        if ready():
            return
        threading.Event().wait(0.001)
    raise AssertionError("it never happened")


@pytest.mark.parametrize("parties", [2, 3])
def test_a_session_joins_and_leaves_while_others_run(parties: int) -> None:
    started = threading.Barrier(parties + 1)

    def long(member: StepMember, party: int) -> list[int]:
        first = sums(1, parties, 3)(member, party)
        with member.away():
            started.wait(10)
        return first + sums(1, parties, 20)(member, party)

    with running(parties) as found:
        found.start()
        found.session(1, long)
        started.wait(10)
        found.session(2, sums(2, parties, 4))
    assert found.results(1) == [expected(1, parties, 3) + expected(1, parties, 20)] * parties
    assert found.results(2) == [expected(2, parties, 4)] * parties


def test_a_session_that_waits_for_its_client_at_one_party_holds_nobody_up() -> None:
    released = threading.Event()

    def waits(member: StepMember, party: int) -> list[int]:
        if party == 1:
            with member.away():
                assert released.wait(10)
        return sums(1, 2)(member, party)

    def goes_on(member: StepMember, party: int) -> list[int]:
        out = sums(2, 2, 30)(member, party)
        released.set()
        return out

    with running(2) as found:
        found.session(1, waits)
        found.session(2, goes_on)
        found.start()
    assert found.results(1) == [expected(1, 2)] * 2
    assert found.results(2) == [expected(2, 2, 30)] * 2


def token_by_token(number: int, prompt: int, tokens: int) -> Callable[[StepMember, int], list[int]]:
    """Return a program of a prompt of so many rounds and of tokens of five: the group's round when each token begins."""

    def program(member: StepMember, party: int) -> list[int]:
        sums(number, 2, prompt)(member, party)
        begun = []
        for _ in range(tokens):
            member.align()
            begun.append(member._group.costs.rounds)
            assert sums(number, 2)(member, party) == expected(number, 2)
        return begun

    return program


def test_sessions_begin_their_tokens_together() -> None:
    with running(2) as found:
        found.session(1, token_by_token(1, 1, 5))
        found.session(2, token_by_token(2, 4, 4))
        found.session(3, token_by_token(3, 12, 2))
        wait_until(lambda: all(group.all_posted(3) for group in map(View, found.groups)))
        found.start()
    assert found.results(1) == [[1, 6, 11, 16, 21]] * 2
    assert found.results(2) == [[6, 11, 16, 21]] * 2
    assert found.results(3) == [[16, 21]] * 2


def test_who_is_late_or_gone_within_a_token_holds_no_other_token_up() -> None:
    released = threading.Event()

    def late(member: StepMember, party: int) -> list[int]:
        member.align()
        sums(1, 2, 2)(member, party)
        if party == 1:
            with member.away():
                assert released.wait(10)
        return sums(1, 2)(member, party)

    def fails(member: StepMember, party: int) -> list[int]:
        member.align()
        sums(3, 2, 3)(member, party)
        raise WireError("gone")

    def goes_on(member: StepMember, party: int) -> list[int]:
        found = token_by_token(2, 2, 6)(member, party)
        released.set()
        return found

    with running(2) as found:
        found.session(1, late)
        found.session(2, goes_on)
        found.session(3, fails)
        found.start()
    assert found.results(1) == [expected(1, 2)] * 2
    assert [len(begun) for begun in found.results(2)] == [6, 6]
    assert [str(error) for error in found.results(3)] == ["gone"] * 2


def test_messages_that_only_some_parties_send_stay_in_step() -> None:
    def routed(member: StepMember, party: int) -> list[bytes]:
        got: list[bytes] = []
        for step in range(3):
            sender = step % 3
            outgoing = {(sender + 1) % 3: bytes([step])} if party == sender else {}
            incoming = {sender: 1} if party == (sender + 1) % 3 else {}
            got += member.exchange(outgoing, incoming).values()
        return got

    with running(3) as found:
        found.session(1, routed)
        found.session(2, sums(2, 3))
        found.start()
    assert found.results(1) == [[b"\x02"], [b"\x00"], [b"\x01"]]
    assert found.results(2) == [expected(2, 3)] * 3


def test_a_session_that_fails_at_one_party_harms_no_other() -> None:
    class Vanished(MpcacheError):
        """The client's end."""

    def fails(member: StepMember, party: int) -> list[int]:
        sums(1, 2, 2)(member, party)
        if party == 0:
            raise Vanished("the client vanished")
        return sums(1, 2)(member, party)

    with running(2, patience=0.5) as found:
        found.session(1, fails)
        found.session(2, sums(2, 2, 40))
        found.start()
    assert isinstance(found.results(1)[0], Vanished)
    assert isinstance(found.results(1)[1], PeerSilent)
    assert "party0" in str(found.results(1)[1])
    assert found.results(2) == [expected(2, 2, 40)] * 2
    assert found.errors == [None, None]


def test_a_session_that_fails_while_it_waits_is_roused() -> None:
    errors: list[MpcacheError] = []

    def check() -> None:
        if errors:
            raise errors[0]

    trunk = memory_trunks(2)[0]
    group = StepGroup(trunk, 60)
    member = group.join(7, check)
    member.enter()

    def lose() -> None:
        errors.append(PeerLost("client", "tokens", "left"))
        member.rouse()

    threading.Timer(0.1, lose).start()
    with pytest.raises(PeerLost, match="client"):
        member.exchange({1: b"x"}, {1: 1})
    member.leave()
    member.leave()


@pytest.mark.parametrize("parties", [2, 3])
def test_a_lost_peer_ends_the_group_with_its_name(parties: int) -> None:
    arrived = threading.Barrier(2 * parties)  # of both sessions: nothing is lost of what they exchanged before

    def cut(member: StepMember, party: int) -> list[int]:
        first = sums(1, parties, 3)(member, party)
        with member.away():
            arrived.wait(10)
        if party == parties - 1:
            with member.away():
                threading.Event().wait(0.2)
            return first
        if party == 0:
            found.trunks[0].cut(parties - 1)
        return sums(1, parties)(member, party)

    with running(parties) as found:
        found.session(1, cut)
        found.session(2, cut)
        found.start()
        wait_until(lambda: found.errors[0] is not None)
        for trunk in found.trunks[1:]:
            trunk.cut(0)
    name = f"party{parties - 1}"
    for number in (1, 2):
        assert isinstance(found.results(number)[0], PeerLost)
        assert name in str(found.results(number)[0])
    assert isinstance(found.errors[0], PeerLost)


def test_a_peer_that_ends_while_a_session_waits_for_it_is_lost() -> None:
    with running(2) as found:
        found.session(1, lambda member, party: member.exchange({1: b"x"}, {1: 1}) if party == 0 else found.trunks[1].end())
        found.start()
    assert isinstance(found.results(1)[0], PeerLost)
    assert "party1: left the sessions in step early" in str(found.results(1)[0])


def bad(message: bytes) -> str:
    """Return the error with which a group ends that receives this as its first message."""
    trunks = memory_trunks(2)
    group = StepGroup(trunks[0], 60)
    group.join(1, nothing)
    trunks[1].send(0, message)
    with pytest.raises(WireError) as error:
        group.run()
    return str(error.value)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (b"abc", "3 bytes where a message"),
        (HEADER.pack(1, 0), "round 1 of 0 sections where round 0"),
        (HEADER.pack(0, 9), "round 0 of 9 sections"),
        (HEADER.pack(0, 1) + SECTION.pack(1, 0, 5) + b"1234", "sections take more"),
        (HEADER.pack(0, 1) + SECTION.pack(1, 0, 2) + b"1234", "sections take 22"),
    ],
)
def test_a_malformed_message_ends_the_group(message: bytes, words: str) -> None:
    assert words in bad(message)


@pytest.mark.parametrize(("exchange", "payload"), [(0, b"12"), (1, b"1")])
def test_a_section_of_another_size_or_exchange_ends_its_session_alone(exchange: int, payload: bytes) -> None:
    def wrong(member: StepMember, party: int) -> object:
        if party == 0:
            return member.exchange({1: b"1"}, {1: 1})
        member.posted = type(member.posted)(exchange - 1)
        return member.exchange({0: payload}, {0: 1})

    with running(2, patience=1.0) as found:
        found.session(1, wrong)
        found.session(2, sums(2, 2))
        found.start()
    assert isinstance(found.results(1)[0], WireError)
    assert "party1" in str(found.results(1)[0])
    assert found.results(2) == [expected(2, 2)] * 2


def test_a_number_is_given_to_one_session_alone() -> None:
    """Two members of one number would take each other's sections; the second one is refused, and the first goes on."""
    with running(2) as parties:
        parties.session(7, lambda member, party: member.exchange({1 - party: b"ab"}, {1 - party: 2}))
        parties.start()
        for group in parties.groups:
            with pytest.raises(WireError, match="number 7, which another one has"):
                group.join(7, nothing)
    assert parties.results(7) == [{1: b"ab"}, {0: b"ab"}]
