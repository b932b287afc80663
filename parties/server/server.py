"""What compute party and dealer have in common as servers: identity, sessions, heartbeats, typed refusals."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import MappingProxyType
from typing import Any, Generic, TypeVar

import grpc

from mpc.allocator import give_back
from mpc.errors import ConfigurationError, MpcacheError, PeerLost
from parties.config.role_config import RoleConfig, split_address
from parties.errors import Busy
from parties.events import event
from parties.identity.certificates import Identity
from parties.identity.trust import Trust, own_identity, peers_of
from parties.names import Role
from parties.program import MODEL, Program, preload
from parties.server.admission import Admission, Room, Ticket
from parties.server.calls import WAITING, Calls, Guard
from parties.server.cost_limits import Costs
from parties.server.health import Health
from parties.server.incoming import IncomingCalls, Refusals
from parties.server.lines import Lines
from parties.server.metrics import STATES, Metrics
from parties.server.permissions import Permissions
from parties.server.sessions import ServedSession, Sessions
from parties.server.traces import Traces
from parties.server.weight_cache import WeightCache
from parties.status.probing import Prober
from parties.status.settings import Settings
from parties.transport.connection import start_server
from parties.transport.heartbeat import HeartbeatMonitor
from parties.transport.session import Session
from parties.wire import wire_pb2 as wire
from parties.wire.manifest import PROTOCOL_VERSION, Manifest, check_generators, package_version

S = TypeVar("S", bound=ServedSession)


class RoleServer(ABC, Generic[S]):
    """A role that listens. `start()`, then `wait()` or `stop()`; `address` is where it listens.

    Raises `ConfigurationError` for a wrong role or certificate, `EnvironmentProblem` when the port is taken.
    """

    role: Role
    service: str  # of the wire definition

    def __init__(self, config: RoleConfig, program: Program = MODEL) -> None:
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
        self.calls = Calls(config.name, self.permissions)
        self.costs = Costs(config.name, self.permissions, config.limits.max_prediction_seconds)
        self.admission = self.make_admission()
        self.weight_cache = WeightCache(config.limits.max_loads, self.permissions.loads())
        self.rows_cache = WeightCache(config.limits.max_prefixes)
        self.draining = False
        self.traces = Traces(config.telemetry, config.name, config.role, self.version)
        self.metrics = Metrics(config.role, config.name, self.version, (grant.name for grant in config.clients))
        self._follow_gauges()
        self.heartbeats = HeartbeatMonitor(config.deadline_seconds, config.step_seconds, lambda: self.identity.revoked)
        self._refusals = Refusals(config.name, self.sessions, self.metrics)
        self.incoming = IncomingCalls(config, self.trust, self.find, self.heartbeats, self._refusals)
        self.health = Health([self.service], lambda context: self.incoming.admit(context, self.permissions.may_ask))
        self.lines = Lines(config, lambda: self.identity, self.incoming, self.permissions, self.calls)
        self.prober = Prober(config.name, self.trust)
        self.address = self.metrics_address = self.health_address = ""
        self._holding, self._stopping = threading.Lock(), threading.Lock()
        self._server: grpc.Server | None = None
        self._threads: ThreadPoolExecutor | None = None

    def _follow_gauges(self) -> None:
        """Let the metrics' gauges show what this server is doing."""
        follow = self.metrics.follow
        follow("mpcache_serving", lambda: not self.draining)
        for state in STATES:
            follow("mpcache_sessions", partial(self.admission.count, state), state=state)
        follow("mpcache_loaded_models", lambda: len(self.weight_cache))
        follow("mpcache_certificate_expiry_timestamp_seconds", lambda: self.identity.expires.timestamp())

    @property
    def identity(self) -> Identity:
        """Return the identity of the moment: a renewed certificate is used from when it lies in the folder."""
        return self.credentials.current

    @abstractmethod
    def register(self, server: grpc.Server) -> None:
        """Add the role's service to the gRPC server."""

    def find(self, id: str) -> Session | None:
        """Return what has streams under this id, None without it. Raises the error that ended a session."""
        return self.sessions.wait_for(id, 0)

    def make_admission(self) -> Admission:
        """Return the places for sessions."""
        limits = self.config.limits
        room = Room(limits.max_sessions, limits.max_queued, limits.cached_bytes, limits.max_sent_bytes_together)
        return Admission(self.name, room, self.permissions.sessions, self.config.queue_seconds)

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

    def check_program(self, who: str, manifest: Manifest) -> None:
        """As `check_parties`, of a session; raises `ManifestMismatch` where a party's generator is another one here."""
        self.check_parties(who, manifest.parties)
        check_generators(manifest, who, self.config.generators, self.name)

    def hold(self, ticket: Ticket, make: Callable[[], S]) -> S:
        """Return a new session with its place; the place is free again if there is none.

        Raises `Busy` when the client's sessions use as many loads as they may.
        """
        try:
            session = make()
            with self._holding:
                self._check_loads(session)
                self.sessions.add(session)
        except BaseException:
            self.admission.leave(ticket)
            raise
        return session

    def _check_loads(self, session: S) -> None:
        """Raise `Busy` when the client's sessions use other loads already, as many as they may at a time. One that has left
        its place has computed, and is about to end."""
        client, key, most = session.ticket.client, session.manifest.load_key(), self.permissions.loads()
        here = [s for s in self.sessions.all() if s.ticket.client == client and s.ticket.state != "left"]
        others = {s.manifest.load_key() for s in here} - {key}
        if len(others) >= most:
            raise Busy(
                f"sessions of '{client}' use {len(others)} other models or sets of options at {self.name}, as many as they "
                f"may at a time ('max_loads_per_client' in its 'limits'): wait for their end"
            )

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
        """Free the place of a session that is over, and what it has freed."""
        self.sessions.remove(session)
        self.weight_cache.release(session)
        self.admission.leave(session.ticket)
        give_back()

    def wake(self) -> None:
        """Let the thread of a session that has failed see that, wherever it waits."""
        self.admission.wake()
        self.weight_cache.wake()

    def start(self) -> None:
        """Listen and serve in the background."""
        assert self.config.listen is not None
        preload()
        try:
            if self.config.metrics is not None:
                self.metrics_address = self.metrics.listen(self.config.metrics)
            if self.config.health_port is not None:
                self.health_address = self.health.listen(self.config.health_port)
            seconds = self.config.first_message_seconds
            guard = Guard(self.calls, self.permissions, seconds, self.incoming.caller, self._refusals.refuse)
            self._server, self._threads, port = start_server(
                self.credentials, self.config.listen, self._register_all, self.calls.threads, WAITING, guard
            )
            if self.config.bulk != "off":
                self.lines.start()
        except BaseException:
            self.lines.stop()
            if self._server is not None:
                self._server.stop(0)
                self._server = None
            self._close_monitoring()
            self.heartbeats.stop()
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
        return self.incoming.wait_until_idle(seconds)

    def fail(self, error: MpcacheError) -> None:
        """End all sessions with an error that this server cannot go on after, and take no more."""
        self.draining = True
        for session in self.sessions.all():
            session.fail(error)

    def stop(self, grace: float = 1.0) -> None:
        """End all sessions with an error that says so, and free port and threads. Whoever calls it while another thread does
        returns once that has stopped the server."""
        with self._stopping:
            if self._server is not None:
                self._stop(self._server, grace)

    def _stop(self, server: grpc.Server, grace: float) -> None:
        self.draining = True
        self.health.set(False)
        for session in self.sessions.all():
            session.fail(PeerLost(self.name, session.step, "is shutting down"))
        limit = time.monotonic() + grace
        while self.sessions.all() and time.monotonic() < limit:
            time.sleep(0.01)
        server.stop(grace).wait(grace + 1)
        self.lines.stop()
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
        self.heartbeats.stop()
        self.credentials.stop()
        self._close_monitoring()
        self._server = None
        event("stopped", self.name)

    def describe(self, models: list[wire.HeldModel], missing: Mapping[str, str] = MappingProxyType({})) -> wire.Description:
        """Return who this is. missing: peers that it does not reach, each with the reason."""
        return wire.Description(
            name=self.name,
            role=self.role,
            version=self.version,
            protocol=PROTOCOL_VERSION,
            models=models,
            settings=Settings.of(self.config).canonical(),
            missing=[wire.MissingPeer(name=name, reason=reason) for name, reason in missing.items()],
        )

    def __enter__(self) -> RoleServer[S]:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()
