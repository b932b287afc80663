"""The messages of sessions in step (`mpc.in_step`) over one gRPC stream per peer: frames of at most 1 MiB."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Sequence

from mpc.errors import PeerLost, WireError
from parties.transport.channel import frame_of, frames
from parties.transport.peer_stream import PeerStream, Receiving
from parties.transport.queues import Inbox, Message
from parties.transport.session import Session

LARGEST_MESSAGE = 1 << 32  # bytes


class StreamTrunk:
    """The `Trunk` of a group. session: of the streams; names: of all parties; party: this one's index. All streams share
    `inbox`; they are added before the first message."""

    def __init__(self, session: Session, names: Sequence[str], party: int) -> None:
        self.names = tuple(names)
        self.peers = tuple(i for i in range(len(names)) if i != party)
        self.ended: str | None = None
        self.inbox: Inbox[PeerStream] = Inbox()
        self._early: deque[tuple[PeerStream, Message]] = deque()  # read while others were not ready yet
        self._session = session
        self._streams: dict[int, PeerStream] = {}
        self._sent = dict.fromkeys(self.peers, 0)  # frames
        self._received = dict.fromkeys(self.peers, 0)
        self._pieces: dict[int, list[bytes]] = {peer: [] for peer in self.peers}  # of a message that is not whole yet

    def add(self, stream: PeerStream) -> None:
        """Let a stream, whose inbox is this one's, be the one to its peer."""
        self._streams[self.names.index(stream.peer)] = stream

    def wait_until_ready(self, peers: Collection[int]) -> None:
        """Wait until these peers, whose streams were added, have said that they are ready for messages. Raises as `next`,
        and `WireError` for one that says something else first."""
        waiting = {self._streams[peer] for peer in peers}
        for stream in waiting:
            stream.waiting_since = time.monotonic()
        while waiting:
            self._session.check()
            stream, message = self.inbox.get()
            if message is None and stream.receiving is not Receiving.OPEN:
                self._session.check()
                raise PeerLost(stream.peer, self._session.step, "left early")
            if message is not None and stream not in waiting:
                self._early.append((stream, message))
            elif message is not None:
                if (kind := message.WhichOneof("content")) != "ready":
                    raise WireError(f"{stream.peer} sent '{kind}' where 'ready' was expected")
                stream.waiting_since = None
                waiting.remove(stream)

    def send(self, peer: int, message: bytes) -> None:
        """As in `Trunk`. Raises the session's error."""
        stream = self._streams[peer]
        stream.wait_for_room()
        for frame in frames(message, self._sent[peer]):
            stream.send(frame)
            self._sent[peer] += 1

    def next(self, awaited: Collection[int]) -> tuple[int, bytes] | None:
        """As in `Trunk`; None after a part of a message as well. Raises the session's error, `PeerLost`, `WireError`."""
        self._session.check()
        for peer in awaited:
            self._streams[peer].waiting_since = self._streams[peer].waiting_since or time.monotonic()
        stream, message = self._early.popleft() if self._early else self.inbox.get()
        if message is None:
            self._session.check()
            self._look_for_ends()
            return None
        peer, name = self.names.index(stream.peer), stream.peer
        frame = frame_of(message, self._received[peer], name)
        self._received[peer] += 1
        pieces = self._pieces[peer]
        pieces.append(bytes(frame.payload))
        got = sum(map(len, pieces))
        if not frame.payload or frame.size > LARGEST_MESSAGE or got > frame.size:
            raise WireError(f"{name} sent {got} bytes of a message of {frame.size}, at most {LARGEST_MESSAGE} are expected")
        if got < frame.size:
            return None
        stream.waiting_since = None
        self._pieces[peer] = []
        return peer, b"".join(pieces) if len(pieces) > 1 else pieces[0]

    def wake(self) -> None:
        """As in `Trunk`."""
        for stream in list(self._streams.values())[:1]:
            self.inbox.put(stream, None)

    def _look_for_ends(self) -> None:
        """Note a peer that has ended its stream, all of which was read. Raises `PeerLost` for one in the middle of a
        message."""
        for peer, stream in self._streams.items():
            if stream.receiving is not Receiving.OPEN and self.inbox.empty():
                if self._pieces[peer]:
                    raise PeerLost(stream.peer, self._session.step, "ended in the middle of a message")
                self.ended = stream.peer
