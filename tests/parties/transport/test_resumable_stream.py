"""A resumable stream by itself: what is sent again, what is counted, how much is kept, and when it is given up."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any

import pytest

import parties.transport.opening
from mpc.errors import PeerLost, PeerSilent, WireError
from parties.transport.opening import accepted, dialled
from parties.transport.peer_stream import Receiving, Sending
from parties.transport.queues import UnacknowledgedQueue
from parties.transport.resumable_stream import Call, Connection, Loss, ResumableStream
from parties.transport.resumption import Route, request
from parties.transport.session import Session
from parties.wire import wire_pb2 as wire
from parties.wire.manifest import new_id


def accepting() -> ResumableStream:
    """An accepting stream that has received its opening and sent three messages."""
    session, beat = Session("5" * 32, "party0"), wire.PartyMessage(heartbeat=wire.Heartbeat())
    first = wire.ClientMessage(open=wire.Open(), number=1, resume_secret=bytes(range(32)))
    stream = accepted(session, "client", 5, beat, first)
    assert isinstance(stream, ResumableStream)
    stream.read(iter([]), 0)
    assert stream.connection is Connection.LOST, "a stream that ends without its last message was lost"
    for stage in "abc":
        stream.send(wire.PartyMessage(progress=wire.Progress(stage=stage)))
    return stream


def test_what_is_sent_again() -> None:
    stream, cancelled = accepting(), threading.Event()
    stream._cancel = cancelled.set
    outgoing = stream.resumed(request(stream.secret, stream.session.id, 3, 1), iter(()), lambda: None)
    assert cancelled.is_set()
    assert next(outgoing).resumed.received == 1
    assert [(m.number, m.progress.stage) for m in (next(outgoing), next(outgoing))] == [(2, "b"), (3, "c")]
    for epoch in (2, 3):
        with pytest.raises(WireError, match=f"asks for call {epoch} of a stream whose call 3 is there"):
            stream.resumed(request(stream.secret, stream.session.id, epoch, 1), iter(()), lambda: None)
    with pytest.raises(WireError, match="received message 0, but it said 1 before"):
        stream.resumed(request(stream.secret, stream.session.id, 4, 0), iter(()), lambda: None)
    with pytest.raises(WireError, match="received message 4, but 3 were sent"):
        stream.resumed(request(stream.secret, stream.session.id, 4, 4), iter(()), lambda: None)
    assert stream.epoch == 3


def test_a_call_that_this_side_has_ended_is_not_lost(caplog: pytest.LogCaptureFixture) -> None:
    """The accepting side ends the call when all that it sent has arrived, whether or not the peer's last word has."""
    caplog.set_level("INFO")
    stream = accepting()
    stream.resumed(request(stream.secret, stream.session.id, 1, 0), iter(SimpleQueue().get, None), lambda: None)
    stream.close()
    stream.take(wire.ClientMessage(heartbeat=wire.Heartbeat(received=4)), "heartbeat", 1)
    assert stream.sending is Sending.SETTLED
    caplog.clear()
    stream.call_over(1)
    stream.read(iter(()), 1)
    assert stream.receiving is Receiving.OVER
    assert stream.session.error is None
    assert "connection lost" not in caplog.text


def test_a_call_that_ends_before_all_has_arrived_is_lost() -> None:
    stream = accepting()
    stream.resumed(request(stream.secret, stream.session.id, 1, 0), iter(SimpleQueue().get, None), lambda: None)
    stream.close()
    stream.take(wire.ClientMessage(heartbeat=wire.Heartbeat(received=3)), "heartbeat", 1)
    stream.call_over(1)
    assert stream.connection is Connection.LOST


def test_a_call_that_was_taken_over_is_not_read() -> None:
    stream = accepting()
    stream.resumed(request(stream.secret, stream.session.id, 1, 0), iter(()), lambda: None)
    received = stream.received
    stream.read(iter([wire.ClientMessage(chunk=wire.Chunk(payload=b"late"), number=2)]), 0)
    assert stream.received == received
    assert stream.session.error is None


def test_what_was_said_to_have_arrived_stays_true(monkeypatch: pytest.MonkeyPatch) -> None:
    """From when the dialling side asks for a new call, a late message of the old one is not taken: it comes again."""
    monkeypatch.setattr(parties.transport.opening, "dial_again", lambda stream, route: None)
    route = Route("party0", lambda: None, lambda channel: lambda outgoing: iter(()), lambda: "", lambda channel: "")  # type: ignore
    stream = dialled(Session("5" * 32, "client"), route, 5, wire.ClientMessage(heartbeat=wire.Heartbeat()))
    assert isinstance(stream, ResumableStream)
    stream.read(iter([wire.PartyMessage(progress=wire.Progress(stage="a"), number=1)]), 0)
    assert stream.connection is Connection.LOST
    _, asked = stream.next_request()
    assert asked.resume.received == 1
    again = wire.PartyMessage(progress=wire.Progress(stage="b"), number=2)
    stream.read(iter([again]), 0)
    assert stream.received == 1
    assert stream.connected(Call(1, SimpleQueue(), lambda: None), 0, "")
    stream.read(iter([again, wire.PartyMessage(end=wire.End(), number=3)]), 1)
    assert [stream.receive().progress.stage for _ in "ab"] == ["a", "b"]
    assert stream.session.error is None


