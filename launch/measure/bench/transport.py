"""A benchmark's processes connected as in a session: gRPC over mutual TLS, one stream per pair of parties, or lines beside.

Links, frames, certificates and chunk sizes are those of `parties`. What differs is the tape: a party fetches a whole segment
of it before the step that uses it, so that a step's seconds are online seconds.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc

from launch.measure.bench.plan import DEALER, HERE
from mpc.errors import MpcacheError, PeerLost, PermissionRefused, WireError
from mpc.tape import chunks
from parties.config.role_config import RoleConfig, make_config
from parties.identity.certificates import Identity, check, read_certificates
from parties.identity.fingerprints import fingerprint_of
from parties.identity.trust import Peer, Trust
from parties.names import Role
from parties.party.rendezvous import Network
from parties.server.calls import Calls
from parties.server.incoming import IncomingCalls, Refusals, StreamCall
from parties.server.lines import Lines
from parties.server.metrics import Metrics
from parties.server.permissions import Permissions
from parties.server.sessions import Sessions
from parties.transport.connection import abort_if_alive, connect, start_server
from parties.transport.gathering import Gathering
from parties.transport.heartbeat import HeartbeatMonitor
from parties.transport.opening import dialled
from parties.transport.peer_stream import INBOX_LIMIT, PeerStream
from parties.transport.pieces import whole
from parties.transport.resumable_stream import ResumableStream
from parties.transport.resumption import GRPC, Way
from parties.transport.session import Session
from parties.wire import wire_pb2 as wire
from parties.wire import wire_pb2_grpc as services
from parties.wire.error_codec import from_rpc
from parties.wire.manifest import package_version
from parties.wire.shares import CHUNK_BYTES

CONNECT_SECONDS = 300.0
SILENT_SECONDS = 300.0  # an overloaded machine is no failure
STEP_SECONDS = 3600.0
POLL_SECONDS = 0.05
CERTIFICATES = "certificates"
SESSION = "0" * 32
LINE_SECONDS = 10.0
BEAT = wire.PeerMessage(heartbeat=wire.Heartbeat())
Message = Any


def publish_address(folder: Path, name: str, host: str, port: int) -> None:
    """Let the other processes of the run know where `name` listens."""
    temporary = folder / f"{name}.address.new"
    temporary.write_text(f"{host}:{port}", encoding="utf-8")
    temporary.rename(folder / f"{name}.address")


def address_of(folder: Path, name: str) -> str:
    """Return where `name` listens, waiting until it does. Raises `PeerLost` after five minutes."""
    path, limit = folder / f"{name}.address", time.monotonic() + CONNECT_SECONDS
    while not path.exists():
        if time.monotonic() > limit:
            raise PeerLost(name, "connecting", f"did not start within {CONNECT_SECONDS:g} s")
        time.sleep(POLL_SECONDS)
    return path.read_text(encoding="utf-8")


def peers(folder: Path, names: list[str], dealer: str) -> dict[str, Peer]:
    """Return everybody of a run, with the keys that were made for it."""

    def known(name: str, role: Role) -> Peer:
        certificate = read_certificates(folder / CERTIFICATES / f"{name}.crt")[0]
        return Peer(name, role, pins=frozenset([fingerprint_of(certificate)]))

    return {**{name: known(name, "party") for name in names}, dealer: known(dealer, "dealer")}


class Mesh(services.ComputePartyServicer):  # type: ignore[misc]
    """One party's links to all the others: higher indices dial lower ones, as in a session. Use it in a `with` block.

    way: what the links are; None: what they are in sessions, lines (`parties.transport.line`) where those can be had.
    """

    def __init__(self, folder: Path, names: list[str], index: int, host: str = HERE, way: Way | None = None) -> None:
        self.folder = folder
        self.names = names
        self.index = index
        self.identity: Identity = check(folder / CERTIFICATES, names[index])
        self.session = Session(SESSION, names[index])
        self._peers = peers(folder, names, DEALER)
        self.links: dict[int, PeerStream] = {}  # by index, once all are there
        self._joined = Gathering[PeerStream]([n for n in names if n != names[index]], self.session.check)
        self._channels: list[grpc.Channel] = []
        config = _configuration(folder, names, index, host, "off" if way == GRPC else "auto")
        self._network = Network(config, lambda: self.identity, HeartbeatMonitor(SILENT_SECONDS, STEP_SECONDS), 0.0)
        self._heartbeats = self._network.heartbeats
        permissions, metrics = Permissions(config), Metrics(config.role, config.name, package_version(), ())
        refusals = Refusals(config.name, Sessions(config.name), metrics)
        trust = Trust(self._peers, lambda: self.identity)
        self._incoming = IncomingCalls(config, trust, lambda id: self.session, self._heartbeats, refusals)
        self._lines = Lines(config, lambda: self.identity, self._incoming, permissions, Calls(config.name, permissions))
        if way != GRPC:
            self._lines.start()
        if way == "tls":
            self._lines.local = ""
        add = services.add_ComputePartyServicer_to_server
        self._server, self._threads, port = start_server(
            self.identity, f"{host}:0", lambda server: add(self, server), 2 * len(names)
        )
        publish_address(folder, names[index], host, port)

    def __enter__(self) -> Mesh:
        for peer in range(self.index):
            self._dial(peer)
        joined = self._joined.wait(CONNECT_SECONDS, "did not connect")
        self.links = {self.names.index(name): stream for name, stream in joined.items()}
        for stream in self.links.values():
            with suppress(PeerLost):  # it stays with gRPC
                if isinstance(stream, ResumableStream) and self._network.config.bulk != "off":
                    stream.wait_for_line(LINE_SECONDS)
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        self.session.end()
        streams = self._joined.here()
        for stream in streams:
            stream.close()
            self._heartbeats.remove(stream)
        if kind is None:
            self.session.finish_calls(10.0)
        for channel in self._channels:
            channel.close()
        self._heartbeats.stop()
        self._server.stop(0.2).wait(2)
        self._lines.stop()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _dial(self, peer: int) -> None:
        name = self.names[peer]
        reached = replace(self._peers[name], address=address_of(self.folder, name))
        channel = connect(self.identity, reached, CONNECT_SECONDS, self.session.check)
        self._channels.append(channel)
        call = lambda channel: services.ComputePartyStub(channel).Exchange  # noqa: E731
        way = self._network.route(reached, call, wire.PeerMessage.FromString)
        stream = dialled(self.session, way, SILENT_SECONDS, BEAT)
        stream.dial(way, channel, wire.PeerMessage(hello=wire.Hello(session=SESSION)))
        self._heartbeats.add(stream)
        self._joined.add(name, stream)

    def Exchange(self, requests: Iterator[Message], context: Any) -> Iterator[Message]:
        """Let a party of higher index dial."""
        return whole(self._incoming.serve(requests, context, StreamCall(BEAT, self._may_join, self._join)))

    def _may_join(self, name: str) -> None:
        if name not in self.names[self.index + 1 :]:
            raise PermissionRefused(f"'{name}' is no party of a higher index")

    def _join(self, stream: PeerStream, message: Message) -> tuple[Session, Iterator[Message]]:
        stream.move(self.session)
        stream.make_room(INBOX_LIMIT)
        self._joined.add(stream.peer, stream)
        return self.session, stream.outgoing()


def _configuration(folder: Path, names: list[str], index: int, host: str, bulk: str) -> RoleConfig:
    """Return a party's configuration as far as connections need it: addresses and keys are those of the run."""
    return make_config(
        {
            "role": "party",
            "name": names[index],
            "listen": f"{host}:0",
            "parties": [{"name": name, "address": f"{HERE}:1"} for name in names],
            "dealer": {"name": DEALER, "address": f"{HERE}:1"},
            "certificates": folder / CERTIFICATES,
            "store": folder / "store",
            "deadline_seconds": SILENT_SECONDS,
            "resume_seconds": SILENT_SECONDS,
            "bulk": bulk,
        }
    )


