"""Sessions in step: what several sessions exchange in a round leaves in one message for each peer.

A `StepGroup` is one party's end. Each session in it is a `StepMember` and runs its program in a thread of its own, one at a
time: it has the turn until it waits for an exchange, or for a product that others may ask for, too (`together`). Once nobody
computes any more, products that several ask of one matrix are made as one; then all that is waiting leaves as the group's
message of this round, one to each peer; once every peer's message of the round is here, those whose exchange is whole go
on. So all members move on together, whatever suite they compute with, and each keeps its tape, ledger and client.

A message lists its sections: (member's number, number of its exchange, bytes), then their bytes; where a party sends a peer
nothing in an exchange, the section has none. Nothing is agreed on beforehand: a member whose section a peer has not sent yet
(there it waits for its client) is late, and its exchange ends with the later round in which the section comes, at all
parties alike, while the others are not held up. A party with nothing to send answers a peer's message with an empty one, so
that rounds stay paired.

Costs. A session's ledger counts its own bytes and every round that it takes part in, as if it ran alone. `StepCosts` counts
what the group has beside that: its rounds, and the bytes of their lists, `overhead`.

Leaks: to the parties, which sessions exchange in which round and how much: shapes, and when clients send (docs/security.md,
"Sessions in step"). What is sent is what each session would send alone.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum, auto
from itertools import islice
from typing import Protocol

from torch import Tensor

from mpc.errors import MpcacheError, PeerLost, PeerSilent, WireError
from mpc.joint_products import Products
from mpc.step_messages import overhead, packed, sections_of
from mpc.turns import SESSIONS, leave

LOOK_SECONDS = 1.0
STEP = "sessions in step"


class Trunk(Protocol):
    """How a group's messages travel. names: of all parties; peers: indices of the others; ended: name of a peer that has
    ended what it sends in good order."""

    names: tuple[str, ...]
    peers: tuple[int, ...]
    ended: str | None

    def send(self, peer: int, message: bytes) -> None:
        """Queue a message; does not wait for it to arrive."""

    def next(self, awaited: Collection[int]) -> tuple[int, bytes] | None:
        """Wait; return the next message of any peer with its index, None after `wake` or an end in good order. Raises why
        no more comes. awaited: peers whose message is due.
        """

    def wake(self) -> None:
        """Let `next` return."""


@dataclass
class StepCosts:
    """What a group has counted. sections: of all rounds; overhead_bytes: sent to all peers beside the sections' own."""

    rounds: int = 0
    sections: int = 0
    overhead_bytes: int = 0


class _State(Enum):
    AWAY = auto()  # nobody waits for it
    RUNNING = auto()  # it computes, or waits for its turn
    ASKING = auto()  # it waits until nobody computes, for a product that others may ask for as well
    ALIGNED = auto()  # it waits, between two tokens, for those that are within one
    POSTED = auto()  # what it sends leaves with the next message
    SENT = auto()
    GONE = auto()


@dataclass
class _Asked:
    """A product that a member asks for. found: its rows, None until they are computed, and for ever if that failed."""

    key: Hashable
    rows: Tensor
    found: Tensor | None = None


@dataclass(frozen=True)
class _Exchange:
    """What a member sends and expects, by peer. number: of the member's exchanges, from 0; since: when it was posted."""

    number: int = -1
    outgoing: Mapping[int, bytes] = field(default_factory=dict)
    incoming: Mapping[int, int] = field(default_factory=dict)
    since: float = 0.0


