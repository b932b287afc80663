"""The tape on its way: the dealer's bounded outlet for one party, and the party's end of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

from mpc.errors import WireError
from mpc.tape import Bytes, chunks
from parties import wire_pb2 as wire
from parties.connection import CHUNK_BYTES
from parties.link import Link, Session

BUFFER_BYTES = 16 << 20
WORTHWHILE = 1 << 16
LINGER = 0.002


class TapeOutlet:
    """One party's tape at the dealer, between the program that writes and the gRPC thread that sends.

    Holds about 16 MiB: a dealer that runs ahead waits. What is there is sent as soon as the thread is idle, after at most
    2 ms in which small entries may gather.
    """

    def __init__(self, session: Session, interval: float) -> None:
        self._session = session
        self._interval = interval
        self._buffer = bytearray()
        self._changed = threading.Condition()
        self._closed = False
        self._first: list[wire.TapeMessage] = []

    def start(self, message: wire.TapeMessage) -> None:
        """Send a message before the tape."""
        with self._changed:
            self._first.append(message)
            self._changed.notify_all()

    def append(self, data: bytes) -> None:
        """Write tape; waits while the buffer is full. Raises the session's error."""
        self._session.check()
        with self._changed:
            while len(self._buffer) >= BUFFER_BYTES:
                self._changed.wait(1.0)
                self._session.check()
            before = len(self._buffer)
            self._buffer += data
            if before < WORTHWHILE <= len(self._buffer) or before == 0:
                self._changed.notify_all()

    def close(self) -> None:
        """No more will be written."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def drained(self) -> bool:
        """Wait until everything was handed to gRPC; False when the session failed before."""
        with self._changed:
            while self._buffer and self._session.error is None:
                self._changed.wait(1.0)
        return self._session.error is None

    def wake(self) -> None:
        """Let everybody look at the session's error."""
        with self._changed:
            self._changed.notify_all()

    def outgoing(self) -> Iterator[wire.TapeMessage]:
        """What gRPC is to send, heartbeats included; ends with the tape or with the session."""
        beat = wire.TapeMessage(heartbeat=wire.Heartbeat())
        while True:
            message = self._take()
            if message is None:
                return
            yield message if message is not _IDLE else beat

    def _take(self) -> wire.TapeMessage | None:
        with self._changed:
            limit = time.monotonic() + self._interval
            while not self._buffer and not self._first and not self._closed and self._session.error is None:
                left = limit - time.monotonic()
                if left <= 0:
                    return _IDLE
                self._changed.wait(left)
            if self._session.error is not None:
                return None
            if self._first:
                return self._first.pop(0)
            if not self._buffer:
                return None
            if len(self._buffer) < WORTHWHILE and not self._closed:
                self._changed.wait(LINGER)
            with memoryview(self._buffer) as view:
                piece = bytes(view[:CHUNK_BYTES])
            del self._buffer[:CHUNK_BYTES]
            self._changed.notify_all()
        return wire.TapeMessage(chunk=wire.Chunk(payload=piece))


_IDLE = wire.TapeMessage()


def tape_reader(link: Link) -> Callable[[int], Bytes]:
    """`read(n)` for a `PartyTape` over the dealer's stream; raises the session's error, `TapeError` after its end."""

    def stream() -> Iterator[bytes]:
        while (message := link.receive_or_end()) is not None:
            kind = message.WhichOneof("content")
            if kind != "chunk" or not message.chunk.payload:
                raise WireError(f"{link.peer} sent '{kind}' where a chunk of the tape was expected")
            yield message.chunk.payload

    return chunks(stream())
