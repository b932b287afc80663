"""The dealer: runs the sessions' program without any input and streams every party its part of the randomness.

It sees manifests and clients' names and nothing else: no share, no message of a round, no output.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
import torch
from torch import Tensor

from models.architectures import AnyArchitecture, parse_description
from models.encoding import EncodingPlan
from mpc.allocator import give_back
from mpc.errors import MpcacheError, WireError
from mpc.ledger import Ledger
from mpc.random import Prg, new_seed
from mpc.tape import DealerTape
from parties.config.role_config import RoleConfig
from parties.errors import SessionFinished
from parties.events import event
from parties.names import check_name
from parties.program import MODEL, Program, SessionProgram, plan_of
from parties.server.admission import Ticket
from parties.server.incoming import StreamCall
from parties.server.server import RoleServer
from parties.server.sessions import ServedSession
from parties.server.weight_cache import WeightLease
from parties.tapes.stream import TapeOutlet
from parties.transport.gathering import Gathering
from parties.transport.peer_stream import PeerStream
from parties.transport.queues import Message
from parties.transport.session import Session
from parties.wire import wire_pb2 as wire
from parties.wire import wire_pb2_grpc as services
from parties.wire.draft import kept_rows
from parties.wire.error_codec import public
from parties.wire.manifest import (
    Manifest,
    architecture_hash,
    check_client,
    check_id,
    check_tables,
    check_version,
    compare,
    new_id,
)
from protocols.suite import OutputShare

TAPE_BEAT = wire.TapeMessage(heartbeat=wire.Heartbeat())


@dataclass(frozen=True)
class HeldLoads:
    """Loads that a party holds, by id: of the model's weights, and of the rows of the prefix."""

    weights: list[str]
    rows: list[str]


@dataclass(frozen=True)
class Joined:
    """A party that has asked for its tape."""

    outlet: TapeOutlet
    loads: HeldLoads


