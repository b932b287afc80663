"""Parties of a step group as threads of one process."""

from __future__ import annotations

import queue
from collections.abc import Collection, Sequence

from mpc.errors import PeerLost


class MemoryTrunk:
    """One party's end; see `memory_trunks`. sent: every message, by peer. end(): as if the process ended in good order;
    cut(peer): as if the connection to a peer broke."""

    def __init__(self, party: int, inboxes: Sequence[queue.SimpleQueue[tuple[int, object]]]) -> None:
        self.names = tuple(f"party{i}" for i in range(len(inboxes)))
        self.peers = tuple(i for i in range(len(inboxes)) if i != party)
        self.ended: str | None = None
        self.sent: dict[int, list[bytes]] = {peer: [] for peer in self.peers}
        self._party = party
        self._inboxes = inboxes

    def send(self, peer: int, message: bytes) -> None:
        self.sent[peer].append(message)
        self._inboxes[peer].put((self._party, message))

    def next(self, awaited: Collection[int]) -> tuple[int, bytes] | None:
        peer, found = self._inboxes[self._party].get(timeout=20)
        if isinstance(found, Exception):
            raise found
        if found == "end":
            self.ended = self.names[peer]
        return (peer, found) if isinstance(found, bytes) else None

    def wake(self) -> None:
        self._inboxes[self._party].put((self._party, None))

    def end(self) -> None:
        for peer in self.peers:
            self._inboxes[peer].put((self._party, "end"))

    def cut(self, peer: int) -> None:
        lost = PeerLost(self.names[peer], "sessions in step", "the connection ended")
        self._inboxes[self._party].put((peer, lost))


def memory_trunks(parties: int) -> list[MemoryTrunk]:
    """Return connected ends for so many parties."""
    inboxes: list[queue.SimpleQueue[tuple[int, object]]] = [queue.SimpleQueue() for _ in range(parties)]
    return [MemoryTrunk(i, inboxes) for i in range(parties)]
