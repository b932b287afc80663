"""Streams beside gRPC: who is let in, what is read and allocated, what happens without a line and when one is lost."""

from __future__ import annotations

import logging
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import parties.transport.line
import parties.transport.line_dialling
from mpc.errors import ConfigurationError, PeerLost, PermissionRefused, WireError
from parties.identity.certificates import check, create_deployment
from parties.transport.line import ACCEPTED, LocalLine, TlsLine, is_own_user, settings_of
from parties.transport.line_dialling import make_line
from parties.transport.opening import accepted, dialled
from parties.transport.pieces import Piece
from parties.transport.records import LineCall
from parties.transport.resumable_stream import ResumableStream
from parties.transport.resumption import Route, request
from parties.transport.session import Session
from parties.wire import wire_pb2 as wire
from parties.wire.error_codec import Refusal
from parties.wire.manifest import new_id
from tests.parties.conftest import VOCABULARY, Running, run
from tests.parties.test_faults import PROMPT, idle, works
from tests.parties.toy import expected, slow

WAYS = ("local", "tls")
TOKENS = 12


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Iterator[Running]:
    """Two parties and a dealer, on lines as far as they can be had, that notice quickly what says nothing."""
    yield from run(tmp_path_factory.mktemp("two"), checkpoint, 2, first_message_seconds=1.0, resume_seconds=5)


@contextmanager
def over(two: Running, way: str) -> Iterator[None]:
    """Let servers offer lines of one kind only."""
    lines = [server.lines for server in two.deployment.servers.values()]
    names = [one.local for one in lines]
    if way == "tls":
        for one in lines:
            one.local = ""
    yield
    for one, name in zip(lines, names, strict=True):
        one.local = name


def streams(two: Running) -> list[ResumableStream]:
    """The streams between parties and dealer, at both ends."""
    found = [s for server in two.deployment.servers.values() for one in server.sessions.all() for s in one.streams]
    return [s for s in found if isinstance(s, ResumableStream) and s.peer != "client"]


