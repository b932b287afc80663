"""A session goes on after a lost connection: nothing is computed or masked twice, and nobody else can take a stream over."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

import parties.party.rendezvous
import parties.transport.line_dialling
import parties.transport.peer_stream
import parties.transport.redialling
import parties.transport.resumable_stream
from mpc.errors import MpcacheError, PeerLost, PermissionRefused, WireError
from parties.client.client import GenerationResult
from parties.tapes.stream import TapeOutlet
from parties.transport.peer_stream import PeerStream
from parties.transport.resumable_stream import Call, ResumableStream
from parties.transport.resumption import request
from parties.wire import wire_pb2 as wire
from parties.wire import wire_pb2_grpc as services
from parties.wire.manifest import new_id
from tests.parties.conftest import VOCABULARY, Running
from tests.parties.deployment import Deployment
from tests.parties.relay import Relay
from tests.parties.test_faults import idle, works
from tests.parties.test_refusals import dial, outcome
from tests.parties.toy import Toy, expected, slow

PROMPT = [3, 1]
TOKENS = 12
Lines = dict[str, Relay]


class Relayed:
    """Two parties and a dealer; every line that a session needs, but that of client and party1, goes through a relay.

    way: what lines between servers are, "grpc" or "tls" (`parties.transport.line`)."""

    def __init__(self, folder: Path, checkpoint: Path, way: str = "grpc", **settings: Any) -> None:
        self.toy = Toy()
        settings["bulk"] = "off" if way == "grpc" else "required"
        self.deployment = Deployment(folder, 2, self.toy.program, **settings)
        addresses = self.deployment.addresses
        self.lines = {name: Relay(addresses[i]) for name, i in (("client", 0), ("party1", 0), ("dealer", -1))}
        party1 = {"name": "party1", "address": addresses[1]}
        self.near = {
            name: [{"name": "party0", "address": self.lines[name].address}, party1] for name in ("client", "party1")
        }
        dealer = {"name": "dealer", "address": self.lines["dealer"].address}
        self.deployment.start_one("dealer")
        self.deployment.start_one("party0", dealer=dealer)
        self.deployment.start_one("party1", parties=self.near["party1"])
        for name, line in (("party0", "party1"), ("dealer", "dealer")) if way == "tls" else ():
            lines = self.deployment.servers[name].lines
            lines.port, lines.local = self.lines[line].also(f"127.0.0.1:{lines.port}"), ""  # as on another host
        self.deployment.share(checkpoint)

    def generate(self, act: Callable[[], None], tokens: int = TOKENS) -> GenerationResult:
        """A session in which `act` happens in a thread of its own, after the second token."""
        threads = []

        def on_token(token: int) -> None:
            if token == sum(PROMPT) + 1:
                threads.append(threading.Thread(target=act))
                threads[0].start()

        client = self.deployment.client(parties=self.near["client"])
        try:
            return client.ask(PROMPT, tokens, stop_ids=(), on_token=on_token)
        finally:
            for thread in threads:
                thread.join()

    def close(self) -> None:
        """Stop everything."""
        self.deployment.stop()
        for line in self.lines.values():
            line.close()


@pytest.fixture(scope="module", params=["grpc", "tls"])
def relayed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Iterator[Relayed]:
    folder = tmp_path_factory.mktemp("relayed")
    running = Relayed(folder, checkpoint, request.param, resume_seconds=20, deadline_seconds=30)
    running.toy.before_round = slow(0.01)
    yield running
    running.close()


def lose(line: Relay) -> None:
    """End the connections with messages under way in both directions."""
    line.open.clear()
    time.sleep(0.05)  # not for order: so that something is under way
    line.cut()
    line.forget()


def restart(line: Relay) -> None:
    """As a relay or switch that goes away and comes back."""
    line.stop()
    time.sleep(0.2)  # how long it is away
    line.start()


@pytest.mark.covering(2)
@pytest.mark.parametrize("fault", [lose, restart])
@pytest.mark.parametrize("name", ["client", "party1", "dealer"])
def test_lost_connection(relayed: Relayed, name: str, fault: Callable[[Relay], None]) -> None:
    line = relayed.lines[name]
    before = line.connections
    result = relayed.generate(lambda: fault(line))
    assert result.tokens == expected(PROMPT, TOKENS, VOCABULARY)
    assert line.connections > before + 1
    idle(relayed.deployment)


def test_all_lines_lost_again_and_again(relayed: Relayed) -> None:
    def act() -> None:
        for _ in range(4):
            for line in relayed.lines.values():
                lose(line)

    assert relayed.generate(act, 20).tokens == expected(PROMPT, 20, VOCABULARY)
    idle(relayed.deployment)


def test_a_router_forgets_the_connection(tmp_path: Path, checkpoint: Path) -> None:
    running = Relayed(tmp_path, checkpoint, deadline_seconds=4, resume_seconds=20)
    try:
        running.toy.before_round = slow(0.01)
        result = running.generate(running.lines["party1"].forget)
        assert result.tokens == expected(PROMPT, TOKENS, VOCABULARY)
    finally:
        running.close()


class Recorder:
    """What all streams give to gRPC, and what of the tapes is dealt and used, while its patches are in place."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.sent: dict[int, list[tuple[int, bytes]]] = defaultdict(list)  # call's queue -> numbers and bytes
        self._first: dict[int, int] = {}  # a later call's queue -> its stream's first one
        self._keep: list[Any] = []  # so that no queue gets the id of another
        self.dealt: dict[str, bytearray] = defaultdict(bytearray)
        self.used: dict[str, bytearray] = defaultdict(bytearray)
        self._record_queues(patch)
        self._record_tapes(patch)

    def _record_queues(self, patch: pytest.MonkeyPatch) -> None:
        recorder, go_on = self, ResumableStream._go_on

        class Recorded(SimpleQueue):  # type: ignore[type-arg]
            def get(self, *args: Any, **options: Any) -> Any:
                item = super().get(*args, **options)
                if getattr(item, "number", 0):
                    recorder.sent[id(self)].append((item.number, item.SerializeToString()))
                return item

        def recorded(self: ResumableStream, call: Call, received: int) -> None:
            recorder._keep.extend([call.outbox, self.outbox])
            recorder._first[id(call.outbox)] = recorder._first.get(id(self.outbox), id(self.outbox))
            go_on(self, call, received)

        parts = parties.transport
        for module in (parts.peer_stream, parts.resumable_stream, parts.redialling, parts.line_dialling):
            patch.setattr(module, "SimpleQueue", Recorded)
        patch.setattr(ResumableStream, "_go_on", recorded)

    def _record_tapes(self, patch: pytest.MonkeyPatch) -> None:
        recorder, append, tape_reader = self, TapeOutlet.append, parties.party.rendezvous.tape_reader

        def appended(self: TapeOutlet, data: bytes) -> None:
            recorder.dealt[self.stream.peer] += data
            append(self, data)

        def reader(stream: PeerStream) -> Callable[[int], Any]:
            read = tape_reader(stream)

            def reading(count: int) -> Any:
                piece = read(count)
                recorder.used[stream.session.role] += piece
                return piece

            return reading

        patch.setattr(TapeOutlet, "append", appended)
        patch.setattr(parties.party.rendezvous, "tape_reader", reader)

    def streams(self) -> list[dict[int, list[bytes]]]:
        """Of every stream, by number, all copies of a message that were given to gRPC."""
        found: dict[int, dict[int, list[bytes]]] = defaultdict(lambda: defaultdict(list))
        for queue, messages in self.sent.items():
            for number, data in messages:
                found[self._first.get(queue, queue)][number].append(data)
        return list(found.values())


