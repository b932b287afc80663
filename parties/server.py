"""What compute party and dealer have in common as servers: identity, sessions, pulse, typed refusals."""

from __future__ import annotations

import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

import grpc

from mpc.errors import ConfigurationError, MpcacheError, PeerLost, WireError
from parties import wire_pb2 as wire
from parties.admission import Admission, Ticket
from parties.certificates import Identity
from parties.config import RoleConfig, split_address
from parties.connection import abort_if_alive, start_server
from parties.events import event, refused
from parties.failures import from_failure, public, to_failure
from parties.health import Health
from parties.link import Link, Message
from parties.loads import Loads
from parties.manifest import PROTOCOL_VERSION, Manifest, check_id, package_version
from parties.metrics import Metrics
from parties.permissions import Permissions
from parties.probing import Prober
from parties.program import DECODER, Program, preload
from parties.pulse import Pulse
from parties.resume import stream_of
from parties.roles import Role
from parties.session import Session
from parties.settings import Settings
from parties.traces import SessionTrace, Traces
from parties.trust import Trust, own_identity, peers_of

REMEMBERED = 1024
LOOK_SECONDS = 0.25


class ServedSession(Session):
    """A session at a server. ticket: its place there; trace: its spans."""

    manifest: Manifest
    ticket: Ticket
    trace: SessionTrace


S = TypeVar("S", bound=ServedSession)


