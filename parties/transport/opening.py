"""How streams begin: whether they may be resumed, the first message of an accepted one, and which stream a resume is for."""

from __future__ import annotations

import hmac
import threading
import time
from collections.abc import Iterator
from queue import Empty, SimpleQueue

from mpc.errors import PeerLost, PeerSilent, PermissionRefused
from mpc.random import new_seed
from parties.errors import SessionFinished
from parties.events import clean
from parties.transport.peer_stream import PeerStream, Receiving
from parties.transport.queues import Inbox, Message
from parties.transport.redialling import dial_again, say_last
from parties.transport.resumable_stream import ResumableStream
from parties.transport.resumption import SECRET_BYTES, Resumption, Route, proof
from parties.transport.session import Session
from parties.wire import wire_pb2 as wire
from parties.wire.error_codec import from_failure, from_rpc

STEP = "opening the session"
LOOK_SECONDS = 1.0


def dialled(
    session: Session, route: Route, window: float, heartbeat: Message, inbox: Inbox[PeerStream] | None = None
) -> PeerStream:
    """Return a stream that is about to be dialled; resumable for `window` seconds after a loss, unless that is 0."""
    if window <= 0:
        return PeerStream(session, route.peer, heartbeat, inbox)
    return ResumableStream(
        session, route.peer, heartbeat, Resumption(new_seed(), window, route, dial_again, say_last), inbox
    )


def accepted(session: Session, peer: str, window: float, heartbeat: Message, first: Message) -> PeerStream:
    """Return the stream of a caller that has sent its first message; resumable if that holds a secret. Nothing is read.

    Raises `WireError` when the first message of a resumable stream does not have number 1.
    """
    secret = getattr(first, "resume_secret", b"")
    if len(secret) != SECRET_BYTES:
        return PeerStream(session, peer, heartbeat)
    stream = ResumableStream(session, peer, heartbeat, Resumption(secret, window))
    stream.take_first(first)
    return stream


class FirstMessage:
    """The first message of a caller's stream, heartbeats apart, read by a thread of its own. Nothing after it is read."""

    def __init__(self, requests: Iterator[Message], peer: str) -> None:
        self._peer = peer
        self._found: SimpleQueue[Message | Exception | None] = SimpleQueue()  # None after the end of the stream
        self._last_heard = time.monotonic()
        threading.Thread(target=self._read, args=(requests,), name=f"first {peer}", daemon=True).start()

    def _read(self, requests: Iterator[Message]) -> None:
        try:
            for message in requests:
                self._last_heard = time.monotonic()
                if message.WhichOneof("content") != "heartbeat":
                    self._found.put(message)
                    return
            self._found.put(None)
        except Exception as error:  # gRPC raises plain exceptions on a server
            self._found.put(error)

    def wait(self, seconds: float, deadline: float, server: str) -> Message:
        """Return the message. server: who waits.

        Raises `PeerSilent` when it does not come within `seconds`, or nothing at all within `deadline` seconds, `PeerLost`
        when the call ends before it, `SessionFinished` or the caller's own error when that is all that it says.
        """
        message = self._wait(seconds, deadline, server)
        if isinstance(message, Exception):
            raise from_rpc(message, self._peer, STEP)
        kind = "end" if message is None else message.WhichOneof("content")
        if message is None or kind == "end":
            raise PeerLost(self._peer, STEP, "left the session early")
        if kind == "finish":
            raise SessionFinished("the client ended the session")
        if kind == "failure":
            raise from_failure(message.failure, self._peer)
        return message

    def _wait(self, seconds: float, deadline: float, server: str) -> Message | Exception | None:
        before = time.monotonic()
        limit = before + seconds
        while True:
            patience = min(LOOK_SECONDS, max(0.0, min(limit, self._last_heard + deadline) - before))
            try:
                return self._found.get(timeout=patience)
            except Empty:
                pass
            now = time.monotonic()
            if (paused := now - before - patience) > LOOK_SECONDS:  # this process stood still, the caller need not have
                limit += paused
                self._last_heard += paused
            before = now
            if now >= limit:
                reason = f"sent no first message within {seconds:g} s ('first_message_seconds' of {server})"
                raise PeerSilent(self._peer, "opening a call", reason)
            if now >= self._last_heard + deadline:
                raise PeerSilent(self._peer, STEP, f"sent nothing for {deadline:g} s")


def resumable_stream(session: Session | None, resume: wire.Resume, peer: str, kind: type, server: str) -> ResumableStream:
    """Return the stream that a resume of `peer` is for. kind: of the messages that are sent to it.

    Raises typed errors that say no more than the caller may know.
    """
    unknown = PeerLost(
        server,
        "resuming",
        f"holds no stream of session {clean(resume.session[:64])} with {peer}: it was started anew since, or the session is "
        "over; ask again",
    )
    if session is None:
        raise unknown
    streams = [s for s in session.streams if isinstance(s, ResumableStream) and s.peer == peer and s.kind is kind]
    if not streams or streams[0].receiving is Receiving.OVER:
        raise unknown
    if session.error is not None and not session.finished:
        raise session.error
    expected = proof(streams[0].secret, session.id, resume.epoch, resume.received)
    if not hmac.compare_digest(expected, resume.proof):
        raise PermissionRefused(f"{peer} may not resume session {session.id} at {server}: its proof is wrong")
    return streams[0]