def test_nothing_is_made_or_masked_twice(relayed: Relayed, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is sent again is the same, byte for byte; the tape is used in order and once; costs are those of a calm run."""
    relayed.generate(lambda: None, 3)  # loads the model
    calm = relayed.generate(lambda: None)
    recorder = Recorder(monkeypatch)

    def act() -> None:
        for _ in range(3):
            for line in relayed.lines.values():
                lose(line)

    result = relayed.generate(act)
    assert result.tokens == calm.tokens
    streams = recorder.streams()
    assert all(len(set(copies)) == 1 for numbers in streams for copies in numbers.values())
    assert any(len(copies) > 1 for numbers in streams for copies in numbers.values()), "nothing was sent again"
    for numbers in streams:
        assert sorted(numbers) == list(range(1, len(numbers) + 1))
    assert recorder.dealt == recorder.used
    assert set(recorder.used) == {"party0", "party1"}
    for name, costs in result.costs.items():
        counted = {key: value for key, value in costs["total"].items() if "seconds" not in key}
        assert counted == {key: value for key, value in calm.costs[name]["total"].items() if "seconds" not in key}


# ---- when it does not come back ------------------------------------------------------------------------------------------


def test_the_window_passes(tmp_path: Path, checkpoint: Path) -> None:
    running = Relayed(tmp_path, checkpoint, resume_seconds=0.8)
    try:
        running.toy.before_round = slow(0.02)
        for name in running.lines:
            peers = {"party0", name}
            line = running.lines[name]
            start = time.monotonic()
            with pytest.raises(PeerLost, match=r"the connection ended.* and did not come back within 0\.8 s") as caught:
                running.generate(line.stop, 30)
            assert caught.value.peer in peers
            assert time.monotonic() - start < 10
            idle(running.deployment)
            line.start()
            works(running.deployment)
    finally:
        running.close()


@pytest.mark.covering(1)
@pytest.mark.parametrize("name", ["client", "party1", "dealer"])
def test_a_peer_that_was_started_anew(relayed: Relayed, name: str) -> None:
    server = relayed.deployment.servers["dealer" if name == "dealer" else "party0"]
    forgotten: list[Any] = []

    def act() -> None:  # what a new process knows of the session: nothing
        forgotten.extend(server.sessions.all())
        server.sessions._live.clear()
        relayed.lines[name].cut()

    with pytest.raises(PeerLost, match=r"holds no stream of session .*: it was started anew since") as caught:
        relayed.generate(act, 30)
    assert caught.value.peer == server.name
    for session in forgotten:
        session.fail(PeerLost(server.name, "test", "is gone"))
    idle(relayed.deployment)
    works(relayed.deployment)


# ---- who may -----------------------------------------------------------------------------------------------------------


def resume(two: Running, name: str, peer: str, message: wire.Resume) -> MpcacheError:
    """Ask `peer` as `name` to resume a client's stream; the refusal."""
    with dial(two, name, peer) as channel:
        asked = [wire.ClientMessage(resume=message)]
        return outcome(services.ComputePartyStub(channel).Generate(iter(asked)), peer)


def test_refused_resumes_harm_nobody(two: Running) -> None:
    two.toy.before_round = slow(0.01)
    found: list[tuple[type[MpcacheError], str, MpcacheError]] = []

    def on_token(token: int) -> None:
        if token != sum(PROMPT) + 1:
            return
        (session,) = two.deployment.servers["party0"].sessions.all()
        stream: ResumableStream = session.client  # type: ignore
        secret, id = stream.secret, session.id
        stale = request(secret, id, 0, 1)
        other = request(bytes(32), id, 9, 1)
        forged = wire.Resume(session=id, epoch=9, received=2, proof=request(secret, id, 9, 1).proof)
        cases = [
            (WireError, "client asks for call 0 of a stream whose call 0 is there: a replay", stale),
            (PermissionRefused, "client may not resume session .* at party0: its proof is wrong", other),
            (PermissionRefused, "its proof is wrong", forged),
            (WireError, "client says that it has received message 4000, but", request(secret, id, 9, 4000)),
            (WireError, "client says that it has received message 0, but it said", request(secret, id, 9, 0)),
            (PeerLost, "party0: holds no stream of session", request(secret, new_id(), 9, 1)),
            (WireError, "a session id of 5 characters", request(secret, "short", 9, 1)),
        ]
        limit = time.monotonic() + 20
        while not stream.unacknowledged.arrived:
            assert time.monotonic() < limit
            time.sleep(0.02)
        for kind, text, message in cases:
            found.append((kind, text, resume(two, "client", "party0", message)))
        with dial(two, "party1", "party0") as channel:  # another name, even with the secret; and another kind of stream
            asked = [wire.PeerMessage(resume=request(secret, id, 9, 1))]
            error = outcome(services.ComputePartyStub(channel).Exchange(iter(asked)), "party0")
            found.append((PermissionRefused, "its proof is wrong", error))

    result = two.deployment.client().ask(PROMPT, 30, stop_ids=(), on_token=on_token)
    assert result.tokens == expected(PROMPT, 30, VOCABULARY)
    assert len(found) == 8
    for kind, text, error in found:
        assert isinstance(error, kind), error
        with pytest.raises(kind, match=text):
            raise error
    idle(two.deployment)


def test_a_session_that_is_over_is_not_resumed(two: Running) -> None:
    done = two.deployment.client().ask(PROMPT, 1).session
    idle(two.deployment)
    error = resume(two, "client", "party0", request(bytes(32), done, 1, 1))
    assert isinstance(error, PeerLost)
    assert "holds no stream of session" in str(error)
