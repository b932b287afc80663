"""Hostile bytes at a server's port: refused, bounded, and without effect on a session that runs beside them."""

from __future__ import annotations

import os
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from mpc.errors import MpcacheError, WireError
from parties.client.client import GenerationResult
from parties.config.role_config import split_address
from parties.identity.certificates import create_deployment
from parties.wire import wire_pb2 as wire
from parties.wire.manifest import new_id
from parties.wire.shares import MESSAGE_BYTES
from tests.parties.conftest import VOCABULARY, Running, run
from tests.parties.test_faults import PROMPT, idle, works
from tests.parties.test_refusals import dial, manifest, outcome
from tests.parties.toy import expected, slow

GENERATE = "/mpcache.ComputeParty/Generate"
TOKENS = 12


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Iterator[Running]:
    """Two parties and a dealer that wait a shorter time for a session's peers."""
    yield from run(tmp_path_factory.mktemp("two"), checkpoint, 2, connect_seconds=3)


def resident() -> int:
    """Bytes of memory that this process (all servers run in it) holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def open_files() -> int:
    """Open file descriptors of this process."""
    return len(list(Path("/proc/self/fd").iterdir()))


@contextmanager
def beside(two: Running) -> Iterator[None]:
    """A session that runs meanwhile must give its tokens."""
    two.toy.before_round = slow(0.01)
    with ThreadPoolExecutor(1) as pool:
        client = two.deployment.client()
        running = pool.submit(lambda: client.ask(PROMPT, TOKENS, model="tiny", stop_ids=()))
        yield
        result: GenerationResult = running.result()
    assert result.tokens == expected(PROMPT, TOKENS, VOCABULARY)


def address(two: Running, name: str) -> tuple[str, int]:
    """Host and port of a server."""
    return split_address(dict(zip([*two.deployment.names, "dealer"], two.deployment.addresses, strict=True))[name])


def tls(two: Running, name: str | None, version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    """A client's context with the identity `name`, or none."""
    folder = two.deployment.certificates
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(folder / "authority.crt")
    context.set_alpn_protocols(["h2"])
    if name is not None:
        context.load_cert_chain(folder / f"{name}.crt", folder / f"{name}.key")
    if version is not None:
        context.minimum_version = context.maximum_version = version
    return context


def refused(plain: socket.socket, context: ssl.SSLContext) -> bool:
    """Whether the server ends the connection without a byte of its protocol."""
    plain.settimeout(10)
    try:
        with context.wrap_socket(plain, server_hostname="party0") as secured:
            return secured.recv(1) == b""
    except OSError:
        return True


@pytest.mark.parametrize("name", ["party0", "dealer"])
def test_random_bytes(two: Running, name: str) -> None:
    rng = random.Random(5)
    with beside(two):
        for _ in range(20):
            with socket.create_connection(address(two, name), timeout=10) as plain:
                plain.sendall(rng.randbytes(rng.randrange(1, 5000)))
                plain.shutdown(socket.SHUT_WR)
                plain.settimeout(10)
                with suppress(OSError):
                    assert len(plain.recv(1 << 16)) < 1 << 16
    idle(two.deployment, 15)


def test_without_tls_or_without_the_right_certificate(two: Running, tmp_path: Path) -> None:
    create_deployment(tmp_path, {"client": "client"}, days=1)
    foreign = tls(two, None)
    foreign.load_cert_chain(tmp_path / "client.crt", tmp_path / "client.key")
    with beside(two):
        for context in (tls(two, None), foreign):
            assert refused(socket.create_connection(address(two, "party0"), timeout=10), context)
        with socket.create_connection(address(two, "party0"), timeout=10) as plain:
            plain.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9))
            plain.settimeout(10)
            with suppress(OSError):
                assert b"mpcache" not in plain.recv(1000)
    idle(two.deployment, 15)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_older_versions_of_tls(two: Running) -> None:
    for version in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1):
        context = tls(two, "client", version)
        context.set_ciphers("ALL:@SECLEVEL=0")
        assert refused(socket.create_connection(address(two, "party0"), timeout=10), context)
    assert not refused(socket.create_connection(address(two, "party0"), timeout=10), tls(two, "client"))
    works(two.deployment)


def raw_call(two: Running, messages: Callable[[], Iterator[bytes]], peer: str = "party0") -> MpcacheError:
    """The error of a call that sends these bytes as messages."""
    with dial(two, "client", peer) as channel:
        call = channel.stream_stream(GENERATE, request_serializer=bytes, response_deserializer=wire.PartyMessage.FromString)
        return outcome(call(messages()), peer)


