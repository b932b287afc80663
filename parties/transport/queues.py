"""The queues of a stream: what came and was not read yet, and what was sent and is not known to have arrived."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

from mpc.errors import WireError
from mpc.turns import waiting

Message = Any
S = TypeVar("S")


class Inbox(Generic[S]):
    """Messages that were read from one or several streams, as pairs (stream, message); message None after a stream's end.

    A reader may wait for room. Safe for threads; the lock is held while nobody else's is taken.
    """

    def __init__(self) -> None:
        self._queue: SimpleQueue[tuple[S, Message | None]] = SimpleQueue()
        self._read = threading.Condition()
        self._waiting = 0  # readers that wait for room; counted before they look at the size, so that none is forgotten

    def put(self, stream: S, message: Message | None) -> None:
        """Add a message."""
        self._queue.put((stream, message))

    def get(self, timeout: float | None = None) -> tuple[S, Message | None]:
        """Wait for the next pair and return it. Raises `queue.Empty` after `timeout` seconds."""
        try:
            found = self._queue.get_nowait()
        except Empty:
            with waiting():
                found = self._queue.get(timeout=timeout)
        if self._waiting:
            self.notify()
        return found

    def empty(self) -> bool:
        """Whether nothing waits to be read."""
        return self._queue.empty()

    def qsize(self) -> int:
        """Return how many messages wait to be read."""
        return self._queue.qsize()

    def wait_until(self, ready: Callable[[], bool]) -> None:
        """Wait until ready(), which is asked again after each message that was read and after each `notify`."""
        with self._read:
            self._waiting += 1
            try:
                self._read.wait_for(ready)
            finally:
                self._waiting -= 1

    def notify(self) -> None:
        """Let the readers that wait for room look again."""
        with self._read:
            self._read.notify_all()


class UnacknowledgedQueue:
    """Numbered messages that have been sent, until they are known to have arrived. Not safe for threads by itself.

    >>> from parties.wire import wire_pb2 as wire
    >>> queue = UnacknowledgedQueue()
    >>> for _ in range(3):
    ...     queue.add(wire.PeerMessage())
    >>> queue.acknowledge(2, "party1")
    >>> [message.number for message in queue.rest(2, "party1")]
    [3]
    """

    def __init__(self) -> None:
        self.sent = 0
        self.arrived = 0
        self._messages: deque[Message] = deque()

    def __len__(self) -> int:
        return len(self._messages)

    def add(self, message: Message) -> None:
        """Number a message and keep it. From here on it must not be changed."""
        self.sent += 1
        message.number = self.sent
        self._messages.append(message)

    def acknowledge(self, received: int, peer: str) -> None:
        """Forget what has arrived. received: how many messages the peer has. Raises `WireError` for more than were sent."""
        if received > self.sent:
            raise WireError(f"{peer} says that it has received message {received}, but {self.sent} were sent")
        while self.arrived < received:
            self._messages.popleft()
            self.arrived += 1

    def rest(self, received: int, peer: str) -> list[Message]:
        """Return what must be sent again to a peer that has received so many. Raises `WireError` for what cannot be."""
        if received < self.arrived:
            raise WireError(f"{peer} says that it has received message {received}, but it said {self.arrived} before")
        self.acknowledge(received, peer)
        return list(self._messages)
