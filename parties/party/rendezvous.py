"""How a session's parties meet: peers and dealer connected, greetings exchanged, places taken.

A party dials the parties of lower index, greets each and waits for its greeting, which comes once that party has its place
(`parties.server.admission`). Then it takes its own place, answers the greetings of the parties of higher index, which dial
it, and tells those that it has dialled that it is ready.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc

from mpc.errors import MpcacheError, WireError
from parties.config.role_config import RoleConfig
from parties.identity.certificates import Identity
from parties.identity.trust import Peer, dealer_of, parties_of
from parties.party.greeting import Greetings
from parties.tapes.agreement import Dealt, HeldWeights, Source
from parties.tapes.stream import tape_reader
from parties.transport.connection import connect, route
from parties.transport.gathering import Gathering
from parties.transport.heartbeat import HeartbeatMonitor
from parties.transport.line_dialling import with_lines
from parties.transport.opening import dialled
from parties.transport.peer_stream import INBOX_LIMIT, PeerStream
from parties.transport.queues import Message
from parties.transport.resumable_stream import ResumableStream
from parties.transport.resumption import Route
from parties.transport.session import Session
from parties.wire import wire_pb2 as wire
from parties.wire import wire_pb2_grpc as services
from parties.wire.error_codec import to_failure
from parties.wire.manifest import check_id

PEER_BEAT = wire.PeerMessage(heartbeat=wire.Heartbeat())
TAPE_BEAT = wire.TapeRequest(heartbeat=wire.Heartbeat())


@dataclass(frozen=True)
class Network:
    """How a party reaches others. identity(): its own of the moment. patience: seconds that a peer may take on top of the
    usual, since it may wait for a tape."""

    config: RoleConfig
    identity: Callable[[], Identity]
    heartbeats: HeartbeatMonitor
    patience: float

    def route(self, peer: Peer, call: Callable[[grpc.Channel], Any], parse: Callable[[bytes], Message]) -> Route:
        """Return how a stream to `peer` is dialled, and whether it may leave gRPC. parse: of a message that comes."""
        way = route(self.identity, peer, call)
        return way if self.config.bulk == "off" else with_lines(way, self.identity, peer, parse)


class Rendezvous:
    """The streams of one session to the other parties and to the dealer. progress(stage, done, total) tells the client."""

    def __init__(
        self, session: Session, network: Network, greetings: Greetings, progress: Callable[[str, int, int], None]
    ) -> None:
        self._session = session
        self._network = network
        self._config = network.config
        self._greetings = greetings
        self._progress = progress
        self._patience = network.config.queue_seconds + network.patience  # for a peer's answer, beyond a step's
        others = [name for name in network.config.party_names if name != network.config.name]
        self._attached = Gathering[PeerStream](others, session.check)
        self._tape: PeerStream | None = None
        self._channels: list[grpc.Channel] = []
        self._lock = threading.Lock()  # of who is attached and of placed: each peer is told of the place once
        self._placed = False  # this session has its place here and, at all parties that it dials, there

    # ---- the other parties -----------------------------------------------------------------------------------------
    def attach(self, stream: PeerStream, hello: wire.Hello) -> None:
        """Let a peer of higher index, which has dialled, join. Raises `ManifestMismatch` (and ends the session) when it must
        not."""
        names = self._config.party_names
        try:
            index = names.index(stream.peer) if stream.peer in names else -1
            self._greetings.heard(stream.peer, hello)
            if index <= self._config.index:
                raise WireError(f"{stream.peer} introduced itself as party {index}; higher indices dial lower ones")
        except MpcacheError as error:
            self._session.fail(error)
            raise
        with self._lock:
            if stream.peer in self._attached:  # the session goes on with the first one
                raise WireError(f"{stream.peer} dialled twice in one session")
            stream.move(self._session)
            stream.make_room(INBOX_LIMIT)
            self._attached.add(stream.peer, stream)
            if self._placed:
                stream.send(self._greetings.own())

    def meet(self, take_place: Callable[[], None]) -> dict[int, PeerStream]:
        """Connect with all other parties; return their streams by index. take_place() waits for this session's turn here."""
        for peer in parties_of(self._config)[: self._config.index]:
            self._greet(peer)
        take_place()
        own, index_of = self._config.index, self._config.party_names.index
        with self._lock:
            self._placed = True
            for stream in self._attached.here():
                higher = index_of(stream.peer) > own
                stream.send(self._greetings.own() if higher else wire.PeerMessage(ready=wire.Ready()))
        peers = {index_of(name): stream for name, stream in self._wait_until_attached().items()}
        for index in range(own + 1, len(self._config.parties)):
            self._wait_until_ready(peers[index])
        self._leave_grpc(list(peers.values()))
        return peers

    def _leave_grpc(self, streams: list[PeerStream]) -> None:
        """Wait until streams have left gRPC, where they must (`bulk: required`)."""
        for stream in streams if self._config.bulk == "required" else []:
            if isinstance(stream, ResumableStream):
                stream.wait_for_line(self._config.connect_seconds)

    def _greet(self, peer: Peer) -> None:
        """Dial a party of lower index and exchange greetings, which takes until it has its place."""
        channel = self._connect(peer)
        call = lambda channel: services.ComputePartyStub(channel).Exchange  # noqa: E731
        way = self._network.route(peer, call, wire.PeerMessage.FromString)
        stream = dialled(self._session, way, self._config.resume_seconds, PEER_BEAT)
        self._attached.add(peer.name, stream)
        stream.dial(way, channel, self._greetings.own())
        self._network.heartbeats.add(stream)
        self._session.step = f"greeting {peer.name}"
        reply = stream.receive(self._patience)
        if reply.WhichOneof("content") != "hello":
            raise WireError(f"{peer.name} did not answer a greeting with its own")
        self._greetings.heard(peer.name, reply.hello)

    def _connect(self, peer: Peer, patience: float = 0.0) -> grpc.Channel:
        self._session.step = f"connecting to {peer.name}"
        channel = connect(
            self._network.identity(),
            peer,
            max(self._config.connect_seconds, patience),
            self._session.check,
            lambda reason: self._progress(f"waiting for {reason}", 0, 0),
        )
        self._channels.append(channel)
        return channel

    def _wait_until_attached(self) -> Mapping[str, PeerStream]:
        seconds = self._config.connect_seconds + (self._network.patience if self._greetings.from_files else 0.0)

        def waiting(missing: list[str]) -> None:
            self._session.step = f"waiting for {', '.join(missing)} to connect"

        return self._attached.wait(seconds, f"did not connect to {self._session.role}", waiting)

    def _wait_until_ready(self, stream: PeerStream) -> None:
        self._progress(f"waiting for {stream.peer}", 0, 0)
        message = stream.receive(self._patience)
        if message.WhichOneof("content") != "ready":
            raise WireError(f"{stream.peer} sent '{message.WhichOneof('content')}' where 'ready' was expected")

    # ---- the dealer ------------------------------------------------------------------------------------------------
    def dealt(self, opening: wire.TapeOpen, weights: HeldWeights, rows: HeldWeights | None) -> Dealt:
        """Ask the running dealer for this session's tape; return what it deals. weights: the loads that are held here; rows:
        those of the prefix that the session begins behind, None without one."""
        dealer = dealer_of(self._config)
        assert dealer is not None
        channel = self._connect(dealer, self._network.patience)
        call = lambda channel: services.DealerStub(channel).Tape  # noqa: E731
        way = self._network.route(dealer, call, wire.TapeMessage.FromString)
        stream = self._tape = dialled(self._session, way, self._config.resume_seconds, TAPE_BEAT)
        stream.dial(way, channel, wire.TapeRequest(open=opening))
        self._network.heartbeats.add(stream)
        self._session.step = f"waiting for {dealer.name} to deal"
        message = stream.receive(self._patience)
        if message.WhichOneof("content") != "start":
            raise WireError(f"{dealer.name} did not start the tape with a seed")
        self._leave_grpc([stream])
        start = message.start
        held = self._held(dealer.name, start.load, start.fresh, weights)
        source = Source(start.seed, tape_reader(stream))
        if rows is None:
            return Dealt(source, start.load, held)
        held_rows = self._held(dealer.name, start.rows_load, start.rows_fresh, rows)
        return Dealt(source, start.load, held, rows_load=start.rows_load, rows=held_rows)

    def _held(self, dealer: str, load: str, fresh: bool, held: HeldWeights) -> dict[str, Any] | None:
        """Return a load that the dealer has named, None for a fresh one. Raises `WireError` for one that is not here."""
        check_id(load, "load", dealer)
        found = None if fresh else held.get(load)
        if not fresh and found is None:
            raise WireError(f"the dealer wants load {load}, which {self._session.role} does not hold (any more)")
        return found

    def tell_dealer(self, request: wire.TapeRequest) -> None:
        """Send the dealer what it must know to go on."""
        if self._tape is not None:
            self._tape.send(request)

    # ---- ending ----------------------------------------------------------------------------------------------------
    def wake(self) -> None:
        """Let whoever waits for a peer to dial look at the session's error."""
        self._attached.wake()

    def farewell(self) -> None:
        """Tell peers and dealer how the session ended, and send no more."""
        said: dict[str, Any] = {}
        if self._session.finished:
            said = {"finish": wire.Finish()}
        elif (error := self._session.error) is not None:
            said = {"failure": to_failure(error)}

        def last(kind: type) -> Message | None:
            return kind(**said) if said else None

        for stream in self._attached.here():
            stream.close(last(wire.PeerMessage))
        if self._tape is not None:
            self._tape.close(last(wire.TapeRequest))

    def close(self) -> None:
        """Close the channels."""
        for channel in self._channels:
            channel.close()