class Sessions(Generic[S]):
    """The sessions of a server, those that wait for their turn as well; no id twice."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._changed = threading.Condition()
        self._live: dict[str, S] = {}
        # What ended a session is remembered in its wire form: an exception holds on to the frames that it went through,
        # and to the shares in them.
        self._over: OrderedDict[str, wire.Failure | None] = OrderedDict()
        self._reported: weakref.WeakSet[MpcacheError] = weakref.WeakSet()

    def add(self, session: S) -> None:
        """Register a session. Raises the error that ended the session of this id, or `WireError` if it is used."""
        with self._changed:
            self._raise_again(session.id)
            if session.id in self._live or session.id in self._over:
                raise WireError(f"session {session.id} was opened at {self._name} before: every session needs a new id")
            self._live[session.id] = session
            self._changed.notify_all()

    def remove(self, session: S) -> None:
        """The session is over; its id is remembered."""
        with self._changed:
            if self._live.pop(session.id, None) is not None:
                error = None if session.finished else session.error
                self._over[session.id] = None if error is None else to_failure(error)
                if error is not None:
                    self._reported.add(error)
                while len(self._over) > REMEMBERED:
                    self._over.popitem(last=False)
            self._changed.notify_all()

    def wait_for(self, id: str, seconds: float, check: Callable[[], None] = lambda: None) -> S | None:
        """The live session `id`, waiting for it to be opened; None after `seconds` or when it is over.

        check() is called now and then and may raise to give up. Raises the error that ended it.
        """
        limit = time.monotonic() + seconds
        with self._changed:
            while id not in self._live and id not in self._over and (left := limit - time.monotonic()) > 0:
                check()
                self._changed.wait(min(left, LOOK_SECONDS))
            self._raise_again(id)
            return self._live.get(id)

    def _raise_again(self, id: str) -> None:
        """Raise the error that ended the session `id`, if one did."""
        if (failure := self._over.get(id)) is not None:
            error = from_failure(failure, self._name)
            self._reported.add(error)
            raise error

    def ended_by(self, error: MpcacheError) -> bool:
        """Whether this very error ended some session, which reports it."""
        with self._changed:
            return any(s.error is error for s in self._live.values()) or error in self._reported

    def all(self) -> list[S]:
        """All live sessions."""
        with self._changed:
            return list(self._live.values())


class RoleServer(ABC, Generic[S]):
    """A role that listens. `start()`, then `wait()` or `stop()`; `address` is where it listens.

    Raises `ConfigurationError` for a wrong role or certificate, `EnvironmentProblem` when the port is taken.
    """

    role: Role
    service: str  # of the wire definition

    def __init__(self, config: RoleConfig, program: Program = DECODER) -> None:
        if config.role != self.role:
            raise ConfigurationError(f"configuration is for role '{config.role}', not for '{self.role}'")
        self.config = config
        self.name = config.name
        self.program = program
        self.version = package_version()
        self.credentials = own_identity(config)
        self.trust = Trust(peers_of(config), lambda: self.identity)
        self.permissions = Permissions(config)
        self.sessions: Sessions[S] = Sessions(config.name)
        self.admission = self.make_admission()
        self.loads = Loads(config.limits.max_loads)
        self.draining = False
        self.traces = Traces(config.telemetry, config.name, config.role, self.version)
        self.metrics = Metrics(self)
        self.health = Health([self.service], lambda context: self.admit_call(context, self.permissions.may_ask))
        self.prober = Prober(config.name, self.trust)
        self.address = self.metrics_address = self.health_address = ""
        self.pulse: Pulse
        self._calls = 0  # streams that are open
        self._idle = threading.Condition()
        self._server: grpc.Server | None = None
        self._threads: ThreadPoolExecutor | None = None

    @property
    def identity(self) -> Identity:
        """The identity of the moment: a renewed certificate is used from when it lies in the folder."""
        return self.credentials.current

    @abstractmethod
    def register(self, server: grpc.Server) -> None:
        """Add the role's service to the gRPC server."""

    def make_admission(self) -> Admission:
        """The places for sessions."""
        limits = self.config.limits
        return Admission(
            self.name, limits.max_sessions, limits.max_queued, self.permissions.sessions, self.config.queue_seconds
        )

    def check_open(self) -> None:
        """Raise `PeerLost`, naming this server, when it takes no more sessions."""
        if self.draining:
            raise PeerLost(self.name, "opening the session", "is shutting down")

    def check_parties(self, who: str, listed: Sequence[str]) -> None:
        """Raise `ConfigurationError` unless `who` names the parties of this configuration, in the same order."""
        if list(listed) != self.config.party_names:
            raise ConfigurationError(
                f"{who} lists parties {', '.join(listed)[:200]}, {self.name} is configured with "
                f"{', '.join(self.config.party_names)}: all roles need the same parties in the same order"
            )

    def hold(self, ticket: Ticket, make: Callable[[], S]) -> S:
        """A new session with its place; the place is free again if there is none."""
        try:
            session = make()
            self.sessions.add(session)
        except BaseException:
            self.admission.leave(ticket)
            raise
        return session

    def report(self, session: S, began: float, client: str | None = None, **facts: Any) -> None:
        """Log and count a session that is over. began: by `time.perf_counter`. client: None at the dealer."""
        error, suite = None if session.finished else session.error, session.manifest.suite
        outcome, seconds = "complete" if error is None else error.code, time.perf_counter() - began - session.ticket.waited
        event(
            "session_ended",
            self.name,
            session=session.id,
            client=client,
            outcome=outcome,
            error=None if error is None else str(error),
            step=None if error is None else session.step,
            seconds=seconds,
            queue_seconds=session.ticket.waited,
            **facts,
        )
        get = self.metrics.get
        get("mpcache_sessions_ended_total", client=client or "", suite=suite, outcome=outcome).inc()
        get("mpcache_queue_seconds").observe(session.ticket.waited)
        get("mpcache_session_seconds", suite=suite).observe(seconds)
        get("mpcache_tape_bytes_total").inc(facts["tape_bytes"])
        session.trace.end(outcome, **facts)

    def release(self, session: S) -> None:
        """A session is over: its place is free."""
        self.sessions.remove(session)
        self.loads.release(session)
        self.admission.leave(session.ticket)

    def wake(self) -> None:
        """A session has failed: let its thread see that, wherever it waits."""
        self.admission.wake()
        self.loads.wake()

    def start(self) -> None:
        """Listen and serve in the background."""
        assert self.config.listen is not None
        preload()
        limits = self.config.limits
        calls = (2 * limits.max_sessions + limits.max_queued) * (len(self.config.parties) + 1) + 16
        self.pulse = Pulse(self.config.deadline_seconds, self.config.step_seconds, lambda: self.identity.revoked)
        try:
            if self.config.metrics is not None:
                self.metrics_address = self.metrics.listen(self.config.metrics)
            if self.config.health_port is not None:
                self.health_address = self.health.listen(self.config.health_port)
            self._server, self._threads, port = start_server(self.credentials, self.config.listen, self._register_all, calls)
        except BaseException:
            self._close_monitoring()
            self.pulse.stop()
            raise
        self.credentials.watch()
        host, _ = split_address(self.config.listen, listening=True)
        self.address = f"{host}:{port}"
        self.health.set(True)
        event(
            "listening",
            self.name,
            role=self.role,
            address=self.address,
            version=self.version,
            metrics=self.metrics_address or None,
            health=self.health_address or None,
        )

    def _register_all(self, server: grpc.Server) -> None:
        self.register(server)
        self.health.register(server)

    def _close_monitoring(self) -> None:
        self.metrics.stop()
        self.health.stop()
        self.traces.stop()

    def wait(self) -> None:
        """Block until the server is stopped."""
        if self._server is not None:
            self._server.wait_for_termination()

    def drain(self, seconds: float) -> bool:
        """Take no more sessions, end those that wait for their turn, and let the others end. False if some did not in time.

        Models that are being stored count as sessions.
        """
        self.draining = True
        self.health.set(False)
        if self._server is None:
            return True
        event("draining", self.name, running=self.admission.count("running"), grace_seconds=seconds)
        for session in self.sessions.all():
            if session.ticket.state != "running":
                session.fail(PeerLost(self.name, session.step, "is shutting down"))
        with self._idle:
            return self._idle.wait_for(lambda: self._calls == 0, seconds)

    def stop(self, grace: float = 1.0) -> None:
        """End all sessions with an error that says so, and free port and threads."""
        if self._server is None or self._threads is None:
            return
        self.draining = True
        self.health.set(False)
        for session in self.sessions.all():
            session.fail(PeerLost(self.name, session.step, "is shutting down"))
        limit = time.monotonic() + grace
        while self.sessions.all() and time.monotonic() < limit:
            time.sleep(0.01)
        self._server.stop(grace).wait(grace + 1)
        self._threads.shutdown(wait=False, cancel_futures=True)
        self.pulse.stop()
        self.credentials.stop()
        self._close_monitoring()
        self._server = None
        event("stopped", self.name)

    def admit_call(
        self, context: Any, authorise: Callable[[str], None], act: Callable[[str], None] = lambda name: None
    ) -> str:
        """The caller's name, after act(name); ends the call with a typed status, and logs it, when one of both raises."""
        name = "unknown"
        try:
            name = self.trust.caller(context).name
            authorise(name)
            act(name)
        except Exception as problem:
            error = public(problem, self.name)
            self._refused(name, authorise, error)
            abort_if_alive(context, error)
            raise error from None
        return name

    def _refused(self, name: str, authorise: Callable[[str], None], error: MpcacheError) -> None:
        """Log a call that came to nothing, unless some session's end says the same."""
        call = authorise.__name__.removeprefix("may_")
        if not self.sessions.ended_by(error):
            refused(self.name, name, call, error)
            self.metrics.get("mpcache_calls_refused_total", call=call, code=error.code).inc()

    def serve(
        self,
        requests: Iterator[Message],
        context: Any,
        beat: Message | None,
        authorise: Callable[[str], None],
        accept: Callable[[Link, Message], tuple[Session, Iterator[Message]]],
    ) -> Iterator[Message]:
        """The responses of one streaming call.

        authorise(caller's name) may refuse; accept(link, first message) puts the link into a session and returns that and
        what is to be sent. A first message that asks to resume puts the call to a link that is there, instead. When the
        session fails, the call ends with its error as typed status.
        """
        link: Link | None = None
        session: Session | None = None
        error: MpcacheError | None = None
        name = "unknown"
        epoch = 0
        with self._idle:
            self._calls += 1
        try:
            found = self.trust.caller(context)
            name = found.name
            authorise(name)
            link = Link(Session("", self.name), name, beat, window=self.config.resume_seconds)
            link.key = lambda: found.fingerprint
            link.room = 1  # until it is accepted
            context.add_callback(link.over)
            link.start(requests, context.cancel)
            self.pulse.add(link)
            message = link.receive()
            if message.WhichOneof("content") == "resume":
                link, epoch, outgoing = self._resume(link, message.resume, requests, context)
                session = link.session
            else:
                session, outgoing = accept(link, message)
                link.beats()  # from here on the caller knows that the stream is open
            yield from outgoing
            if not session.finished:
                error = session.error
        except MpcacheError as problem:
            error = problem
        except Exception as problem:
            error = public(problem, self.name)
        finally:
            if link is not None and link.epoch == epoch and not link.may_return():
                self.pulse.remove(link)
                link.closed = True
            with self._idle:
                self._calls -= 1
                self._idle.notify_all()
        if error is not None:
            if session is None or not session.id:
                self._refused(name, authorise, error)
            abort_if_alive(context, error)

    def _resume(
        self, link: Link, resume: wire.Resume, requests: Iterator[Message], context: Any
    ) -> tuple[Link, int, Iterator[Message]]:
        """The link that goes on in this call, the call's epoch, and what is to be sent. `link` was only the call's own."""
        id = check_id(resume.session, "session", link.peer)
        found = stream_of(self.sessions.wait_for(id, 0), resume, link, self.name)
        found.key = link.key
        outgoing = found.resumed(resume, requests, context.cancel)
        self.pulse.remove(link)
        link.closed = True
        if not context.add_callback(lambda: found.over(resume.epoch)):
            found.over(resume.epoch)
        return found, resume.epoch, outgoing

    def describe(self, models: list[wire.HeldModel]) -> wire.Description:
        """Who this is."""
        return wire.Description(
            name=self.name,
            role=self.role,
            version=self.version,
            protocol=PROTOCOL_VERSION,
            models=models,
            settings=Settings.of(self.config).canonical(),
        )

    def __enter__(self) -> RoleServer[S]:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()
