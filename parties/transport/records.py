"""A call's messages beside gRPC: records of declared sizes over a line, checked before anything is allocated.

A record is a header of 32 bytes and what follows it:

| kind | follows | header also |
| --- | --- | --- |
| 0 | nothing: this direction has ended in good order | |
| 1 | a message, as gRPC would send it | |
| 2 | the payload of a frame (`parties.transport.pieces`) | the frame's number, sequence and size |
| 3 | a `Failure`: why the other side refuses the call, or ends it | |

Sizes, bytes: a message as many as gRPC allows, a payload 1 to 1 MiB, a failure 64 KiB.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

from google.protobuf.message import DecodeError

from mpc.errors import WireError
from parties.transport.line import Line
from parties.transport.pieces import Piece
from parties.wire import wire_pb2 as wire
from parties.wire.error_codec import Refusal
from parties.wire.shares import CHUNK_BYTES, MESSAGE_BYTES

HEADER = struct.Struct("<B3xIQQQ")  # kind, bytes that follow, number, sequence, size
END, MESSAGE, FRAME, REFUSAL = range(4)
MOST = {END: (0, 0), MESSAGE: (0, MESSAGE_BYTES), FRAME: (1, CHUNK_BYTES), REFUSAL: (0, 1 << 16)}


class LineCall:
    """A call over a line. peer: the other side's name; parse: of a message that has come. One thread iterates over what
    comes, another one writes."""

    def __init__(self, line: Line, peer: str, parse: Callable[[bytes], Any]) -> None:
        self.line = line
        self.peer = peer
        self._parse = parse
        self._over = threading.Event()  # what comes has ended
        self._left = {"coming", "going"}  # directions that have not ended

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        """Return the next message. Raises `Refusal`, `WireError` naming the peer, `OSError` when the line was lost."""
        try:
            with self.line:
                return self._next()
        except BaseException:
            self._over.set()
            self._end_of("coming")
            raise

    def _next(self) -> Any:
        kind, length, number, sequence, size = HEADER.unpack(self.line.read(HEADER.size))
        least, most = MOST.get(kind, (1, 0))
        if not least <= length <= most:
            raise WireError(f"{self.peer} announced a record of kind {kind} and {length} bytes beside gRPC")
        if kind == END:
            raise StopIteration
        content = self.line.read(length) if length else b""
        if kind == FRAME:
            return Piece(sequence, size, content, number)
        try:
            if kind == MESSAGE:
                return self._parse(content)
            raise Refusal(wire.Failure.FromString(content))
        except DecodeError:
            raise WireError(f"{self.peer} sent a record of kind {kind} that cannot be read") from None

    def send(self, message: Any) -> None:
        """Send one message. Raises `OSError` when the line was lost."""
        if isinstance(message, Piece):
            size = len(message.payload)
            with self.line:
                self.line.send(HEADER.pack(FRAME, size, message.number, message.sequence, message.size), message.payload)
        else:
            self._send(MESSAGE, message.SerializeToString())

    def end(self) -> None:
        """End what this side sends, in good order."""
        self._send(END, b"")

    def refuse(self, failure: bytes) -> None:
        """Say why this side refuses or ends the call. failure: a `Failure`."""
        self._send(REFUSAL, failure)

    def write(self, messages: Iterator[Any], lost: Callable[[], None]) -> None:
        """Send messages until they end, then that they have. lost(): called where the line is lost before."""
        try:
            for message in messages:
                self.send(message)
            self.end()
        except OSError:
            lost()
        finally:
            self._end_of("going")

    def wait_until_over(self, seconds: float) -> None:
        """Wait so long at most until the peer has ended its direction."""
        self._over.wait(seconds)

    def cancel(self) -> None:
        """End the call at once, in both directions."""
        self.line.close()

    def _send(self, kind: int, content: bytes) -> None:
        with self.line:
            self.line.send(HEADER.pack(kind, len(content), 0, 0, 0), content)

    def _end_of(self, direction: str) -> None:
        """Note that nothing more goes or comes; behind both directions the line is closed."""
        self._left.discard(direction)
        if not self._left:
            self.line.close()