def wait_until(ready: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait."""
    limit = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < limit
        time.sleep(0.005)


def ask(two: Running, *arguments: Any, **options: Any) -> Any:
    """A session."""
    client: Any = two.deployment.client()
    return client.ask(*arguments, **options)


def asked(two: Running, act: Callable[[], None], tokens: int = TOKENS) -> Any:
    """A session in which `act` happens at the second token, once all its streams are on lines."""
    two.toy.before_round = slow(0.01)
    failed: list[BaseException] = []

    def on_token(token: int) -> None:
        if token == sum(PROMPT) + 1:
            try:
                act()
            except BaseException as error:
                failed.append(error)

    result = ask(two, PROMPT, tokens, stop_ids=(), on_token=on_token)
    assert not failed, failed
    assert result.tokens == expected(PROMPT, tokens, VOCABULARY)
    return result


# ---- sessions ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_lines_are_taken_and_lost_and_taken_again(two: Running, way: str) -> None:
    """The same tokens and costs as over gRPC, however often lines end."""
    calm: list[set[str]] = []

    def look() -> None:
        wait_until(lambda: all(s.way == way for s in streams(two)))
        calm.append({s.way for s in streams(two)})

    def moved(before: list[int]) -> bool:
        return all(stream.epoch > epoch for stream, epoch in zip(streams(two), before, strict=True))

    def cut() -> None:
        for _ in range(3):
            look()
            before = [s.epoch for s in streams(two)]
            for server in two.deployment.servers.values():
                server.lines.cut()
            wait_until(partial(moved, before))

    with over(two, way):
        undisturbed, disturbed = asked(two, look), asked(two, cut, 24)
        again = asked(two, lambda: None, 24)
    assert calm == [{way}] * 4
    assert undisturbed.costs.keys() == disturbed.costs.keys()
    for name, costs in disturbed.costs.items():
        counted = {key: value for key, value in costs["total"].items() if "seconds" not in key}
        assert counted == {key: value for key, value in again.costs[name]["total"].items() if "seconds" not in key}
    idle(two.deployment)
    wait_until(lambda: not any(server.lines._lines for server in two.deployment.servers.values()))


def test_a_port_that_cannot_be_reached(two: Running, caplog: pytest.LogCaptureFixture) -> None:
    """Streams stay with gRPC, and one line says why and what helps; or the session ends, where lines are required."""
    caplog.set_level(logging.INFO)
    party0, ports = two.deployment.servers["party0"], {}
    for name, server in two.deployment.servers.items():
        ports[name] = server.lines.port
        with socket.create_server(("127.0.0.1", 0)) as free:
            server.lines.port = int(free.getsockname()[1])
    try:
        with over(two, "tls"):
            for _ in range(2):
                works(two.deployment)
            told = [r.getMessage() for r in caplog.records if "stays with grpc" in r.getMessage()]
            (line,) = [text for text in told if f"port {party0.lines.port} " in text]
            assert "connection refused" in line
            assert "'bulk_port' of party0" in line
            requiring = two.deployment.servers["party1"]
            before, requiring.config = requiring.config, requiring.config.model_copy(update={"bulk": "required"})
            with pytest.raises(PeerLost, match=r"party0: port \d+ of 127\.0\.0\.1 does not answer .*during"):
                ask(two, PROMPT, 2, stop_ids=())
            requiring.config = before
    finally:
        for name, server in two.deployment.servers.items():
            server.lines.port = ports[name]
    idle(two.deployment)
    works(two.deployment)


def test_settings(two: Running) -> None:
    with pytest.raises(ConfigurationError, match="bulk: streams that are not resumed stay with gRPC; set resume_seconds"):
        two.deployment.config("party", "party0", bulk="required", resume_seconds=0)
    with pytest.raises(ConfigurationError, match="bulk"):
        two.deployment.config("party", "party0", bulk="sometimes")
    assert two.deployment.config("party", "party0", bulk=False).bulk == "off"


# ---- who is let in -----------------------------------------------------------------------------------------------------


def connection(two: Running, way: str, name: str = "party0") -> socket.socket:
    """A connection to where lines of a server begin."""
    lines = two.deployment.servers[name].lines
    if way == "tls":
        return socket.create_connection(("127.0.0.1", lines.port), timeout=10)
    plain = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    plain.settimeout(10)
    plain.connect(parties.transport.line.UNIX_NAME.format(lines.local))
    return plain


def line_as(two: Running, name: str, way: str, folder: Path | None = None) -> LineCall:
    """A line to party0 as `name`."""
    line = TlsLine(connection(two, way), settings_of(check(folder or two.deployment.certificates, name), False), False)
    line.shake_hands()
    if line.read(1) != ACCEPTED:
        raise ConnectionError
    return LineCall(line.local() if way == "local" else line, "party0", wire.PeerMessage.FromString)


def refusal(two: Running, name: str, way: str, message: Any) -> str:
    """What party0 says to `name` who sends this on a line."""
    call = line_as(two, name, way)
    call.send(message)
    with pytest.raises(Refusal) as caught:
        next(call)
    return str(caught.value.failure.message)


@pytest.mark.parametrize("way", WAYS)
def test_strangers(two: Running, way: str, tmp_path: Path) -> None:
    """Other authorities, no certificate, older TLS, other protocols: nobody gets the byte that says that it is accepted."""
    create_deployment(tmp_path, {"party1": "party"}, days=1)
    own = check(two.deployment.certificates, "party1")
    with pytest.raises(OSError):
        line_as(two, "party1", way, tmp_path)
    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    bare.check_hostname = False
    bare.load_verify_locations(cadata=own.authority.decode())
    old, other = settings_of(own, False), settings_of(own, False)
    old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_2
    other.set_alpn_protocols(["h2"])
    for settings in (bare, old, other):
        line = TlsLine(connection(two, way), settings, False)
        with pytest.raises(OSError):  # noqa: PT012
            line.shake_hands()
            assert line.read(1) != ACCEPTED
            raise ConnectionError
    with connection(two, way) as plain:
        plain.sendall(os.urandom(300))
        assert ACCEPTED not in plain.recv(1 << 16)


@pytest.mark.parametrize("way", WAYS)
def test_refusals_by_name(two: Running, way: str) -> None:
    """Other roles, other sessions, wrong proofs, replays and second lines are refused, and the session goes on."""
    found: list[tuple[str, str]] = []

    def act() -> None:
        wait_until(lambda: all(s.way != "grpc" for s in streams(two)))
        (mine,) = [s for s in streams(two) if s.session.role == "party0" and s.peer == "party1"]
        wait_until(lambda: bool(mine.unacknowledged.arrived))
        secret, id = mine.secret, mine.session.id
        for name, text, message in [
            ("client", "'client' may not compute with party0", request(secret, id, 9, 1)),
            ("owner", "'owner' may not compute with party0", request(secret, id, 9, 1)),
            ("dealer", "'dealer' may not compute with party0", request(secret, id, 9, 1)),
            ("party1", "its proof is wrong", request(bytes(32), id, 9, 1)),
            ("party1", "holds no stream of session", request(secret, new_id(), 9, 1)),
            ("party1", "a replay, or the slower of two", request(secret, id, mine.epoch, mine.received)),
            ("party1", "received message 999999, but", request(secret, id, 9, 999_999)),
        ]:
            found.append((text, refusal(two, name, way, wire.PeerMessage(resume=message))))
        hello = wire.PeerMessage(hello=wire.Hello(session=id, name="party1"))
        found.append(("where a stream is only resumed", refusal(two, "party1", way, hello)))
        found.append(("sent 'frame'", refusal(two, "party1", way, Piece(0, 1, b"x"))))

    with over(two, way):
        asked(two, act, 24)
    assert len(found) == 9
    for text, said in found:
        assert text in said, (text, said)
    idle(two.deployment)


def test_a_line_to_somebody_else(two: Running) -> None:
    """A server with another name at the offered port is not gone over to, whatever gRPC's peer has said."""
    party0, dealer = two.deployment.servers["party0"].lines, two.deployment.servers["dealer"].lines
    offer = wire.LineOffer(port=dealer.port)
    with pytest.raises(PermissionRefused, match=r"beside gRPC 'dealer' answers at .*, not 'party0'"):
        make_line(check(two.deployment.certificates, "party1"), two.deployment.peer("party0"), offer)
    before, party0.port = party0.port, dealer.port
    with over(two, "tls"):
        asked(two, lambda: None, 4)
    party0.port = before


def test_another_user_of_the_host(two: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel says who runs a peer's process: for another user's, or one of a namespace without it, the line is TLS."""
    identity, peer = check(two.deployment.certificates, "party1"), two.deployment.peer("party0")
    lines = two.deployment.servers["party0"].lines
    offer = wire.LineOffer(port=lines.port, local=lines.local)
    assert make_line(identity, peer, offer)[0].way == "local"
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    assert make_line(identity, peer, offer)[0].way == "tls"
    monkeypatch.undo()
    monkeypatch.setattr(parties.transport.line, "_unknown_user", os.geteuid)
    near, far = socket.socketpair()
    with near, far:
        assert not is_own_user(near)


def test_connections_that_say_nothing(two: Running) -> None:
    """More than are answered at a time, each for a second: sessions beside them stay with gRPC or wait, none fails."""
    held = [connection(two, way) for _ in range(40) for way in WAYS]
    works(two.deployment)
    for plain in held:
        plain.settimeout(10)
        with plain:
            assert plain.recv(1) == b""
    asked(two, lambda: wait_until(lambda: all(s.way == "local" for s in streams(two))))


def test_both_directions_of_tls_at_once(two: Running) -> None:
    """Encryption is one at a time; waiting for the network is not, so that two sides which send first do not block."""
    near, far = socket.socketpair()
    folder, found = two.deployment.certificates, {}

    def serve() -> None:
        found["server"] = TlsLine(far, settings_of(check(folder, "party0"), True), True)
        found["server"].shake_hands()

    serving = threading.Thread(target=serve)
    serving.start()
    client = TlsLine(near, settings_of(check(folder, "party1"), False), False)
    client.shake_hands()
    serving.join(5)
    data = [os.urandom(6 << 20), os.urandom(6 << 20)]
    got: dict[int, bytes] = {}
    threads = []
    for number, line in enumerate((client, found["server"])):
        threads.append(threading.Thread(target=line.send, args=(b"x" * 32, data[number])))
        threads.append(threading.Thread(target=lambda n=number, line=line: got.update({n: line.read(32 + (6 << 20))[32:]})))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [got[1], got[0]] == data
    assert isinstance(client.local(), LocalLine)


def test_offers_that_are_not_due() -> None:
    """One of the side that was dialled, once: anything else ends the session."""
    taken: list[int] = []
    none: Any = None
    route = Route("party0", none, none, none, none, lambda stream, offer: taken.append(offer.port))
    beat, offer = wire.PeerMessage(heartbeat=wire.Heartbeat()), wire.LineOffer(port=7)
    dialling = dialled(Session(new_id(), "party1"), route, 5, beat)
    dialling.read(iter([wire.PeerMessage(offer=offer, number=n) for n in (1, 2)]))
    first = wire.PeerMessage(hello=wire.Hello(), number=1, resume_secret=bytes(range(32)))
    dialled_by = accepted(Session(new_id(), "party0"), "party1", 5, beat, first)
    dialled_by.read(iter([wire.PeerMessage(offer=offer, number=2)]))
    wait_until(lambda: taken == [7])
    for stream in (dialling, dialled_by):
        assert isinstance(stream.session.error, WireError)
        assert "offered a line where none is due" in str(stream.session.error)
