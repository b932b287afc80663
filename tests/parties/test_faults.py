"""Every failure ends the session everywhere in time, with an error that names the peer; the next session works."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mpc.errors import EnvironmentProblem, MpcacheError, PeerError, PeerLost, PeerSilent, TapeError, WireError
from parties.client.client import GenerationResult
from parties.party.compute_party import ComputePartyServer
from parties.transport.channel import GrpcChannel
from parties.wire import wire_pb2 as wire
from protocols.suite import OutputShare
from tests.parties.conftest import VOCABULARY, Running
from tests.parties.deployment import Deployment
from tests.parties.relay import Relay
from tests.parties.toy import Toy, expected, slow

PROMPT = [3, 1]
PAUSE = 0.02


def works(deployment: Deployment) -> None:
    """A session succeeds."""
    result = deployment.client().ask(PROMPT, 2, model="tiny", stop_ids=())
    assert result.tokens == expected(PROMPT, 2, VOCABULARY)


def idle(deployment: Deployment, seconds: float = 10.0) -> None:
    """No server of this process has a session any more."""
    limit = time.monotonic() + seconds
    while any(server.sessions.all() for server in deployment.servers.values()):
        assert time.monotonic() < limit, "a session was not freed"
        time.sleep(0.02)


def during(deployment: Deployment, act: Callable[[], None], tokens: int = 30) -> tuple[MpcacheError, float]:
    """Do something when the second token has come; the client's error and the seconds until it."""
    acted = [0.0]

    def on_token(token: int) -> None:
        if token == sum(PROMPT) + 1:
            acted[0] = time.monotonic()
            act()

    with pytest.raises(MpcacheError) as caught:
        deployment.client().ask(PROMPT, tokens, stop_ids=(), on_token=on_token)
    assert acted[0]
    return caught.value, time.monotonic() - acted[0]


