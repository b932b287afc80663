"""The tape on its way: the dealer's bounded outlet for one party, and the party's end of it."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from mpc.errors import MpcacheError, WireError
from mpc.tape import Chunks, chunks
from parties.transport.peer_stream import PeerStream
from parties.wire import wire_pb2 as wire
from parties.wire.shares import CHUNK_BYTES

BUFFER_BYTES = 16 << 20
WORTHWHILE = 1 << 16
LINGER = 0.002


class TapeOutlet:
    """One party's tape at the dealer, between the program that writes and the stream that sends.

    Holds about 16 MiB: a dealer that runs ahead waits. What is there is sent by a thread of its own, after at most 2 ms in
    which small entries may gather.
    """

    def __init__(self, stream: PeerStream) -> None:
        self.stream = stream
        self._buffer = bytearray()
        self._changed = threading.Condition()
        self._closed = False
        self._over = False

    def begin(self) -> None:
        """Start to send."""
        threading.Thread(target=self._run, name=f"tape {self.stream.peer}", daemon=True).start()

    def append(self, data: bytes) -> None:
        """Write tape; waits while the buffer is full. Raises the session's error."""
        session = self.stream.session
        session.check()
        with self._changed:
            while len(self._buffer) >= BUFFER_BYTES:
                self._changed.wait(1.0)
                session.check()
            before = len(self._buffer)
            self._buffer += data
            if before < WORTHWHILE <= len(self._buffer) or before == 0:
                self._changed.notify_all()

    def close(self) -> None:
        """Note that no more will be written."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def drained(self) -> None:
        """Wait until everything was handed to the stream, or the session failed."""
        with self._changed:
            while not self._over:
                self._changed.wait(1.0)

    def wake(self) -> None:
        """Let everybody look at the session's error."""
        with self._changed:
            self._changed.notify_all()

    def _run(self) -> None:
        try:
            while (piece := self._take()) is not None:
                message = wire.TapeMessage()
                message.chunk.payload = piece
                self.stream.send_bulk(message)
        except MpcacheError:
            pass  # the session's: whoever is in it knows
        finally:
            self.stream.close()
            with self._changed:
                self._over = True
                self._changed.notify_all()

    def _take(self) -> bytes | None:
        session = self.stream.session
        with self._changed:
            while not self._buffer and not self._closed and session.error is None:
                self._changed.wait()
            if session.error is not None or not self._buffer:
                return None
            if len(self._buffer) < WORTHWHILE and not self._closed:
                self._changed.wait(LINGER)
            with memoryview(self._buffer) as view:
                piece = bytes(view[:CHUNK_BYTES])
            del self._buffer[:CHUNK_BYTES]
            self._changed.notify_all()
        return piece


def tape_reader(stream: PeerStream) -> Chunks:
    """Return `read(n)` for a `PartyTape` over the dealer's stream; raises the session's error, `TapeError` after its end."""

    def payloads() -> Iterator[bytes]:
        while (message := stream.receive_or_end()) is not None:
            kind = message.WhichOneof("content")
            payload = message.chunk.payload
            if kind != "chunk" or not payload:
                raise WireError(f"{stream.peer} sent '{kind}' where a chunk of the tape was expected")
            yield payload

    return chunks(payloads())
