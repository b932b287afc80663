"""Records over a line beside gRPC: what is read and refused, and when a line's file is closed."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time

import pytest

from mpc.errors import WireError
from parties.transport.line import LocalLine
from parties.transport.pieces import Piece, whole
from parties.transport.records import FRAME, HEADER, MESSAGE, LineCall
from parties.wire import wire_pb2 as wire
from parties.wire.shares import CHUNK_BYTES, MESSAGE_BYTES


def pair() -> tuple[LineCall, socket.socket]:
    """A call over a line, and the other end's socket."""
    near, far = socket.socketpair()
    return LineCall(LocalLine(near), "party1", wire.PeerMessage.FromString), far


@pytest.mark.parametrize(
    ("kind", "length"),
    [
        (FRAME, 0),
        (FRAME, CHUNK_BYTES + 1),
        (FRAME, (1 << 32) - 1),
        (MESSAGE, MESSAGE_BYTES + 1),
        (0, 1),
        (3, 1 << 17),
        (9, 4),
    ],
)
def test_sizes_are_checked_before_anything_is_allocated(kind: int, length: int) -> None:
    call, far = pair()
    with far:
        far.sendall(HEADER.pack(kind, length, 1, 0, 8))
        with pytest.raises(WireError, match=f"party1 announced a record of kind {kind} and {length} bytes beside gRPC"):
            next(call)


def test_what_cannot_be_read_and_what_is_cut_off() -> None:
    call, far = pair()
    far.sendall(HEADER.pack(MESSAGE, 3, 0, 0, 0) + b"\xff\xff\xff")
    with pytest.raises(WireError, match="party1 sent a record of kind 1 that cannot be read"):
        next(call)
    far.sendall(HEADER.pack(FRAME, 9, 1, 0, 9) + b"only")
    far.close()
    with pytest.raises(OSError):
        next(call)


def test_messages_arrive_as_they_were_sent() -> None:
    """Frames at the bounds of their size, and every other kind, beside gRPC as in it."""
    call, far = pair()
    other = LineCall(LocalLine(far), "party0", wire.PeerMessage.FromString)
    sent = [Piece(i, 7, memoryview(os.urandom(size)), i + 1) for i, size in enumerate((1, 8191, 8192, CHUNK_BYTES))]
    messages = [*sent, wire.PeerMessage(ready=wire.Ready(), number=5), wire.PeerMessage(end=wire.End(), number=6)]
    writing = threading.Thread(target=call.write, args=(iter(messages), lambda: pytest.fail("lost")))
    writing.start()
    assert [m.SerializeToString() for m in other] == [m.SerializeToString() for m in whole(messages)]
    writing.join(5)
    assert struct.calcsize("<B3xIQQQ") == HEADER.size == 32


def test_a_file_is_closed_with_the_last_use() -> None:
    """Behind the ends of both directions; and of a line that is closed while it is read, by whoever reads it."""
    call, far = pair()
    other = LineCall(LocalLine(far), "party0", wire.PeerMessage.FromString)
    other.write(iter([]), lambda: pytest.fail("lost"))
    assert list(call) == []
    assert [file.fileno() >= 0 for file in (call.line._socket, far)] == [True, True]
    call.write(iter([]), lambda: pytest.fail("lost"))
    assert call.line._socket.fileno() == -1
    assert list(other) == []
    assert far.fileno() == -1

    call, far = pair()
    ended: list[BaseException] = []

    def read() -> None:
        try:
            next(call)
        except OSError as error:
            ended.append(error)

    reading = threading.Thread(target=read)
    reading.start()
    limit = time.monotonic() + 5
    while not call.line._users:
        assert time.monotonic() < limit
        time.sleep(0.01)
    call.line.close()
    reading.join(5)
    assert len(ended) == 1
    assert call.line._socket.fileno() == -1
    with pytest.raises(OSError, match="the line was closed"):
        call.end()
    far.close()