def test_who_has_all_says_so_though_it_was_cut_off() -> None:
    """The peer of a stream that ended must not wait for its window only because the last word about arrivals was lost."""
    said: list[wire.Resume] = []

    class Answer:
        def __next__(self) -> wire.PartyMessage:
            return wire.PartyMessage(resumed=wire.Resumed())

        def cancel(self) -> None:
            done.set()

    class Channel:
        def close(self) -> None: ...

    def call(messages: Iterator[wire.ClientMessage]) -> Answer:
        said.extend(message.resume for message in messages)
        return Answer()

    def until_cut(*messages: wire.PartyMessage) -> Iterator[wire.PartyMessage]:
        yield from messages
        raise ConnectionError

    done = threading.Event()
    channel: Any = Channel()
    route = Route("party0", lambda: channel, lambda channel: call, lambda: "", lambda channel: "")
    stream = dialled(Session("5" * 32, "client"), route, 5, wire.ClientMessage(heartbeat=wire.Heartbeat()))
    stream.read(until_cut(wire.PartyMessage(end=wire.End(), number=1)))
    assert done.wait(10)
    assert [(one.received, one.epoch) for one in said] == [(1, 1)]
    assert stream.receiving is Receiving.OVER
    assert stream.session.error is None


@pytest.mark.parametrize("number", [0, 1, 3])
def test_numbers_out_of_order(number: int) -> None:
    stream = accepting()
    stream.read(iter([wire.ClientMessage(chunk=wire.Chunk(payload=b"x"), number=number)]), 0)
    assert isinstance(stream.session.error, WireError)
    assert f"client sent message {number} where message 2 was expected" in str(stream.session.error)


def test_arrivals_that_cannot_be() -> None:
    stream = accepting()
    stream.read(iter([wire.ClientMessage(heartbeat=wire.Heartbeat(received=9))]), 0)
    assert isinstance(stream.session.error, WireError)
    assert "client says that it has received message 9, but 3 were sent" in str(stream.session.error)


def test_memory_is_bounded() -> None:
    kept = UnacknowledgedQueue()
    for i in range(1000):
        kept.add(wire.PartyMessage())
        if i % 10 == 9:
            kept.acknowledge(i + 1, "client")
            assert len(kept) == 0
    stream = accepting()
    stream.outbox = SimpleQueue()
    for _ in range(200):  # more would wait
        stream.send(wire.PartyMessage())
    waiting = threading.Thread(target=stream.send_bulk, args=(wire.PartyMessage(),), daemon=True)
    waiting.start()
    waiting.join(0.1)
    assert waiting.is_alive(), "a full buffer does not hold its sender back"
    while not stream.outbox.empty():
        stream.outbox.get()
    stream.read(iter([wire.ClientMessage(heartbeat=wire.Heartbeat(received=203))]), 0)
    waiting.join(10)
    assert not waiting.is_alive()


def test_silence_and_loss_add_up() -> None:
    """A silent connection that ends is waited for; but not for ever, however often it comes back without a word."""
    stream = accepting()
    assert stream.loss is not None
    first = stream.loss.limit
    for epoch in (1, 2, 3):
        stream.resumed(request(stream.secret, stream.session.id, epoch, 0), iter(()), lambda: None)
        limit = time.monotonic() + 5
        while stream.loss is None:
            assert time.monotonic() < limit
            time.sleep(0.01)
        assert stream.loss.limit == pytest.approx(first, abs=1e-6)
    stream.stay_away()
    assert isinstance(stream.session.error, PeerLost)
    assert "did not come back within 5 s" in str(stream.session.error)


def test_silent_peer_keeps_its_error() -> None:
    stream = accepting()
    stream.loss = Loss(PeerSilent("client", "decode", "sent nothing for 3 s"), 0.0)
    stream.stay_away()
    assert isinstance(stream.session.error, PeerSilent)


def test_a_peer_that_never_spoke_has_all_of_the_deadline() -> None:
    """There is nothing to resume after half of it, and it may still answer, or say why it does not."""
    route = Route(
        "party0", lambda: pytest.fail("dialled"), lambda channel: pytest.fail("called"), lambda: "", lambda channel: ""
    )
    stream = dialled(Session(new_id(), "party1"), route, 5, wire.PeerMessage(heartbeat=wire.Heartbeat()))
    assert isinstance(stream, ResumableStream)
    stream.suspect(5)
    assert stream.session.error is None
    assert stream.connection is Connection.UP
