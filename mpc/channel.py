"""Lock-step exchange of bytes among the compute parties.

A `Channel` knows nothing of gRPC: `parties.transport.channel` provides the real one, `memory_channels` here the one for
tests. One `exchange` is one round: everybody sends and receives at the same time, so it costs one one-way delay. Sizes are
declared by the receiver beforehand; a message of another size is an error before anything is allocated for it.
"""

from __future__ import annotations

import queue
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from mpc import timeline
from mpc.errors import PeerLost, PeerSilent, WireError
from mpc.ledger import Ledger, current

DEADLINE_SECONDS = 30.0


class Channel(ABC):
    """One compute party's connection to all the others.

    party: this party's index, 0 <= party < parties. names: a name per party, used in errors.
    """

    def __init__(self, party: int, names: Sequence[str], ledger: Ledger | None = None) -> None:
        self.party = party
        self.names = tuple(names)
        self.ledger = ledger if ledger is not None else Ledger()

    @property
    def parties(self) -> int:
        """Number of compute parties."""
        return len(self.names)

    @property
    def peers(self) -> tuple[int, ...]:
        """The indices of all other parties, in order."""
        return tuple(i for i in range(self.parties) if i != self.party)

    @abstractmethod
    def send(self, peer: int, payload: bytes) -> None:
        """Queue one message for `peer`; does not wait for it to arrive."""

    @abstractmethod
    def receive(self, peer: int, size: int) -> bytes:
        """Return the next message of `peer`, of exactly `size` bytes.

        Raises `PeerLost`, `PeerSilent` (deadline) or `WireError` (another size), naming the peer.
        """

    def exchange(
        self,
        outgoing: Mapping[int, bytes],
        incoming: Mapping[int, int],
        shares: Mapping[tuple[str, str], int | tuple[int, int]] | None = None,
    ) -> dict[int, bytes]:
        """Make one round: send `outgoing[peer]` to each peer, receive `incoming[peer]` bytes from each.

        shares: how many of the bytes to one peer belong to which (stage, operation), for the ledger, or, where peers get
        messages of different sizes, the exact (sent, received) bytes; by default all to the current one. The round itself
        is booked on the first.
        """
        start = time.perf_counter()
        received, sent_at = self.transfer(outgoing, incoming)
        seconds = time.perf_counter() - start
        sent_total = sum(len(p) for p in outgoing.values())
        received_total = sum(incoming.values())
        keys: dict[tuple[str, str], int | tuple[int, int]] = dict(shares) if shares else {current(): 1}
        weight = sum(part for part in keys.values() if isinstance(part, int)) or 1
        if timeline.active is not None:
            booked = next(iter(keys))
            timeline.active.spans.append(timeline.Span("send", *booked, start, sent_at - start, sent_total))
            timeline.active.spans.append(timeline.Span("wait", *booked, sent_at, start + seconds - sent_at))
        first = self.ledger.at(next(iter(keys)))
        first.rounds += 1
        first.messages += len(outgoing)
        first.seconds_waiting += seconds
        for key, part in keys.items():
            exact = part if isinstance(part, tuple) else (sent_total * part // weight, received_total * part // weight)
            cost = self.ledger.at(key)
            cost.bytes_sent += exact[0]
            cost.bytes_received += exact[1]
        return received

    def transfer(self, outgoing: Mapping[int, bytes], incoming: Mapping[int, int]) -> tuple[dict[int, bytes], float]:
        """Send and receive one round's bytes; return what has arrived, and when all was sent, by `time.perf_counter`."""
        for peer, payload in outgoing.items():
            self.send(peer, payload)
        sent_at = time.perf_counter()
        return {peer: self.receive(peer, size) for peer, size in incoming.items()}, sent_at

    def exchange_all(self, payload: bytes, shares: Mapping[tuple[str, str], int] | None = None) -> list[bytes]:
        """Make one round in which every party sends the same number of bytes to every other; own payload at own index."""
        received = self.exchange({peer: payload for peer in self.peers}, {peer: len(payload) for peer in self.peers}, shares)
        received[self.party] = payload
        return [received[i] for i in range(self.parties)]


class MemoryChannel(Channel):
    """Parties as threads of one process. Made by `memory_channels`."""

    def __init__(
        self,
        party: int,
        names: Sequence[str],
        queues: Mapping[tuple[int, int], queue.SimpleQueue[bytes]],
        closed: threading.Event,
        deadline: float,
    ) -> None:
        super().__init__(party, names)
        self._queues = queues
        self._closed = closed
        self._deadline = deadline

    def send(self, peer: int, payload: bytes) -> None:
        """Queue one message for `peer`."""
        self._queues[self.party, peer].put(payload)

    def receive(self, peer: int, size: int) -> bytes:
        """Return the next message of `peer`."""
        limit = time.monotonic() + self._deadline
        while True:
            try:
                payload = self._queues[peer, self.party].get(timeout=0.2)
                break
            except queue.Empty:
                if self._closed.is_set():
                    raise PeerLost(self.names[peer], "exchange", "left the session") from None
                if time.monotonic() > limit:
                    raise PeerSilent(self.names[peer], "exchange", f"sent nothing for {self._deadline:g} s") from None
        if len(payload) != size:
            raise WireError(f"{self.names[peer]} sent {len(payload)} bytes where {size} were expected")
        return payload

    def close(self) -> None:
        """Tell all parties of the group that one has left."""
        self._closed.set()


def memory_channels(parties: int, deadline: float = DEADLINE_SECONDS) -> list[MemoryChannel]:
    """Return connected in-memory channels for `parties` threads."""
    names = [f"party{i}" for i in range(parties)]
    queues: dict[tuple[int, int], queue.SimpleQueue[bytes]] = {
        (i, j): queue.SimpleQueue() for i in range(parties) for j in range(parties) if i != j
    }
    closed = threading.Event()
    return [MemoryChannel(i, names, queues, closed, deadline) for i in range(parties)]