class Segments(services.DealerServicer):  # type: ignore[misc]
    """The dealer's end: each party's tape, one segment after the other. Use it in a `with` block."""

    def __init__(self, folder: Path, name: str, parties: list[str], seeds: list[bytes], host: str = HERE) -> None:
        self.parties = parties
        self._seeds = dict(zip(parties, seeds, strict=True))
        self._pieces: dict[tuple[int, str], bytearray] = {}
        self._current = -1
        self._complete = -1
        self._wanted = -1
        self._left = set(parties)
        self._changed = threading.Condition()
        identity = check(folder / CERTIFICATES, name)
        self._trust = Trust(peers(folder, parties, name), lambda: identity)
        add = services.add_DealerServicer_to_server
        self._server, self._threads, port = start_server(identity, f"{host}:0", lambda s: add(self, s), 4 * len(parties))
        publish_address(folder, name, host, port)

    def __enter__(self) -> Segments:
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.stop(0.2).wait(2)
        self._threads.shutdown(wait=False, cancel_futures=True)

    def emit(self, party: int, data: bytes) -> None:
        """Append to a party's current segment."""
        self._pieces[self._current, self.parties[party]] += data

    def begin(self, segment: int) -> None:
        """Wait until a party wants this segment: a dealer that works during a step would slow it down. Then start it."""
        with self._changed:
            while self._wanted < segment:
                self._changed.wait()
        self._current = segment
        for name in self.parties:
            self._pieces[segment, name] = bytearray()

    def end(self) -> None:
        """Say that the current segment is complete."""
        with self._changed:
            self._complete = self._current
            self._left = set(self.parties)
            self._changed.notify_all()

    def wait_until_fetched(self) -> None:
        """Wait until every party has been sent the last segment."""
        with self._changed:
            while self._left:
                self._changed.wait()

    def Tape(self, requests: Iterator[Message], context: Any) -> Iterator[Message]:
        """Send one segment to one party; `session` of the opening message is its number."""
        try:
            name, opening = self._trust.caller(context).name, next(requests).open.session
            if name not in self._seeds or not opening.isdecimal():
                raise PermissionRefused(f"'{name}' may not have a tape of this benchmark")
        except MpcacheError as error:
            abort_if_alive(context, error)
        segment = int(opening)
        with self._changed:
            self._wanted = max(self._wanted, segment)
            self._changed.notify_all()
            while self._complete < segment:
                self._changed.wait()
            data = memoryview(self._pieces.pop((segment, name)))
        yield wire.TapeMessage(start=wire.TapeStart(seed=self._seeds[name]))
        for start in range(0, len(data), CHUNK_BYTES):
            yield wire.TapeMessage(chunk=wire.Chunk(payload=bytes(data[start : start + CHUNK_BYTES])))
        with self._changed:
            self._left.discard(name)
            self._changed.notify_all()


