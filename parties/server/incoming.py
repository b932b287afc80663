"""The calls that reach a server: who may make them, what they say first, and how they end with a typed status."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from mpc.errors import MpcacheError
from parties import events
from parties.config.role_config import RoleConfig
from parties.identity.trust import Shown, Trust
from parties.server.metrics import Metrics
from parties.server.sessions import Sessions
from parties.transport.connection import abort_if_alive
from parties.transport.heartbeat import HeartbeatMonitor
from parties.transport.opening import FirstMessage, accepted, resumable_stream
from parties.transport.peer_stream import PeerStream
from parties.transport.queues import Message
from parties.transport.resumption import GRPC
from parties.transport.session import Session
from parties.wire.error_codec import public
from parties.wire.manifest import check_id

BEATS = 5  # signs of life within a deadline
Authorise = Callable[[str], None]


@dataclass(frozen=True)
class StreamCall:
    """What a server does with one kind of streaming call.

    heartbeat: the sign of life for its callers. authorise(caller's name) may refuse. accept(stream, first message) puts the
    stream into a session and returns that and what is to be sent. foresee(stream, first message) returns what is to be done
    before, while the caller is sent signs of life; None for nothing.
    """

    heartbeat: Message
    authorise: Authorise
    accept: Callable[[PeerStream, Message], tuple[Session, Iterator[Message]]]
    foresee: Callable[[PeerStream, Message], Callable[[], object] | None] = lambda stream, message: None


class Refusals:
    """Ends calls that come to nothing, and logs and counts them, unless some session's end says the same."""

    def __init__(self, server: str, sessions: Sessions[Any], metrics: Metrics) -> None:
        self._server = server
        self._sessions = sessions
        self._metrics = metrics

    def refuse(self, context: Any, name: str, call: str, error: MpcacheError) -> None:
        """End a call of `name` with a typed status. call: its name in logs and metrics."""
        self.report(name, call, error)
        abort_if_alive(context, error)

    def report(self, name: str, call: str, error: MpcacheError) -> None:
        """Log and count a call of `name` that came to nothing."""
        if not self._sessions.ended_by(error):
            events.refused(self._server, name, call, error)
            self._metrics.get("mpcache_calls_refused_total", call=call, code=error.code).inc()


class IncomingCalls:
    """The calls of one server: single ones are admitted, streaming ones served. find(id): the session that has streams under
    this id."""

    def __init__(
        self,
        config: RoleConfig,
        trust: Trust,
        find: Callable[[str], Session | None],
        heartbeats: HeartbeatMonitor,
        refusals: Refusals,
    ) -> None:
        self._config = config
        self._trust = trust
        self._find = find
        self._heartbeats = heartbeats
        self._refusals = refusals
        self.offer: Callable[[PeerStream], None] = lambda stream: None  # of a line, to a stream that was accepted
        self._open = 0  # streams
        self._idle = threading.Condition()

    def caller(self, context: Any) -> str:
        """Return the caller's name. Raises `PermissionRefused` as `Trust.caller` does."""
        return self._trust.caller(context).name

    def admit(self, context: Any, authorise: Authorise, act: Callable[[str], None] = lambda name: None) -> str:
        """Return the caller's name, after act(name); end the call with a typed status, and log it, when one of both
        raises."""
        name = "unknown"
        try:
            name = self.caller(context)
            authorise(name)
            act(name)
        except Exception as problem:
            error = public(problem, self._config.name)
            self._refusals.refuse(context, name, call_of(authorise), error)
            raise error from None
        return name

    def wait_until_idle(self, seconds: float) -> bool:
        """Wait so long at most until no streaming call is open; False when one still is."""
        with self._idle:
            return self._idle.wait_for(lambda: self._open == 0, seconds)

    def serve(self, requests: Iterator[Message], context: Any, call: StreamCall) -> Iterator[Message]:
        """Yield the responses of one streaming call.

        A first message that asks to resume puts the call to a stream that is there, instead of a new one. When the session
        fails, the call ends with its error as typed status.
        """
        with self._idle:
            self._open += 1
        try:
            yield from self._serve(requests, context, call)
        finally:
            with self._idle:
                self._open -= 1
                self._idle.notify_all()

    def _serve(self, requests: Iterator[Message], context: Any, call: StreamCall) -> Iterator[Message]:
        stream: PeerStream | None = None
        session: Session | None = None
        own: Session | None = None  # of the stream, until it is accepted into another one
        error: MpcacheError | None = None
        name, epoch, server = "unknown", 0, self._config.name
        try:
            found = self._trust.caller(context)
            name = found.name
            call.authorise(name)
            times = self._config
            message = FirstMessage(requests, name).wait(times.first_message_seconds, times.deadline_seconds, server)
            found = self._trust.caller(context)  # again: its key may have been revoked while the message was waited for
            if message.WhichOneof("content") == "resume":
                stream, outgoing = self._resume(requests, context, call, found, message)
                session, epoch = stream.session, message.resume.epoch
            else:
                stream = self._new_stream(requests, context, call, found, message)
                own = stream.session
                if (work := call.foresee(stream, message)) is not None:
                    yield from self._meanwhile(stream, work)
                session, outgoing = call.accept(stream, message)
                stream.beat()  # from here on the caller knows that the stream is open
                self.offer(stream)
            yield from outgoing
            if not session.finished:
                error = session.error
        except MpcacheError as problem:
            error = problem
        except Exception as problem:
            error = public(problem, server)
        finally:
            if stream is not None and stream.leave_call(epoch):
                self._heartbeats.remove(stream)
            if own is not None and session is None:
                own.end()  # nobody will read what the caller still sends: let the reader see the call's end
        if error is not None:
            if session is None or not session.id:
                self._refusals.report(name, call_of(call.authorise), error)
            abort_if_alive(context, error)

    def _new_stream(
        self, requests: Iterator[Message], context: Any, call: StreamCall, caller: Shown, first: Message
    ) -> PeerStream:
        """Return the stream of a call whose first message was read, in a session of its own."""
        session = Session("", self._config.name)
        stream = accepted(session, caller.name, self._config.resume_seconds, call.heartbeat, first)
        stream.key = lambda: caller.fingerprint
        stream.room = 1  # until it is accepted
        if not context.add_callback(stream.call_over):
            stream.call_over()
        stream.start(requests, context.cancel)
        self._heartbeats.add(stream)
        return stream

    def _meanwhile(self, stream: PeerStream, work: Callable[[], object]) -> Iterator[Message]:
        """Yield signs of life until work() is done. Raises what it raises, or the call's error."""
        with ThreadPoolExecutor(1, thread_name_prefix="foresee") as pool:
            running = pool.submit(work)
            while not wait([running], self._config.deadline_seconds / BEATS).done:
                stream.session.check()
                yield stream.heartbeat
        running.result()

    def _resume(
        self, requests: Iterator[Message], context: Any, call: StreamCall, caller: Shown, message: Message
    ) -> tuple[PeerStream, Iterator[Message]]:
        """Return the stream that goes on in this call, and what is to be sent."""
        resume, kind = message.resume, type(call.heartbeat)
        id = check_id(resume.session, "session", caller.name)
        session = self._find(id)
        stream = resumable_stream(session, resume, caller.name, kind, self._config.name)
        stream.key = lambda: caller.fingerprint
        outgoing = stream.resumed(resume, requests, context.cancel, getattr(context, "way", GRPC))
        if not context.add_callback(lambda: stream.call_over(resume.epoch)):
            stream.call_over(resume.epoch)
        return stream, outgoing


def call_of(authorise: Authorise) -> str:
    """Return the name of a call in logs and metrics."""
    return authorise.__name__.removeprefix("may_")