class Processes:
    """A deployment whose servers are all processes of their own."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self.running: dict[str, Any] = {}

    def start(self, *names: str) -> None:
        """Start servers side by side."""
        with ThreadPoolExecutor() as pool:
            found = pool.map(lambda name: self.deployment.start_process(name, 3, PAUSE), names)
            self.running.update(zip(names, found, strict=True))


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Iterator[Processes]:
    deployment = Deployment(tmp_path_factory.mktemp("processes"), 2, deadline_seconds=2.5, connect_seconds=20)
    try:
        out = Processes(deployment)
        out.start("dealer", *deployment.names)
        deployment.share(checkpoint)
        yield out
    finally:
        deployment.stop()


@pytest.mark.parametrize("name", ["party0", "party1", "dealer"])
def test_paused(name: str, processes: Processes) -> None:
    process = processes.running[name]
    error, seconds = during(processes.deployment, lambda: process.send_signal(signal.SIGSTOP))
    process.send_signal(signal.SIGCONT)
    assert isinstance(error, PeerSilent)
    assert error.peer == name
    assert "sent nothing for 2.5 s" in str(error)
    assert 2 < seconds < 6
    time.sleep(0.3)
    works(processes.deployment)


@pytest.mark.parametrize("name", ["party1", "dealer"])
def test_killed(name: str, processes: Processes) -> None:
    error, seconds = during(processes.deployment, processes.running[name].kill)
    assert isinstance(error, PeerLost)
    assert error.peer == name
    assert error.step
    assert seconds < 4
    processes.start(name)
    works(processes.deployment)


def test_client_gone(two: Running) -> None:
    two.toy.before_round = slow(0.005)

    def on_token(token: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        two.deployment.client().ask(PROMPT, 20, stop_ids=(), on_token=on_token)
    idle(two.deployment, 2)
    works(two.deployment)


@contextmanager
def relayed(
    folder: Path, checkpoint: Path, role: str, toy: Toy, **settings: Any
) -> Iterator[tuple[Deployment, Relay, list[dict[str, str]]]]:
    """A deployment in which `role` reaches party0 through a relay."""
    deployment = Deployment(folder, 2, toy.program, bulk="off", **settings)
    relay = Relay(deployment.addresses[0])
    near = deployment.values("client", "client")["parties"]
    near[0] = {"name": "party0", "address": relay.address}
    try:
        for name in ("dealer", *deployment.names):
            deployment.start_one(name, **({"parties": near} if name == role else {}))
        deployment.share(checkpoint)
        yield deployment, relay, near
    finally:
        deployment.stop()
        relay.close()


def test_line_cut_between_parties(tmp_path: Path, checkpoint: Path) -> None:
    toy = Toy()
    toy.before_round = slow(PAUSE)
    with relayed(tmp_path, checkpoint, "party1", toy, resume_seconds=0) as (deployment, relay, _):
        error, seconds = during(deployment, relay.cut)
        assert isinstance(error, PeerLost)
        assert error.peer in ("party0", "party1")
        assert seconds < 2
        idle(deployment)
        works(deployment)


def test_line_held_between_parties(tmp_path: Path, checkpoint: Path) -> None:
    toy = Toy()
    toy.before_round = slow(PAUSE)
    with relayed(tmp_path, checkpoint, "party1", toy, deadline_seconds=1.5) as (deployment, relay, _):
        error, seconds = during(deployment, relay.open.clear)
        assert isinstance(error, PeerSilent)
        assert error.peer in ("party0", "party1")
        assert seconds < 4
        idle(deployment)
        relay.open.set()
        works(deployment)


def test_client_line_cut(tmp_path: Path, checkpoint: Path) -> None:
    toy = Toy()
    toy.before_round = slow(PAUSE)
    with relayed(tmp_path, checkpoint, "client", toy, resume_seconds=0) as (deployment, relay, near):
        client = deployment.client(parties=near)
        with pytest.raises(PeerLost, match="party0: the connection ended"):
            client.ask(PROMPT, 30, stop_ids=(), on_token=lambda token: relay.cut())
        idle(deployment)
        works(deployment)


def test_alive_but_stuck(tmp_path: Path, checkpoint: Path) -> None:
    toy = Toy()
    release = threading.Event()
    toy.before_round = lambda party, step, round: step == 2 and party == 1 and release.wait(20) and None  # type: ignore
    with Deployment(tmp_path, 2, toy.program, deadline_seconds=1.2, step_seconds=2) as deployment:
        deployment.share(checkpoint)
        start = time.monotonic()
        with pytest.raises(PeerSilent, match="party1: is alive, but sent nothing of this step for 2 s") as caught:
            deployment.client().ask(PROMPT, 9, stop_ids=())
        assert 1.8 < time.monotonic() - start < 6
        assert caught.value.step == "tokens 2 of 9"
        release.set()
        idle(deployment)
        works(deployment)


@pytest.mark.parametrize("name", ["party1", "dealer"])
def test_peer_never_comes(name: str, tmp_path: Path, checkpoint: Path) -> None:
    with Deployment(tmp_path, 2, Toy().program, connect_seconds=1.2) as deployment:
        deployment.share(checkpoint)
        stopped = deployment.servers.pop(name)
        stopped.stop()
        start = time.monotonic()
        waits: list[str] = []
        with pytest.raises(PeerLost, match=f"{name}: nothing listens at .*: start {name}, or correct its address") as caught:
            deployment.client().ask(
                PROMPT,
                2,
                model=deployment.client().models()[0] if name == "dealer" else None,
                on_progress=lambda stage, done, total: waits.append(stage),
            )
        assert time.monotonic() - start < 6
        assert "waited 1.2 s" in str(caught.value)
        deployment.start_one(name)
        works(deployment)


def test_party_waits_for_peers_that_start_later(tmp_path: Path, checkpoint: Path) -> None:
    with Deployment(tmp_path, 2, Toy().program, connect_seconds=60) as deployment:
        deployment.share(checkpoint)
        model = deployment.client().models()[0]
        deployment.servers.pop("dealer").stop()
        waits: list[str] = []

        def progress(stage: str, done: int, total: int) -> None:
            if "waiting for dealer: nothing listens at" in stage and not waits:
                waits.append(stage)
                threading.Thread(target=deployment.start_one, args=("dealer",)).start()

        result = deployment.client().ask(PROMPT, 2, model=model, stop_ids=(), on_progress=progress)
        assert result.tokens == expected(PROMPT, 2, VOCABULARY)
        assert len(waits) == 1


def test_occupied_port(two: Running) -> None:
    taken = two.deployment.config("party", "party0")
    with pytest.raises(EnvironmentProblem, match=r"cannot listen at 127\.0\.0\.1:\d+: address already in use; stop the pro"):
        ComputePartyServer(taken).start()
    elsewhere = two.deployment.config("party", "party0", listen="203.0.113.9:1")
    with pytest.raises(EnvironmentProblem, match=r"cannot listen at 203\.0\.113\.9:1: cannot assign requested address"):
        ComputePartyServer(elsewhere).start()


def test_server_stopped_in_a_session(tmp_path: Path, checkpoint: Path) -> None:
    toy = Toy()
    toy.before_round = slow(PAUSE)
    with Deployment(tmp_path, 2, toy.program) as deployment:
        deployment.share(checkpoint)
        stopping = threading.Thread(target=deployment.servers["party1"].stop)
        error, seconds = during(deployment, stopping.start)
        assert isinstance(error, PeerLost)
        assert error.peer == "party1"
        assert seconds < 3
        stopping.join()
        deployment.start_one("party1")
        works(deployment)


# ---- wrong things on the wire ------------------------------------------------------------------------------------------


def fails(running: Running, kind: type[MpcacheError], message: str, **arguments: Any) -> GenerationResult | None:
    """A session fails so, quickly and everywhere; the next one works."""
    start = time.monotonic()
    with pytest.raises(kind, match=message):
        running.deployment.client().ask(PROMPT, 3, stop_ids=(), **arguments)
    assert time.monotonic() - start < 4
    idle(running.deployment)
    return None


def party1_sends(monkeypatch: pytest.MonkeyPatch, send: Callable[[GrpcChannel, int, bytes], None]) -> None:
    """Replace what party1 sends in its rounds."""
    original = GrpcChannel.send

    def replaced(self: GrpcChannel, peer: int, payload: bytes) -> None:
        if self.party == 1:
            send(self, peer, payload)
        else:
            original(self, peer, payload)

    monkeypatch.setattr(GrpcChannel, "send", replaced)


def frame(sequence: int, size: int, payload: bytes) -> wire.PeerMessage:
    return wire.PeerMessage(frame=wire.Frame(sequence=sequence, size=size, payload=payload))


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (lambda size: frame(0, size + 8, bytes(size)), r"party1 announced a message of \d+ bytes where \d+ were expected"),
        (lambda size: frame(0, 1 << 60, bytes(size)), r"party1 announced a message of 1152921504606846976 bytes"),
        (lambda size: frame(0, size, bytes(size + 1)), r"party1 sent \d+ bytes in a frame where 1 to \d+ were expected"),
        (lambda size: frame(0, size, b""), r"party1 sent 0 bytes in a frame where 1 to \d+ were expected"),
        (lambda size: frame(7, size, bytes(size)), r"party1 sent frame 7 where frame 0 was expected"),
        (lambda size: wire.PeerMessage(hello=wire.Hello()), "party1 sent 'hello' where a frame was expected"),
        (lambda size: wire.PeerMessage(), "party1 sent 'None' where a frame was expected"),
        (
            lambda size: frame(0, size, bytes(3 << 20)),
            r"party1 announced a record of kind 1 and \d+ bytes|is larger than the wire allows",
        ),
    ],
)
def test_wrong_frames(
    two: Running, monkeypatch: pytest.MonkeyPatch, message: Callable[[int], wire.PeerMessage], error: str
) -> None:
    party1_sends(monkeypatch, lambda channel, peer, payload: channel._streams[peer].send(message(len(payload))))
    fails(two, MpcacheError, error)
    monkeypatch.undo()
    works(two.deployment)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda s: OutputShare(s.share.repeat(2), 64, 0), r"party1 sent an output of step 0 and shape \[2\], expected"),
        (lambda s: OutputShare(s.share, 32, 0), r"different rings or fraction bits: party0 Z_2\^64 with 0, party1 Z_2\^32"),
        (lambda s: OutputShare(s.share, 64, 3), "different rings or fraction bits"),
    ],
)
def test_wrong_outputs(two: Running, change: Callable[[OutputShare], OutputShare], error: str) -> None:
    two.toy.after_share = lambda party, share: change(share) if party == 1 else share
    fails(two, WireError, error)


def test_dealer_with_another_program(two: Running) -> None:
    dealer = two.deployment.servers["dealer"]
    original = dealer.program
    dealer.program = Toy(rounds=3, elements=5).program
    try:
        fails(two, TapeError, "tape entry .*dealer and party must hold the same program")
        dealer.program = Toy(rounds=1).program
        fails(two, TapeError, "the tape ended before the program did")
    finally:
        dealer.program = original
    works(two.deployment)


def test_errors_are_short_and_printable(two: Running) -> None:
    def shout(party: int, share: OutputShare) -> OutputShare:
        raise PeerError("party1", "a\nb\x1b[31m", "x" * 10_000)

    two.toy.after_share = shout
    with pytest.raises(PeerError) as caught:
        two.deployment.client().ask(PROMPT, 1)
    text = str(caught.value)
    assert len(text) < 2500
    assert text.isprintable()
