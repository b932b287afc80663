"""The compute parties' `Channel` over gRPC: rounds as frames of at most 1 MiB in one stream per pair of parties."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from mpc.channel import Channel
from mpc.errors import WireError
from mpc.in_step import StepMember
from mpc.ledger import Ledger
from parties.transport.peer_stream import PeerStream
from parties.transport.pieces import Piece
from parties.transport.queues import Message
from parties.wire import wire_pb2 as wire
from parties.wire.shares import CHUNK_BYTES


def frames(payload: bytes, first: int) -> Iterator[Piece]:
    """Yield a message as frames of at most 1 MiB, the first of which has number `first`. They refer to it."""
    size = len(payload)
    view = memoryview(payload)
    for number, start in enumerate(range(0, size, CHUNK_BYTES), first):
        yield Piece(number, size, payload if size <= CHUNK_BYTES else view[start : start + CHUNK_BYTES])


def frame_of(message: Message, number: int, name: str) -> wire.Frame | Piece:
    """Return the frame of this number that a message must be. Raises `WireError` naming the sender."""
    if (kind := message.WhichOneof("content")) != "frame":
        raise WireError(f"{name} sent '{kind}' where a frame was expected")
    frame: wire.Frame | Piece = message.frame
    if frame.sequence != number:
        raise WireError(f"{name} sent frame {frame.sequence} where frame {number} was expected")
    return frame


class GrpcChannel(Channel):
    """One party's streams to all others, within one session.

    streams: peer index -> stream whose greeting is over. Frames are numbered in each direction; a frame declares the size of
    the whole message, which must be the one that the receiver's program expects. Messages without a byte are not sent.

    member: while it is set, rounds go with those of other sessions (`mpc.in_step`) and not over the streams. on_round():
    called after each round, once the ledger has it.
    """

    def __init__(
        self, party: int, names: Sequence[str], streams: Mapping[int, PeerStream], ledger: Ledger | None = None
    ) -> None:
        super().__init__(party, names, ledger)
        self._streams = dict(streams)
        self.sent_bytes = dict.fromkeys(streams, 0)  # payload, by peer
        self.received_bytes = dict.fromkeys(streams, 0)
        self._sent = dict.fromkeys(streams, 0)
        self._received = dict.fromkeys(streams, 0)
        self.member: StepMember | None = None
        self.on_round: Callable[[], None] = lambda: None

    def exchange(
        self,
        outgoing: Mapping[int, bytes],
        incoming: Mapping[int, int],
        shares: Mapping[tuple[str, str], int | tuple[int, int]] | None = None,
    ) -> dict[int, bytes]:
        """As in `Channel`."""
        received = super().exchange(outgoing, incoming, shares)
        self.on_round()
        return received

    def transfer(self, outgoing: Mapping[int, bytes], incoming: Mapping[int, int]) -> tuple[dict[int, bytes], float]:
        """As in `Channel`."""
        if self.member is None:
            return super().transfer(outgoing, incoming)
        sent_at = time.perf_counter()
        received = self.member.exchange(outgoing, incoming)
        for peer, payload in outgoing.items():
            self.sent_bytes[peer] += len(payload)
        for peer, payload in received.items():
            self.received_bytes[peer] += len(payload)
        return received, sent_at

    def send(self, peer: int, payload: bytes) -> None:
        """Queue one message for `peer`."""
        stream = self._streams[peer]
        stream.wait_for_room()
        for message in frames(payload, self._sent[peer]):
            stream.send(message)
            self._sent[peer] += 1
        self.sent_bytes[peer] += len(payload)

    def receive(self, peer: int, size: int) -> bytes:
        """Return the next message of `peer`. Raises the session's error, `PeerLost` or `WireError`."""
        if size == 0:
            return b""
        first = self._frame(peer, size, 0)
        if len(first) == size:
            return first
        pieces, got = [first], len(first)
        while got < size:
            pieces.append(self._frame(peer, size, got))
            got += len(pieces[-1])
        return b"".join(pieces)

    def _frame(self, peer: int, size: int, got: int) -> bytes:
        name = self.names[peer]
        frame = frame_of(self._streams[peer].receive(), self._received[peer], name)
        if frame.size != size:
            raise WireError(f"{name} announced a message of {frame.size} bytes where {size} were expected")
        payload = bytes(frame.payload)  # the same object where these are bytes
        if not payload or got + len(payload) > size:
            raise WireError(f"{name} sent {len(payload)} bytes in a frame where 1 to {size - got} were expected")
        self._received[peer] += 1
        self.received_bytes[peer] += len(payload)
        return payload
