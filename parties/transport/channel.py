"""The compute parties' `Channel` over gRPC: rounds as frames of at most 1 MiB in one stream per pair of parties."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mpc.channel import Channel
from mpc.errors import WireError
from mpc.ledger import Ledger
from parties.transport.peer_stream import PeerStream
from parties.wire import wire_pb2 as wire
from parties.wire.shares import CHUNK_BYTES


class GrpcChannel(Channel):
    """One party's streams to all others, within one session.

    streams: peer index -> stream whose greeting is over. Frames are numbered in each direction; a frame declares the size of
    the whole message, which must be the one that the receiver's program expects. Messages without a byte are not sent.
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

    def send(self, peer: int, payload: bytes) -> None:
        """Queue one message for `peer`."""
        stream, size = self._streams[peer], len(payload)
        stream.wait_for_room()
        sequence = self._sent[peer]
        for start in range(0, size, CHUNK_BYTES):
            piece = payload if size <= CHUNK_BYTES else payload[start : start + CHUNK_BYTES]
            message = wire.PeerMessage()  # filled in place: a frame that is handed over would be copied
            frame = message.frame
            frame.sequence, frame.size, frame.payload = sequence, size, piece
            stream.send(message)
            sequence += 1
        self._sent[peer] = sequence
        self.sent_bytes[peer] += size

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
        message = self._streams[peer].receive()
        name, kind = self.names[peer], message.WhichOneof("content")
        if kind != "frame":
            raise WireError(f"{name} sent '{kind}' where a frame was expected")
        frame = message.frame
        if frame.sequence != self._received[peer]:
            raise WireError(f"{name} sent frame {frame.sequence} where frame {self._received[peer]} was expected")
        if frame.size != size:
            raise WireError(f"{name} announced a message of {frame.size} bytes where {size} were expected")
        payload: bytes = frame.payload
        if not payload or got + len(payload) > size:
            raise WireError(f"{name} sent {len(payload)} bytes in a frame where 1 to {size - got} were expected")
        self._received[peer] += 1
        self.received_bytes[peer] += len(payload)
        return payload
