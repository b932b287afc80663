"""Which sessions run and which wait: bounded, fair between clients, and in an order that cannot lock up.

Every server has places for `slots` sessions. A session takes a place at party 0 first, then at party 1, and so on, and at
the dealer last; it keeps them until it ends. Since all sessions take them in this one order, a session that waits for a
place holds only earlier ones, and whoever holds that place waits for later ones at most: no two sessions ever wait for each
other. Party 0 is where sessions queue; at the others a session waits at most for one that is just leaving, unless they have
fewer places.

Whose turn it is goes round the clients that have a session waiting, so that many sessions of one client delay another's by
one at most. Of one client's sessions in step, the one goes first that generates most tokens for each token of its prompt:
what it adds to their rounds is small for long, where a prompt is large and soon over. A session waits whose memory does not
fit beside that of those that run, or with which a token of all of them would send more than is granted; it lets nobody pass.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass

from parties.errors import Busy

Grant = Callable[[str], tuple[int, int]]


@dataclass(frozen=True)
class Demand:
    """What a session asks of a server, public. memory: bytes, as predicted; ratio: tokens that it generates for each token
    of its prompt, 0 where turns are in the order of arrival; sent: bytes that a party sends for a token, as predicted."""

    memory: int = 0
    ratio: float = 0.0
    sent: int = 0


@dataclass(frozen=True)
class Room:
    """What a server has. slots: sessions that run at a time; queued: sessions that wait at most; memory: bytes of those that
    run together, None for any; sent: bytes that it may send for a token of each of them together, None for any."""

    slots: int
    queued: int
    memory: int | None = None
    sent: int | None = None


NOTHING = Demand()


class Ticket:
    """One session's place: it is on its way here (other servers come first), waits, runs, or has left."""

    def __init__(self, client: str, demand: Demand = NOTHING) -> None:
        self.client = client
        self.demand = demand
        self.state = "coming"
        self.waited = 0.0  # seconds in the queue

    def __repr__(self) -> str:
        return f"Ticket({self.client}, {self.state})"


