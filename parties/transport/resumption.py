"""A stream that outlives its connection: what is kept, who may go on with it, and why no randomness is used twice.

A stream that may be resumed (`parties.transport.resumable_stream`) numbers its messages from 1 in each direction. The sender
keeps every message until the other side says that it has arrived; heartbeats say so, at the latest after `TOLD_EVERY`
messages. When the connection is lost, the dialling side calls again with back-off, and both say how many messages they have
received: the kept rest is sent again.

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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum, auto
from queue import SimpleQueue
from typing import Any, Literal

import grpc

from mpc.errors import MpcacheError
from parties.transport.queues import Message
from parties.wire import wire_pb2 as wire

TOLD_EVERY = 32  # messages after which their arrival is told
UNACKNOWLEDGED_LIMIT = 256  # messages of at most 1 MiB that may be kept before the next round waits
SECRET_BYTES = 32
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0
MOST_LINES = 4  # that a stream tries
Way = Literal["grpc", "tls", "local"]
GRPC: Way = "grpc"


@dataclass(frozen=True)
class Route:
    """How the dialling side reaches its peer, and reaches it again.

    peer: its name. channel(): a new channel, nothing waited for; raises `PeerLost` without one. call(channel): the streaming
    call on it. why(): in words, why the peer cannot be reached now. key(channel): fingerprint of the key that the channel is
    made with. line(stream, offer): leads the stream to a line beside gRPC, in the caller's thread; None where it stays.
    """

    peer: str
    channel: Callable[[], grpc.Channel]
    call: Callable[[grpc.Channel], Callable[[Iterator[Message]], Any]]
    why: Callable[[], str]
    key: Callable[[grpc.Channel], str]
    line: Callable[[Any, wire.LineOffer], None] | None = None


class Connection(Enum):
    """Whether a stream has a connection; see the module."""

    UP = auto()
    LOST = auto()


@dataclass
class Loss:
    """A lost connection. error: what the stream fails with if it does not come back until `limit` (`time.monotonic`).
    reason: why the peer cannot be reached now, in words; empty where that is not known."""

    error: MpcacheError
    limit: float
    reason: str = ""


@dataclass(frozen=True)
class Resumption:
    """What a resumable stream needs. secret: known to both sides. window: seconds for which a lost connection may be made
    again. route: how, at the dialling side; None at the other one. dial_again(stream, route): does so, and reads the stream
    in the caller's thread. say_last(stream, route): tells the peer how much has arrived, when nothing more is to come."""

    secret: bytes = field(repr=False)
    window: float
    route: Route | None = None
    dial_again: Callable[[Any, Route], None] = lambda stream, route: None
    say_last: Callable[[Any, Route], None] = lambda stream, route: None


@dataclass(frozen=True)
class Call:
    """One call of a stream. outbox: what it is to send; cancel(): ends it at once; way: over gRPC, or over which line."""

    epoch: int
    outbox: SimpleQueue[Message | None]
    cancel: Callable[[], Any]
    way: Way = GRPC


def proof(secret: bytes, session: str, epoch: int, received: int) -> bytes:
    """Return what shows that a resume comes from who opened the stream. secret: 256 bits, known to both sides."""
    text = f"mpcache resume {session} {epoch} {received}"
    return hmac.digest(secret, text.encode(), "sha256")


def request(secret: bytes, session: str, epoch: int, received: int) -> wire.Resume:
    """Return a resume message."""
    return wire.Resume(session=session, epoch=epoch, received=received, proof=proof(secret, session, epoch, received))
