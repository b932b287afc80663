"""Places for sessions by themselves: turns, limits, waiting times, and no lock-up whatever the order of arrival."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

import pytest

from mpc.errors import PeerLost
from parties.errors import Busy
from parties.server.admission import Admission, Demand, Room, Ticket
from parties.server.weight_cache import WeightCache


def places(slots: int, queued: int = 100, own: tuple[int, int] = (100, 100), seconds: float = 60) -> Admission:
    return Admission("party0", Room(slots, queued), lambda client: (min(slots, own[0]), own[1]), seconds)


def nothing() -> None:
    pass


def running(tickets: list[Ticket]) -> list[int]:
    return [i for i, ticket in enumerate(tickets) if ticket.state == "running"]


def test_turns_go_round_the_clients() -> None:
    admission = places(1)
    flood = [admission.enter("a") for _ in range(20)]
    single = admission.enter("b")
    served = 0
    while single.state != "running":
        (now,) = running(flood)
        admission.leave(flood[now])
        served += 1
    assert served <= 2
    admission.leave(single)
    assert running(flood) == [served]


def test_of_one_client_the_session_with_most_tokens_for_its_prompt_goes_first() -> None:
    admission = places(1)
    first = admission.enter("a", Demand(ratio=1.0))
    waiting = [admission.enter("a", Demand(ratio=ratio)) for ratio in (0.1, 2.0, 0.5, 2.0)]
    other = admission.enter("b", Demand(ratio=0.01))
    order = []
    now = first
    while now is not None:
        admission.leave(now)
        now = next((ticket for ticket in [*waiting, other] if ticket.state == "running"), None)
        order.append(now)
    assert order == [waiting[1], other, waiting[3], waiting[2], waiting[0], None]  # turns go round the clients all the same


def test_a_session_waits_for_memory_and_nobody_passes_it() -> None:
    admission = Admission("party0", Room(10, 10, memory=100), lambda client: (10, 10), 60)
    first, second = admission.enter("a", Demand(60)), admission.enter("b", Demand(30))
    large, small = admission.enter("a", Demand(50)), admission.enter("b", Demand(1))
    assert [ticket.state for ticket in (first, second, large, small)] == ["running", "running", "waiting", "waiting"]
    admission.leave(second)
    assert (large.state, small.state) == ("waiting", "waiting")
    admission.leave(first)
    assert (large.state, small.state) == ("running", "running")


def test_a_session_waits_for_its_share_of_the_link() -> None:
    admission = Admission("party0", Room(10, 0, memory=100, sent=1000), lambda client: (10, 10), 60)
    alone = admission.enter("a", Demand(1, sent=5000))  # more than there is: it is slow by itself, and disturbs nobody
    assert alone.state == "running"
    with pytest.raises(Busy, match=r"10 sessions or 100 bytes of what they cache or 1,000 bytes sent for a token of each"):
        admission.enter("b", Demand(1, sent=1))
    admission.leave(alone)
    first, second = admission.enter("a", Demand(1, sent=600)), admission.enter("b", Demand(1, sent=400))
    assert (first.state, second.state) == ("running", "running")
    with pytest.raises(Busy):
        admission.enter("b", Demand(1, sent=1))


def test_what_enters_counts_at_once() -> None:
    admission = Admission("party0", Room(10, 10, memory=100), lambda client: (10, 10), 60)
    tickets = [admission.enter("a", Demand(60)) for _ in range(3)]
    assert running(tickets) == [0]
    admission.leave(tickets[0])
    assert running(tickets) == [1]


def test_a_client_at_its_limit_is_passed_over() -> None:
    admission = places(3, own=(2, 100))
    a = [admission.enter("a") for _ in range(4)]
    assert running(a) == [0, 1]
    b = admission.enter("b")
    assert b.state == "running"
    admission.leave(b)
    assert running(a) == [0, 1]
    admission.leave(a[1])
    assert running(a) == [0, 2]


def test_how_many_are_ahead() -> None:
    admission = places(1)
    first = admission.enter("a")
    tickets = [admission.enter(client) for client in "aabacb"]
    told: dict[int, list[int]] = {i: [] for i in range(len(tickets))}
    threads = [
        threading.Thread(target=admission.wait, args=(ticket, nothing, told[i].append)) for i, ticket in enumerate(tickets)
    ]
    for thread in threads:
        thread.start()
    until(lambda: all(told.values()))
    assert [told[i][0] for i in range(6)] == [0, 3, 1, 5, 2, 4]
    order = []
    admission.leave(first)
    while now := running(tickets):
        order.append(now[0])
        admission.leave(tickets[now[0]])
    assert order == [0, 2, 4, 1, 5, 3]
    for thread in threads:
        thread.join(10)


def until(true: Callable[[], bool], seconds: float = 20) -> None:
    limit = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < limit
        time.sleep(0.005)


def test_full_queues() -> None:
    admission = places(1, queued=3, own=(1, 2))
    for _ in range(3):
        admission.enter("a")
    with pytest.raises(Busy, match=r"party0 is busy: it serves 1 sessions of 'a' at a time, and 2 wait; try again later"):
        admission.enter("a")
    admission.enter("b")
    with pytest.raises(Busy, match=r"party0 is busy: it serves 1 sessions at a time, and 3 wait; try again later"):
        admission.enter("c")
    assert (admission.count("running"), admission.count("waiting")) == (1, 3)
    follower = places(1, queued=1, own=(1, 1))
    tickets = [follower.expect("a") for _ in range(3)]
    with pytest.raises(Busy):
        follower.expect("a")
    follower.leave(tickets[0])
    follower.expect("a")


def test_longest_waiting_time() -> None:
    admission = places(1, seconds=0.05)
    admission.enter("a")
    ticket = admission.enter("b")
    with pytest.raises(Busy, match=r"party0 is busy: the session waited 0\.05 s for its turn, with 0 still ahead"):
        admission.wait(ticket, nothing)
    admission.leave(ticket)
    assert admission.count("waiting") == 0


def test_a_session_that_fails_stops_waiting() -> None:
    admission, failed, raised = places(1), threading.Event(), []
    admission.enter("a")
    ticket = admission.enter("a")

    def check() -> None:
        if failed.is_set():
            raise PeerLost("client", "waiting", "the connection ended")

    def wait() -> None:
        try:
            admission.wait(ticket, check)
        except PeerLost as error:
            raised.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    failed.set()
    admission.wake()
    thread.join(10)
    assert raised


@pytest.mark.parametrize("slots", [(1, 1), (2, 1, 1), (1, 2, 1), (2, 2, 2), (3, 1, 2, 1)])
def test_no_lock_up(slots: tuple[int, ...]) -> None:
    """Sessions of many clients arrive in another order at every server, take places in the order of servers, and claim."""
    servers = [places(count) for count in slots]
    loads = [WeightCache(2) for _ in slots]
    sessions, done, most = 40, [], [0] * len(slots)
    places_taken = [0] * len(slots)
    lock = threading.Lock()
    chance = random.Random(7)
    tickets: list[dict[int, Ticket]] = [{} for _ in range(sessions)]
    for i, server in enumerate(servers):
        for session in chance.sample(range(sessions), sessions):
            client = f"c{session % 5}"
            tickets[session][i] = server.enter(client) if i == 0 else Ticket(client)

    def one(session: int) -> None:
        key = (f"model{session % 3}",)
        for i, server in enumerate(servers):
            server.wait(tickets[session][i], nothing)
            loads[i].claim(key, session, nothing, nothing)
            with lock:
                places_taken[i] += 1
                most[i] = max(most[i], places_taken[i])
        for load in loads:
            load.release(session)
        for i, server in enumerate(servers):
            with lock:
                places_taken[i] -= 1
            server.leave(tickets[session][i])
        done.append(session)

    threads = [threading.Thread(target=one, args=(session,), daemon=True) for session in range(sessions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(done) == list(range(sessions))
    assert all(seen <= count for seen, count in zip(most, slots, strict=True))