class Admission:
    """The places of one server.

    grant(client): sessions of one client that run at a time, and that wait at most. seconds: how long a session may wait.
    """

    def __init__(self, name: str, room: Room, grant: Grant, seconds: float) -> None:
        self._name = name
        self._room = room
        self._grant = grant
        self._seconds = seconds
        self._changed = threading.Condition()
        self._tickets: set[Ticket] = set()
        self._queues: OrderedDict[str, deque[Ticket]] = OrderedDict()  # clients in the order of their turns
        self._running: Counter[str] = Counter()

    # ---- coming and going --------------------------------------------------------------------------------------------
    def enter(self, client: str, demand: Demand = NOTHING) -> Ticket:
        """Let a session in at party 0: it has a place at once or waits. Raises `Busy` when the queue, or its client's, is
        full."""
        slots, queued = self._grant(client)
        ticket = Ticket(client, demand)
        with self._changed:
            self._tickets.add(ticket)
            self._queue(ticket)
            waiting, own = sum(map(len, self._queues.values())), len(self._queues.get(client, ()))
            if ticket.state == "waiting" and (waiting > self._room.queued or own > queued):
                self._unqueue(ticket)
                self._tickets.discard(ticket)
                whole = waiting > self._room.queued
                raise (
                    self._busy(self._room.slots, self._room.queued)
                    if whole
                    else self._busy(slots, queued, f" of '{client}'")
                )
            self._changed.notify_all()
        return ticket

    def expect(self, client: str, demand: Demand = NOTHING) -> Ticket:
        """Expect a session that takes a place elsewhere first. Raises `Busy` when there are more than can be served or wait.

        A session that is just leaving here may have left there already: up to `slots` more are expected.
        """
        slots, queued = self._grant(client)
        with self._changed:
            if len(self._tickets) >= 2 * self._room.slots + self._room.queued:
                raise self._full()
            if sum(ticket.client == client for ticket in self._tickets) >= 2 * slots + queued:
                raise self._busy(slots, queued, f" of '{client}'")
            ticket = Ticket(client, demand)
            self._tickets.add(ticket)
        return ticket

    def wait(self, ticket: Ticket, check: Callable[[], None], moved: Callable[[int], None] = lambda ahead: None) -> None:
        """Wait for the place. moved(ahead): how many sessions are before it, told at first and whenever that changes.

        check() may raise to give up (`wake` makes it look). Raises `Busy` after the longest waiting time.
        """
        began, told = time.monotonic(), -1
        with self._changed:
            if ticket.state == "coming":
                self._queue(ticket)
            try:
                while ticket.state == "waiting":
                    check()
                    if (ahead := self._ahead(ticket)) != told:
                        told = ahead
                        moved(ahead)
                    if (left := began + self._seconds - time.monotonic()) <= 0:
                        raise Busy(
                            f"{self._name} is busy: the session waited {self._seconds:g} s for its turn, with {ahead} still "
                            "ahead of it; try again later"
                        )
                    self._changed.wait(left)
                check()
            finally:
                ticket.waited = time.monotonic() - began

    def leave(self, ticket: Ticket) -> None:
        """Free the place of a session that has ended, or never began."""
        with self._changed:
            if ticket.state == "running":
                self._running[ticket.client] -= 1
            elif ticket.state == "waiting":
                self._unqueue(ticket)
            ticket.state = "left"
            self._tickets.discard(ticket)
            self._dispatch()
            self._changed.notify_all()

    def wake(self) -> None:
        """Let everybody who waits look whether to give up."""
        with self._changed:
            self._changed.notify_all()

    # ---- what there is -----------------------------------------------------------------------------------------------
    def count(self, state: str) -> int:
        """Return how many sessions are "coming", "waiting" or "running"."""
        with self._changed:
            return sum(ticket.state == state for ticket in self._tickets)

    # ---- turns ---------------------------------------------------------------------------------------------------------
    def _full(self) -> Busy:
        return self._busy(self._room.slots, self._room.queued)

    def _busy(self, slots: int, queued: int, whose: str = "") -> Busy:
        waiting = f", and {queued} wait" if queued else ""
        whose += "" if self._room.memory is None else f" or {self._room.memory:,} bytes of what they cache"
        whose += "" if self._room.sent is None else f" or {self._room.sent:,} bytes sent for a token of each"
        return Busy(f"{self._name} is busy: it serves {slots} sessions{whose} at a time{waiting}; try again later")

    def _queue(self, ticket: Ticket) -> None:
        ticket.state = "waiting"
        queue = self._queues.setdefault(ticket.client, deque())
        after = sum(waiting.demand.ratio >= ticket.demand.ratio for waiting in queue)
        queue.insert(after, ticket)
        self._dispatch()

    def _unqueue(self, ticket: Ticket) -> None:
        queue = self._queues[ticket.client]
        queue.remove(ticket)
        if not queue:
            del self._queues[ticket.client]

    def _dispatch(self) -> None:
        while self._running.total() < self._room.slots:
            client = next((c for c in self._queues if self._running[c] < self._grant(c)[0]), None)
            if client is None:
                return
            ticket = self._queues[client][0]
            if not self._fits(ticket):
                return
            self._unqueue(ticket)
            if client in self._queues:
                self._queues.move_to_end(client)
            ticket.state = "running"
            self._running[client] += 1

    def _fits(self, ticket: Ticket) -> bool:
        """Whether what a session asks for is there; one that runs alone has what it was let in with."""
        running = [other.demand for other in self._tickets if other.state == "running"]
        asked, room = [*running, ticket.demand], self._room
        memory = room.memory is None or sum(one.memory for one in asked) <= room.memory
        sent = room.sent is None or sum(one.sent for one in asked) <= room.sent
        return not running or (memory and sent)

    def _ahead(self, ticket: Ticket) -> int:
        """Return how many turns come before its own, if no client is at its limit."""
        before, place = True, self._queues[ticket.client].index(ticket)
        ahead = place
        for client, queue in self._queues.items():
            if client == ticket.client:
                before = False
            else:
                ahead += min(len(queue), place + before)
        return ahead
