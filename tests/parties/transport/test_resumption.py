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
import parties.transport.peer_stream
import parties.transport.resumable_stream
from mpc.errors import MpcacheError, PeerLost, PeerSilent, PermissionRefused, WireError
from parties.client.client import GenerationResult
from parties.tapes.stream import TapeOutlet
from parties.transport.opening import accepted, dialled
from parties.transport.peer_stream import PeerStream
from parties.transport.queues import UnacknowledgedQueue
from parties.transport.resumable_stream import Call, Connection, Loss, ResumableStream
from parties.transport.resumption import Route, request
from parties.transport.session import Session
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
    """Two parties and a dealer; every line that a session needs, but that of client and party1, goes through a relay."""

    def __init__(self, folder: Path, checkpoint: Path, **settings: Any) -> None:
        self.toy = Toy()
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


@pytest.fixture(scope="module")
def relayed(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Iterator[Relayed]:
    running = Relayed(tmp_path_factory.mktemp("relayed"), checkpoint, resume_seconds=20, deadline_seconds=30)
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


def test_nothing_is_made_or_masked_twice(relayed: Relayed, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is sent again is the same, byte for byte; the tape is used in order and once; costs are those of a calm run."""
    relayed.generate(lambda: None, 3)  # loads the model
    calm = relayed.generate(lambda: None)
    sent: dict[int, list[tuple[int, bytes]]] = defaultdict(list)  # call's queue -> numbers and bytes given to gRPC
    stream: dict[int, int] = {}  # a later call's queue -> its stream's first one
    keep: list[Any] = []
    dealt: dict[str, bytearray] = defaultdict(bytearray)
    used: dict[str, bytearray] = defaultdict(bytearray)

    class Recorded(SimpleQueue):  # type: ignore[type-arg]
        def get(self, *args: Any, **options: Any) -> Any:
            item = super().get(*args, **options)
            if getattr(item, "number", 0):
                sent[id(self)].append((item.number, item.SerializeToString()))
            return item

    def go_on(self: ResumableStream, call: Call, received: int) -> None:
        keep.extend([call.outbox, self.outbox])
        stream[id(call.outbox)] = stream.get(id(self.outbox), id(self.outbox))
        original_go_on(self, call, received)

    def append(self: TapeOutlet, data: bytes) -> None:
        dealt[self.stream.peer] += data
        original_append(self, data)

    def reader(peer_stream: PeerStream) -> Callable[[int], Any]:
        read = original_reader(peer_stream)

        def reading(count: int) -> Any:
            piece = read(count)
            used[peer_stream.session.role] += piece
            return piece

        return reading

    original_go_on, original_append = ResumableStream._go_on, TapeOutlet.append
    original_reader = parties.party.rendezvous.tape_reader
    monkeypatch.setattr(parties.transport.peer_stream, "SimpleQueue", Recorded)
    monkeypatch.setattr(parties.transport.resumable_stream, "SimpleQueue", Recorded)
    monkeypatch.setattr(ResumableStream, "_go_on", go_on)
    monkeypatch.setattr(TapeOutlet, "append", append)
    monkeypatch.setattr(parties.party.rendezvous, "tape_reader", reader)

    def act() -> None:
        for _ in range(3):
            for line in relayed.lines.values():
                lose(line)

    result = relayed.generate(act)
    assert result.tokens == calm.tokens
    streams: dict[int, dict[int, list[bytes]]] = defaultdict(lambda: defaultdict(list))
    for queue, messages in sent.items():
        for number, data in messages:
            streams[stream.get(queue, queue)][number].append(data)
    assert all(len(set(copies)) == 1 for numbers in streams.values() for copies in numbers.values())
    assert any(len(copies) > 1 for numbers in streams.values() for copies in numbers.values()), "nothing was sent again"
    for numbers in streams.values():
        assert sorted(numbers) == list(range(1, len(numbers) + 1))
    assert dealt == used
    assert set(used) == {"party0", "party1"}
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
        peer_stream: ResumableStream = session.client  # type: ignore
        secret, id = peer_stream.secret, session.id
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
        while not peer_stream.unacknowledged.arrived:
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


# ---- a stream by itself --------------------------------------------------------------------------------------------------


def accepting() -> ResumableStream:
    """An accepting stream that has received its opening and sent three messages."""
    session, beat = Session("5" * 32, "party0"), wire.PartyMessage(heartbeat=wire.Heartbeat())
    first = wire.ClientMessage(open=wire.Open(), number=1, resume_secret=bytes(range(32)))
    peer_stream = accepted(session, "client", 5, beat, first)
    assert isinstance(peer_stream, ResumableStream)
    peer_stream.read(iter([]), 0)
    assert peer_stream.connection is Connection.LOST, "a stream that ends without its last message was lost"
    for stage in "abc":
        peer_stream.send(wire.PartyMessage(progress=wire.Progress(stage=stage)))
    return peer_stream


def test_what_is_sent_again() -> None:
    peer_stream, cancelled = accepting(), threading.Event()
    peer_stream._cancel = cancelled.set
    outgoing = peer_stream.resumed(request(peer_stream.secret, peer_stream.session.id, 3, 1), iter(()), lambda: None)
    assert cancelled.is_set()
    assert next(outgoing).resumed.received == 1
    assert [(m.number, m.progress.stage) for m in (next(outgoing), next(outgoing))] == [(2, "b"), (3, "c")]
    for epoch in (2, 3):
        with pytest.raises(WireError, match=f"asks for call {epoch} of a stream whose call 3 is there"):
            peer_stream.resumed(request(peer_stream.secret, peer_stream.session.id, epoch, 1), iter(()), lambda: None)
    with pytest.raises(WireError, match="received message 0, but it said 1 before"):
        peer_stream.resumed(request(peer_stream.secret, peer_stream.session.id, 4, 0), iter(()), lambda: None)
    with pytest.raises(WireError, match="received message 4, but 3 were sent"):
        peer_stream.resumed(request(peer_stream.secret, peer_stream.session.id, 4, 4), iter(()), lambda: None)
    assert peer_stream.epoch == 3


def test_a_call_that_was_taken_over_is_not_read() -> None:
    peer_stream = accepting()
    peer_stream.resumed(request(peer_stream.secret, peer_stream.session.id, 1, 0), iter(()), lambda: None)
    received = peer_stream.received
    peer_stream.read(iter([wire.ClientMessage(chunk=wire.Chunk(payload=b"late"), number=2)]), 0)
    assert peer_stream.received == received
    assert peer_stream.session.error is None


def test_what_was_said_to_have_arrived_stays_true(monkeypatch: pytest.MonkeyPatch) -> None:
    """From when the dialling side asks for a new call, a late message of the old one is not taken: it comes again."""
    monkeypatch.setattr(parties.transport.resumable_stream, "dial_again", lambda stream, route: None)
    route = Route("party0", lambda: None, lambda channel: lambda outgoing: iter(()), lambda: "", lambda channel: "")  # type: ignore
    peer_stream = dialled(Session("5" * 32, "client"), route, 5, wire.ClientMessage(heartbeat=wire.Heartbeat()))
    assert isinstance(peer_stream, ResumableStream)
    peer_stream.read(iter([wire.PartyMessage(progress=wire.Progress(stage="a"), number=1)]), 0)
    assert peer_stream.connection is Connection.LOST
    _, asked = peer_stream.next_request()
    assert asked.resume.received == 1
    again = wire.PartyMessage(progress=wire.Progress(stage="b"), number=2)
    peer_stream.read(iter([again]), 0)
    assert peer_stream.received == 1
    assert peer_stream.connected(Call(1, SimpleQueue(), lambda: None), 0, route, None)  # type: ignore[arg-type]
    peer_stream.read(iter([again, wire.PartyMessage(end=wire.End(), number=3)]), 1)
    assert [peer_stream.receive().progress.stage for _ in "ab"] == ["a", "b"]
    assert peer_stream.session.error is None


@pytest.mark.parametrize("number", [0, 1, 3])
def test_numbers_out_of_order(number: int) -> None:
    peer_stream = accepting()
    peer_stream.read(iter([wire.ClientMessage(chunk=wire.Chunk(payload=b"x"), number=number)]), 0)
    assert isinstance(peer_stream.session.error, WireError)
    assert f"client sent message {number} where message 2 was expected" in str(peer_stream.session.error)


def test_arrivals_that_cannot_be() -> None:
    peer_stream = accepting()
    peer_stream.read(iter([wire.ClientMessage(heartbeat=wire.Heartbeat(received=9))]), 0)
    assert isinstance(peer_stream.session.error, WireError)
    assert "client says that it has received message 9, but 3 were sent" in str(peer_stream.session.error)


def test_memory_is_bounded() -> None:
    kept = UnacknowledgedQueue()
    for i in range(1000):
        kept.add(wire.PartyMessage())
        if i % 10 == 9:
            kept.acknowledge(i + 1, "client")
            assert len(kept) == 0
    peer_stream = accepting()
    peer_stream.outbox = SimpleQueue()
    for _ in range(200):  # more would wait
        peer_stream.send(wire.PartyMessage())
    waiting = threading.Thread(target=peer_stream.send_bulk, args=(wire.PartyMessage(),), daemon=True)
    waiting.start()
    waiting.join(0.1)
    assert waiting.is_alive(), "a full buffer does not hold its sender back"
    while not peer_stream.outbox.empty():
        peer_stream.outbox.get()
    peer_stream.read(iter([wire.ClientMessage(heartbeat=wire.Heartbeat(received=203))]), 0)
    waiting.join(10)
    assert not waiting.is_alive()


def test_silence_and_loss_add_up() -> None:
    """A silent connection that ends is waited for; but not for ever, however often it comes back without a word."""
    peer_stream = accepting()
    assert peer_stream.loss is not None
    first = peer_stream.loss.limit
    for epoch in (1, 2, 3):
        peer_stream.resumed(request(peer_stream.secret, peer_stream.session.id, epoch, 0), iter(()), lambda: None)
        limit = time.monotonic() + 5
        while peer_stream.loss is None:
            assert time.monotonic() < limit
            time.sleep(0.01)
        assert peer_stream.loss.limit == pytest.approx(first, abs=1e-6)
    peer_stream.stay_away()
    assert isinstance(peer_stream.session.error, PeerLost)
    assert "did not come back within 5 s" in str(peer_stream.session.error)


def test_silent_peer_keeps_its_error() -> None:
    peer_stream = accepting()
    peer_stream.loss = Loss(PeerSilent("client", "decode", "sent nothing for 3 s"), 0.0)
    peer_stream.stay_away()
    assert isinstance(peer_stream.session.error, PeerSilent)


def test_a_peer_that_never_spoke_has_all_of_the_deadline() -> None:
    """There is nothing to resume after half of it, and it may still answer, or say why it does not."""
    route = Route(
        "party0", lambda: pytest.fail("dialled"), lambda channel: pytest.fail("called"), lambda: "", lambda channel: ""
    )
    peer_stream = dialled(Session(new_id(), "party1"), route, 5, wire.PeerMessage(heartbeat=wire.Heartbeat()))
    assert isinstance(peer_stream, ResumableStream)
    peer_stream.suspect(5)
    assert peer_stream.session.error is None
    assert peer_stream.connection is Connection.UP