def opening(two: Running) -> bytes:
    """A valid first message."""
    made = manifest(two, prompt_tokens=len(PROMPT), new_tokens=1)
    return wire.ClientMessage(open=wire.Open(session=new_id(), manifest=made.canonical())).SerializeToString()


def test_truncated_and_random_messages(two: Running) -> None:
    rng = random.Random(7)
    valid = opening(two)
    with beside(two):
        for data in (b"", b"\xff", valid[:-1], valid[: len(valid) // 2], rng.randbytes(300), valid + b"\x0a"):
            assert isinstance(raw_call(two, lambda data=data: iter([data])), MpcacheError)
    idle(two.deployment, 15)


def test_oversized_messages(two: Running) -> None:
    """More than the wire's limit in one message: refused by its declared size, and the server keeps no copy."""
    before = resident()
    large = wire.ClientMessage(chunk=wire.Chunk(payload=bytes(MESSAGE_BYTES + 1))).SerializeToString()
    with beside(two):
        for _ in range(4):
            assert isinstance(raw_call(two, lambda: iter([opening(two), large])), WireError)
    idle(two.deployment, 15)
    assert resident() - before < 64 << 20


def test_replayed_sessions(two: Running) -> None:
    """The very bytes of an opening that was used once are of no use again."""
    data = opening(two)
    first = raw_call(two, lambda: iter([data]))
    again = raw_call(two, lambda: iter([data]))
    assert isinstance(first, MpcacheError)
    assert isinstance(again, MpcacheError)
    idle(two.deployment, 15)
    works(two.deployment)


def test_a_peer_joins_a_session_that_is_not(two: Running) -> None:
    made = manifest(two, prompt_tokens=len(PROMPT), new_tokens=1)
    hello = wire.PeerMessage(hello=wire.Hello(session=new_id(), name="party1", manifest=made.canonical()))
    with dial(two, "party1", "party0") as channel:
        call = channel.stream_stream(
            "/mpcache.ComputeParty/Exchange",
            request_serializer=wire.PeerMessage.SerializeToString,
            response_deserializer=wire.PeerMessage.FromString,
        )
        error = outcome(call(iter([hello])), "party0")
    assert "no client has open" in str(error)
    idle(two.deployment, 15)


def test_a_flood_of_connections(two: Running) -> None:
    """Hundreds of connections that say nothing, and half-open handshakes: the session beside them goes on, and afterwards
    nothing is left of them."""
    before, memory = open_files(), resident()
    with beside(two), ExitStack() as stack:
        for number in range(300):
            plain = stack.enter_context(socket.create_connection(address(two, "party0"), timeout=10))
            if number % 3 == 0:
                plain.sendall(b"\x16\x03\x01\x02\x00\x01")
    limit = time.monotonic() + 30
    while open_files() > before + 20 and time.monotonic() < limit:
        time.sleep(0.1)
    assert open_files() <= before + 20
    assert resident() - memory < 128 << 20
    works(two.deployment)


def test_a_flood_of_calls(two: Running) -> None:
    """More openings at once than a server runs and lets wait: typed refusals at once, and it serves again afterwards."""
    stop = threading.Event()

    def held(data: bytes) -> Iterator[bytes]:
        yield data
        stop.wait(60)

    with dial(two, "client", "party0") as channel:
        make = channel.stream_stream(GENERATE, request_serializer=bytes, response_deserializer=wire.PartyMessage.FromString)
        calls = [make(held(opening(two))) for _ in range(60)]
        limit = time.monotonic() + 30
        while not (refused := [call for call in calls if call.done()]) and time.monotonic() < limit:
            time.sleep(0.05)
        for call in calls:
            call.cancel()
    stop.set()
    assert refused
    assert {call.code() for call in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    idle(two.deployment, 60)
    works(two.deployment)


def test_a_slow_sender(two: Running) -> None:
    """A client that opens a session and then only dribbles: others are served meanwhile, and it ends with the deadline."""
    stop = threading.Event()

    def dribble() -> Iterator[bytes]:
        yield opening(two)
        while not stop.wait(0.2):
            yield wire.ClientMessage(share=wire.ShareHeader(name="prompt", step=0)).SerializeToString()
            return

    with beside(two):
        error = raw_call(two, dribble)
    stop.set()
    assert isinstance(error, MpcacheError)
    idle(two.deployment, 30)
    works(two.deployment)


@pytest.mark.parametrize("call", ["/mpcache.ComputeParty/Steal", "/mpcache.Dealer/Tape", "/grpc.reflection.v1.X/Y", "/"])
def test_calls_that_are_not_there(two: Running, call: str) -> None:
    with dial(two, "client", "party0") as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(call)(b"", timeout=10)
    error: Any = caught.value
    assert error.code() == grpc.StatusCode.UNIMPLEMENTED