class DealerSession(ServedSession):
    """One session at the dealer. It is the `Endpoint` of the generation program as well."""

    def __init__(
        self,
        server: DealerServer,
        id: str,
        manifest: Manifest,
        architecture: AnyArchitecture,
        first: str,
        ticket: Ticket,
    ) -> None:
        super().__init__(id, server.name)
        self.server = server
        self.ticket = ticket
        self.trace = server.traces.session(
            id, suite=manifest.suite, prompt_tokens=manifest.prompt_tokens, new_tokens=manifest.new_tokens
        )
        self.manifest = manifest
        self._program = SessionProgram.of(server.program, manifest, architecture, server.config.device)
        self._lease = server.weight_cache.lease(manifest.load_key(), ticket.client, self)
        self._rows: WeightLease | None = None
        if manifest.blocks:
            self._rows = server.rows_cache.lease(manifest.rows_key(), ticket.client, self)
        self._first = first
        self.ledger = Ledger()
        self._dealt = 0  # bytes up to the last token
        self._joined = Gathering[Joined](manifest.parties, self.check)

    def start(self) -> None:
        """Wait for the parties and deal, in the background."""
        threading.Thread(target=self._main, name=f"session {self.id[:8]}", daemon=True).start()

    def join(self, stream: PeerStream, manifest: Manifest, client: str, loads: HeldLoads) -> TapeOutlet:
        """Let a party have its tape. Raises `ManifestMismatch`, for everybody in the session, when it must not have it."""
        try:
            compare(self._first, self.manifest, stream.peer, manifest)
            check_client(self.id, self._first, self.ticket.client, stream.peer, client)
            if stream.peer not in self.manifest.parties:
                parties = ", ".join(self.manifest.parties)
                raise WireError(f"{stream.peer} is not among the parties of session {self.id}, which are {parties}")
            if stream.peer in self._joined:
                raise WireError(
                    f"{stream.peer} asked for its tape of session {self.id} twice: is it started on two hosts? Stop one"
                )
        except MpcacheError as error:
            self.fail(error)
            raise
        stream.move(self)
        outlet = TapeOutlet(stream)
        self._joined.add(stream.peer, Joined(outlet, loads))
        return outlet

    def on_fail(self) -> None:
        """Wake everybody who waits."""
        self._joined.wake()
        self.server.wake()
        for party in self._joined.here():
            party.outlet.wake()

    def _main(self) -> None:
        began = time.perf_counter()
        try:
            self.trace.stage("connect")
            joined = self._wait_for_parties()
            self.step = "waiting for its turn"
            self.trace.stage("queue")
            self.server.admission.wait(self.ticket, self.check)
            self._lease.claim(self.check)
            self.trace.stage("deal")
            with torch.inference_mode():
                self._deal(joined)
            self.server.admission.leave(self.ticket)  # the client may know of the end before the tapes are drained
            for party in joined.values():
                party.outlet.close()
            for party in joined.values():
                party.outlet.drained()
            self.settle()
        except SessionFinished:
            pass
        except Exception as error:
            self.fail(public(error, self.role))
        finally:
            self.end()
            for party in self._joined.here():
                party.outlet.close()
            for stream in self.streams:
                self.server.heartbeats.remove(stream)
                stream.close()
            try:
                self.server.report(self, began, tape_bytes=self.ledger.total().offline_bytes)
            finally:
                self.server.release(self)

    def _wait_for_parties(self) -> Mapping[str, Joined]:
        def waiting(missing: list[str]) -> None:
            self.step = f"waiting for {', '.join(missing)} to ask for its tape"

        return self._joined.wait(self.server.config.connect_seconds, f"did not ask {self.role} for its tape", waiting)

    def _deal(self, joined: Mapping[str, Joined]) -> None:
        names = self.manifest.parties
        held = [joined[name].loads for name in names]
        load, weights = _common(self._lease, [one.weights for one in held])
        rows_load, rows = ("", None) if self._rows is None else _common(self._rows, [one.rows for one in held])
        seeds = [new_seed() for _ in names]
        outlets = [joined[name].outlet for name in names]
        for outlet, seed in zip(outlets, seeds, strict=True):
            start = wire.TapeStart(seed=seed, load=load, fresh=weights is None, rows_load=rows_load, rows_fresh=rows is None)
            outlet.stream.send(wire.TapeMessage(start=start))
        prgs = [Prg(seed, self.manifest.generator(name)) for name, seed in zip(names, seeds, strict=True)]
        tape = DealerTape(prgs, lambda party, data: outlets[party].append(data), self.ledger, self._program.device)
        self._flush = tape.flush
        suite = self._program.suite(tape, None)
        if weights is None:
            self.step = "dealing for the model's weights"
            self.server.metrics.get("mpcache_model_loads_total").inc()
            weights = self._program.load(suite, lambda name: None)
            give_back()
            self._lease.put(load, weights)
        self._lease.release()
        if self._rows is not None:
            if rows is None:
                self.step = "dealing for the rows of registered texts"
                rows = self._program.load_rows(suite, lambda number, name: None)
                self._rows.put(rows_load, rows)
            weights = {**weights, **rows}
        self._dealt = self.ledger.total().offline_bytes
        self.step = "dealing"
        self._program.run(suite, weights, None, self)
        tape.flush()

    # ---- the endpoint ------------------------------------------------------------------------------------------------
    def emit(self, step: int, share: OutputShare) -> bool:
        """Raise the session's error, and `ConfigurationError` where a token took more than it may."""
        self.check()
        self._flush()
        total = self.ledger.total().offline_bytes
        before, self._dealt = self._dealt, total
        plan = self._program.plan
        tokens = 1 if step else self.manifest.prompt_tokens
        if isinstance(plan, EncodingPlan):
            tokens = math.prod(plan.batches[step])
        self.server.costs.check_token((total - before) // tokens, self.ticket.client)
        if step == 0:
            give_back()  # a prompt works on more than a token
        return True

    def next_tokens(self, step: int, count: int) -> Tensor | None:
        return None

    def kept(self, step: int, rows: int) -> int:
        """Return what all parties say that the client said; deal no further before they have. Raises `WireError` where they
        say different things: the client must send all of them the same."""
        self.step = f"waiting for how many rows of output {step} stay"
        said: dict[str, int] = {}
        for party in self._joined.here():
            stream = party.outlet.stream
            said[stream.peer] = kept_rows(stream.receive(), step, rows, stream.peer)
        if len(set(said.values())) != 1:
            each = ", ".join(f"{peer} {said[peer]}" for peer in self.manifest.parties)
            raise WireError(f"the parties keep different numbers of rows of output {step}: {each}")
        return next(iter(said.values()))

    def progress(self, stage: str, done: int, total: int) -> None:
        """Remember the step for errors."""
        self.check()
        self.step = f"dealing for {stage} {done} of {total}"


def _common(lease: WeightLease, held: list[list[str]]) -> tuple[str, dict[str, Any] | None]:
    """Return the newest load that the dealer and all parties hold, by its id; a new id and None where there is none."""
    common = [load for load in lease.ids() if all(load in of_party for of_party in held)]
    found = lease.get(common[-1]) if common else None
    return (common[-1] if found is not None else new_id()), found


class DealerServer(RoleServer[DealerSession]):
    """The dealer as a server; see `RoleServer`."""

    role = "dealer"
    service = "mpcache.Dealer"

    def __init__(self, config: RoleConfig, program: Program = MODEL) -> None:
        super().__init__(config, program)
        self._opening = threading.Lock()

    def register(self, server: grpc.Server) -> None:
        """Add the Dealer service."""
        services.add_DealerServicer_to_server(_Service(self), server)

    def open(self, stream: PeerStream, message: Message) -> tuple[Session, Iterator[Message]]:
        """Let a party have its tape of a session; the first one that asks opens the session."""
        if message.WhichOneof("content") != "open":
            raise WireError(f"{stream.peer} sent '{message.WhichOneof('content')}' where 'open' was expected")
        opening = message.open
        id = check_id(opening.session, "session", stream.peer)
        manifest = Manifest.parse(opening.manifest, stream.peer)
        weights, rows = (
            [check_id(load, "load", stream.peer) for load in found] for found in (opening.loads, opening.rows_loads)
        )
        with self._opening:
            session = self.sessions.wait_for(id, 0)
            if session is None:
                session = self._new(id, manifest, opening.architecture, stream.peer, opening.client)
        outlet = session.join(stream, manifest, opening.client, HeldLoads(weights, rows))
        outlet.begin()
        return session, stream.outgoing()

    def foresee(self, stream: PeerStream, message: Message) -> Callable[[], object] | None:
        """Return what a session costs, if that takes time to predict."""
        if message.WhichOneof("content") != "open":
            return None
        opening = message.open
        manifest = Manifest.parse(opening.manifest, stream.peer)
        architecture = self._allowed(manifest, opening.architecture, stream.peer, opening.client)
        if self.costs.known(manifest, architecture):
            return None
        return lambda: self.costs.check(manifest, architecture, opening.client)

    def _allowed(self, manifest: Manifest, text: str, party: str, client: str) -> AnyArchitecture:
        """Return the architecture of a session that may be. Raises a typed error for one that may not."""
        check_name(client)
        check_version(manifest, party, self.version, self.name)
        self.check_program(party, manifest)
        architecture = parse_description(text)
        if architecture_hash(architecture) != manifest.architecture:
            raise WireError(f"{party} sent an architecture that is not the one of its manifest")
        check_tables(manifest, architecture, party, self.name)
        self.permissions.check_lengths(manifest, client)
        self.permissions.check_suite(manifest, client)
        plan_of(manifest, architecture)
        return architecture

    def _new(self, id: str, manifest: Manifest, text: str, party: str, client: str) -> DealerSession:
        architecture = self._allowed(manifest, text, party, client)
        self.check_open()
        self.costs.check(manifest, architecture, client)
        ticket = self.admission.expect(client)
        session = self.hold(ticket, lambda: DealerSession(self, id, manifest, architecture, party, ticket))
        event(
            "session_opened",
            self.name,
            session=id,
            suite=manifest.suite,
            prompt_tokens=manifest.prompt_tokens,
            new_tokens=manifest.new_tokens,
            decoding=manifest.decoding,
        )
        session.start()
        return session


class _Service(services.DealerServicer):  # type: ignore[misc]
    def __init__(self, dealer: DealerServer) -> None:
        self._dealer = dealer

    def Describe(self, request: wire.DescribeRequest, context: Any) -> wire.Description:
        self._dealer.incoming.admit(context, self._dealer.permissions.may_ask)
        return self._dealer.describe([])

    def Probe(self, requests: Iterator[Message], context: Any) -> Iterator[Message]:
        return self._dealer.prober.answer(requests, context, self._dealer.permissions.may_ask)

    def Tape(self, requests: Iterator[Message], context: Any) -> Iterator[Message]:
        dealer = self._dealer
        return dealer.incoming.serve(
            requests, context, StreamCall(TAPE_BEAT, dealer.permissions.may_have_tape, dealer.open, dealer.foresee)
        )