class _Pieces:
    """An iterator that may go on after it has ended: with the next segment."""

    def __init__(self) -> None:
        self.waiting: deque[bytes] = deque()

    def __iter__(self) -> _Pieces:
        return self

    def __next__(self) -> bytes:
        if not self.waiting:
            raise StopIteration
        return self.waiting.popleft()


class TapeSource:
    """A party's end: `fetch` brings a segment into memory, `read` is for a `PartyTape`."""

    def __init__(self, folder: Path, identity: Identity, dealer: str, check: Callable[[], None]) -> None:
        self.seed = b""
        self.dealer = dealer
        self._pieces = _Pieces()
        self.read = chunks(self._pieces)
        reached = replace(peers(folder, [], dealer)[dealer], address=address_of(folder, dealer))
        self._channel = connect(identity, reached, CONNECT_SECONDS, check)
        self._stub = services.DealerStub(self._channel)

    def fetch(self, segment: int) -> None:
        """Ask for a segment and wait until all of it is here. Raises `PeerLost`."""
        opening = wire.TapeRequest(open=wire.TapeOpen(session=str(segment)))
        try:
            for message in self._stub.Tape(iter([opening])):
                kind = message.WhichOneof("content")
                if kind == "start":
                    self.seed = message.start.seed
                elif kind == "chunk":
                    self._pieces.waiting.append(message.chunk.payload)
                else:
                    raise WireError(f"{self.dealer} sent '{kind}' where a tape was expected")
        except grpc.RpcError as error:
            raise from_rpc(error, self.dealer, f"fetching tape segment {segment}") from None

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()