class StepMember:
    """One session in a group, made by `StepGroup.join`. Its methods are called by the session's thread, but for `rouse`.

    shared_rounds: rounds in which other sessions' sections left with its own. What is not said to be for the session is the
    group's, guarded by its lock.
    """

    def __init__(self, group: StepGroup, number: int, check: Callable[[], None]) -> None:
        self.number = number
        self.shared_rounds = 0
        self.state = _State.AWAY
        self.posted = _Exchange()
        self.asked: _Asked | None = None
        self.kind: Hashable = ()
        self.decodes = False  # it has begun to
        self.late = False  # a round went by without a peer's section of its exchange
        self.arrived: dict[int, deque[tuple[int, bytes]]] = {peer: deque() for peer in group.trunk.peers}
        self.turn = threading.Condition(group.lock)
        self._group = group
        self._check = check

    # ---- for the session -------------------------------------------------------------------------------------------
    def enter(self) -> None:
        """Take part: from here on the group's rounds wait for this member. Returns at its turn; raises the session's
        error."""
        with self._resting(), self._group.lock:
            self._group.give_turn(self)
            self._await_turn()

    def exchange(self, outgoing: Mapping[int, bytes], incoming: Mapping[int, int]) -> dict[int, bytes]:
        """Send outgoing[peer], return incoming[peer] bytes of each peer, once they are here and it is this member's turn.

        Raises the session's error or the group's, `PeerSilent` naming a peer that sends nothing of this session,
        `WireError`.
        """
        with self._resting(), self._group.lock:
            self._check()
            self.posted = _Exchange(self.posted.number + 1, outgoing, incoming, time.monotonic())
            self._group.rest(self, _State.POSTED)
            self._await_turn()
            return {peer: self._received(peer, size) for peer, size in incoming.items()}

    def align(self, kind: Hashable = ()) -> None:
        """Before each token: wait until no other session of this kind, whose tokens take as many rounds, is within one. Once
        they begin a token together, sessions ask for the same products at the same time. Raises as `exchange`."""
        with self._resting(), self._group.lock:
            self._check()
            self.kind, self.decodes = kind, True
            self._group.rest(self, _State.ALIGNED)
            self._await_turn()

    def together(self, key: Hashable, rows: Tensor, products: Products) -> Tensor:
        """Return the product of `rows`, made with those of all members that ask under this key before the group's next
        message: by the first of them, for all. Raises as `exchange`."""
        with self._resting(), self._group.lock:
            self._check()
            asked = self.asked = _Asked(key, rows)
            self._group.rest(self, _State.ASKING)
            self._await_turn()
            members = [] if asked.found is not None else self._group.asking(key, self)
            self.state, self.asked = _State.RUNNING, None
        if asked.found is not None:
            return asked.found
        others = [one for member in members if (one := member.asked) is not None]
        try:
            asked.found, *found = products([rows, *(one.rows for one in others)])
            for one, rows_found in zip(others, found, strict=True):
                one.found = rows_found
        finally:
            with self._group.lock:
                self._group.answered(members)
        return asked.found

    @contextmanager
    def away(self) -> Iterator[None]:
        """Let the others go on without this member while it waits for something else than a peer."""
        with self._group.lock:
            self._group.rest(self, _State.AWAY)
        leave()
        yield
        self.enter()

    def leave(self) -> None:
        """Take part no more; the others go on. May be called again."""
        leave()
        with self._group.lock:
            self._group.forget(self)

    def rouse(self) -> None:
        """Let the session's thread look at its error, if it waits here. From any thread."""
        with self._group.lock:
            self.turn.notify()

    # ---- for the group ---------------------------------------------------------------------------------------------
    def missing(self) -> int | None:
        """Return a peer whose section of the posted exchange is not here, None without one."""
        return next((peer for peer, size in self.posted.incoming.items() if size and not self.arrived[peer]), None)

    def within_token(self) -> bool:
        """Whether it has begun a token that goes on with the next rounds."""
        return self.decodes and not self.late and self.state in (_State.POSTED, _State.SENT)

    @contextmanager
    def _resting(self) -> Iterator[None]:
        """Compute no more in here; out of it the group has, between all its members, this process's turn."""
        leave()
        yield
        SESSIONS.take(self._group)

    def _await_turn(self) -> None:
        """Wait until this member has the turn. Raises the session's error, the group's, or `PeerSilent`."""
        while self._group.holder is not self:
            self._group.check()
            self._check()
            late = self.missing() if self.state is _State.SENT else None
            if late is not None and time.monotonic() - self.posted.since > self._group.patience:
                reason = f"sent nothing of this session for {self._group.patience:g} s"
                raise PeerSilent(self._group.trunk.names[late], STEP, reason)
            self.turn.wait(LOOK_SECONDS)

    def _received(self, peer: int, size: int) -> bytes:
        if size == 0:
            return b""
        number, payload = self.arrived[peer].popleft()
        if number != self.posted.number or len(payload) != size:
            raise WireError(
                f"{self._group.trunk.names[peer]} sent {len(payload)} bytes of exchange {number} where {size} of exchange "
                f"{self.posted.number} were expected"
            )
        return payload


