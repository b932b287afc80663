"""A stream that outlives its connection: what is kept, who may go on with it, and why no randomness is used twice.

A link that may be resumed numbers its messages from 1 in each direction. The sender keeps every message until the other side
says that it has arrived; heartbeats say so, at the latest after `TOLD_EVERY` messages. When the connection is lost, the
dialling side calls again with back-off, and both say how many messages they have received: the kept rest is sent again.

Why this is safe. A message is made once, by the program's one run, and is never changed after it was sent: what is sent
again is the same object, so the same bytes. Nothing is computed again and the tape is read on where it was: a mask still
covers the one value that it covered before, and whoever saw both copies has seen one. The receiver takes numbers in order
and each once, so the program sees every message exactly once. Nothing is written to disk: a process that was started anew
has neither the kept messages nor the secret, cannot resume, and says so; its session ends and the next one has new
randomness.

Who may resume. The dialling side draws 256 random bits and sends them with its first message, inside mutual TLS. A resume
must come from the same certificate's name, prove that it knows them (HMAC-SHA256 over session, epoch and count), and carry
an epoch greater than all before: a replay, or the slower one of two calls, is refused without harm to the stream that lives.
"""

from __future__ import annotations

import hmac
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc

from mpc.errors import WireError
from parties.wire import wire_pb2 as wire

Message = Any
TOLD_EVERY = 32  # messages after which their arrival is told
KEPT_LIMIT = 256  # messages of at most 1 MiB that may be kept before the next round waits
SECRET_BYTES = 32
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0


class UnacknowledgedQueue:
    """Numbered messages that have been sent, until they are known to have arrived. Not safe for threads by itself."""

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

    def told(self, received: int, peer: str) -> None:
        """The other side has received so many. Raises `WireError` for more than were sent."""
        if received > self.sent:
            raise WireError(f"{peer} says that it has received message {received}, but {self.sent} were sent")
        while self.arrived < received:
            self._messages.popleft()
            self.arrived += 1

    def rest(self, received: int, peer: str) -> list[Message]:
        """What must be sent again to a side that has received so many. Raises `WireError` for what cannot be."""
        if received < self.arrived:
            raise WireError(f"{peer} says that it has received message {received}, but it said {self.arrived} before")
        self.told(received, peer)
        return list(self._messages)


@dataclass(frozen=True)
class Route:
    """How the dialling side reaches its peer again.

    channel(): a new channel, nothing waited for; raises `PeerLost` without one. call(channel): the streaming call on it.
    why(): in words, why the peer cannot be reached now. key(channel): fingerprint of the key that the channel is made with.
    """

    channel: Callable[[], grpc.Channel]
    call: Callable[[grpc.Channel], Callable[[Iterator[Message]], Any]]
    why: Callable[[], str]
    key: Callable[[grpc.Channel], str]


def proof(secret: bytes, session: str, epoch: int, received: int) -> bytes:
    """What shows that a resume comes from who opened the stream. secret: 256 bits, known to both sides."""
    text = f"mpcache resume {session} {epoch} {received}"
    return hmac.digest(secret, text.encode(), "sha256")


def request(secret: bytes, session: str, epoch: int, received: int) -> wire.Resume:
    """A resume message."""
    return wire.Resume(session=session, epoch=epoch, received=received, proof=proof(secret, session, epoch, received))
