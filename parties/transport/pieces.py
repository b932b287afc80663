"""Frames of the parties' rounds whose payload stays where it is until gRPC must have a message of it.

A message of gRPC holds a copy of its payload. Beside gRPC (`parties.transport.line`) none is needed: a `Piece` is a frame
that refers to its part of the message that was sent, or holds the bytes that have arrived. Streams treat it as a message.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from parties.wire import wire_pb2 as wire


class Piece:
    """A frame, with the fields of `wire.PeerMessage` and of `wire.Frame`. payload: at most 1 MiB, which does not change.

    >>> piece = Piece(0, 3, b"abc")
    >>> piece.number = 7
    >>> piece.message().frame.payload, piece.message().number
    (b'abc', 7)
    """

    __slots__ = ("number", "payload", "sequence", "size")

    def __init__(self, sequence: int, size: int, payload: bytes | memoryview, number: int = 0) -> None:
        self.number = number
        self.sequence, self.size, self.payload = sequence, size, payload

    @property
    def frame(self) -> Piece:
        """Return the frame, as `wire.PeerMessage` does."""
        return self

    def WhichOneof(self, group: str) -> str:
        """Return that this is a frame, as `wire.PeerMessage` does."""
        return "frame"

    def message(self) -> wire.PeerMessage:
        """Return the message that gRPC sends: the same one each time."""
        message = wire.PeerMessage(number=self.number)  # filled in place: a frame that is handed over would be copied
        frame = message.frame
        frame.sequence, frame.size, frame.payload = self.sequence, self.size, bytes(self.payload)
        return message

    def SerializeToString(self) -> bytes:
        """Return the bytes of `message`."""
        data: bytes = self.message().SerializeToString()
        return data


def whole(messages: Iterable[Any]) -> Iterator[Any]:
    """Yield messages as gRPC sends them."""
    for message in messages:
        yield message.message() if isinstance(message, Piece) else message