class StepGroup:
    """One party's end of sessions in step. `run` makes the rounds, in a thread of its own.

    patience: seconds that an exchange of a member may wait for a peer's section. Methods without a thread named are called
    with the lock held.
    """

    def __init__(self, trunk: Trunk, patience: float) -> None:
        self.trunk = trunk
        self.patience = patience
        self.costs = StepCosts()
        self.lock = threading.Lock()
        self.holder: StepMember | None = None  # who computes
        self._turns: deque[StepMember] = deque()  # who computes next
        self._members: dict[int, StepMember] = {}
        self._numbers: set[int] = set()  # of all members so far
        self._arrived: dict[int, deque[bytes]] = {peer: deque() for peer in trunk.peers}  # of this round and the next
        self._sent = False  # this round's own message
        self._closing = False
        self._error: MpcacheError | None = None

    # ---- from any thread -------------------------------------------------------------------------------------------
    def join(self, number: int, check: Callable[[], None]) -> StepMember:
        """Return a new member, away until it enters. number: the same at all parties, used once, below 2^32. check(): raises
        the session's error. Raises `WireError` for a number that was used."""
        with self.lock:
            if number in self._numbers:
                raise WireError(f"a session in step was given number {number}, which another one has")
            self._numbers.add(number)
            member = self._members[number] = StepMember(self, number, check)
            return member

    def close(self) -> None:
        """End `run` once no member is left."""
        self._closing = True
        self.trunk.wake()

    def end(self, error: MpcacheError) -> None:
        """Let all members raise `error`."""
        with self.lock:
            self._error = error
            for member in self._members.values():
                member.turn.notify()

    def run(self) -> None:
        """Make rounds until no member is left and nobody will come. Raises why the trunk carries no more, `WireError`."""
        while not self._over():
            for peer, message in self._due().items():
                self.trunk.send(peer, message)
            if not self._complete():
                found = self.trunk.next([] if not self._sent else [p for p, waiting in self._arrived.items() if not waiting])
                if found is not None:
                    self._arrived[found[0]].append(found[1])

    # ---- turns -----------------------------------------------------------------------------------------------------
    def check(self) -> None:
        """Raise the group's error if there is one."""
        if self._error is not None:
            raise self._error

    def give_turn(self, member: StepMember) -> None:
        """Let a member compute, now or after those that wait already."""
        member.state, member.late = _State.RUNNING, False
        self._turns.append(member)
        self._pass_on()

    def asking(self, key: Hashable, first: StepMember) -> list[StepMember]:
        """Return the other members that wait for a product under this key, and for no turn yet."""
        waiting = (m for m in self._members.values() if m is not first and m.state is _State.ASKING)
        return [m for m in waiting if m not in self._turns and m.asked is not None and m.asked.key == key]

    def answered(self, members: list[StepMember]) -> None:
        """Let members go on whose product was made, or is theirs to make."""
        for member in members:
            if member.state is _State.ASKING and member not in self._turns:
                self._turns.append(member)

    def rest(self, member: StepMember, state: _State) -> None:
        """Let a member that has computed, or waits to, do so no more."""
        member.state = state
        if member in self._turns:
            self._turns.remove(member)
        if self.holder is member:
            self.holder = None
        self._pass_on()

    def forget(self, member: StepMember) -> None:
        """Let a member be gone."""
        self._members.pop(member.number, None)
        self.rest(member, _State.GONE)
        self.trunk.wake()

    def _pass_on(self) -> None:
        if self.holder is None and not self._turns:
            self._turns.extend(islice((m for m in self._members.values() if m.state is _State.ASKING), 1))
        if self.holder is None and not self._turns:
            within = {m.kind for m in self._members.values() if m.within_token()}
            for member in [m for m in self._members.values() if m.state is _State.ALIGNED and m.kind not in within]:
                member.state = _State.RUNNING
                self._turns.append(member)
        if self.holder is None and self._turns:
            self.holder = self._turns.popleft()
            self.holder.turn.notify()
        elif self.holder is None:
            SESSIONS.give(self)
            self.trunk.wake()

    # ---- rounds, from the thread of `run` --------------------------------------------------------------------------
    def _over(self) -> bool:
        with self.lock:
            waiting = [m for m in self._members.values() if m.state in (_State.POSTED, _State.SENT)]
            if self.trunk.ended is not None and waiting:
                raise PeerLost(self.trunk.ended, STEP, "left the sessions in step early")
            return (self._closing or self.trunk.ended is not None) and not self._members

    def _due(self) -> dict[int, bytes]:
        """Return this round's messages by peer once nobody computes and somebody sends, here or at a peer; else none."""
        with self.lock:
            posted = [self._members[number] for number in sorted(self._members) if self._is_posted(number)]
            if self._sent or self.holder is not None or not (posted or any(self._arrived.values())):
                return {}
            messages = {peer: self._message(peer, posted) for peer in self.trunk.peers}
            for member in posted:
                member.state = _State.SENT
                member.shared_rounds += len(posted) > 1
            self._sent = True
            self.costs.sections += len(posted)
            return messages

    def _is_posted(self, number: int) -> bool:
        return self._members[number].state is _State.POSTED

    def _message(self, peer: int, posted: list[StepMember]) -> bytes:
        sections = [(m.number, m.posted.number, m.posted.outgoing.get(peer, b"")) for m in posted]
        self.costs.overhead_bytes += overhead(len(sections))
        return packed(self.costs.rounds, sections)

    def _complete(self) -> bool:
        """End the round if all messages are here: let those go on whose exchange is whole. False if some are not."""
        with self.lock:
            if not self._sent or not all(self._arrived.values()):
                return False
            for peer, waiting in self._arrived.items():
                self._take(peer, waiting.popleft())
            self.costs.rounds += 1
            self._sent = False
            for number in sorted(self._members):
                member = self._members[number]
                if member.state is _State.SENT and member.missing() is None:
                    self.give_turn(member)
                elif member.state is _State.SENT:
                    member.late = True
            self._pass_on()
            return True

    def _take(self, peer: int, message: bytes) -> None:
        """Hand the sections of a peer's message to the members; those of sessions that are over here are dropped."""
        for number, exchange, payload in sections_of(self.trunk.names[peer], message, self.costs.rounds):
            if payload and number in self._members:
                self._members[number].arrived[peer].append((exchange, payload))
