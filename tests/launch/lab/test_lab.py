"""The network lab: delay and bandwidth as asked for, bytes in order, nothing left, and errors with a remedy."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.lab import iproute
from launch.lab.lab import Lab, module_environment, read_state, roles_for
from launch.lab.measure import measure
from launch.lab.relay import DelayLine
from launch.lab.removal import HOSTS, STATE, labs, processes, remove
from launch.lab.shaping import Shape, check_shapeable
from launch.predict.networks import NETWORKS, Network, find_network
from mpc.errors import ConfigurationError, EnvironmentProblem
from tests.launch.conftest import Command

WHY_NOT = iproute.problem() or (None if iproute.has_tun() or iproute.has_netem() else "no way to delay packets")
needs_lab = pytest.mark.skipif(WHY_NOT is not None, reason=f"no network lab here: {WHY_NOT}")
ROUND_TRIP, RATE = 20e-3, 100e6


# ---- the relay's queue -----------------------------------------------------------------------------------------------
@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 0.02), st.binary(min_size=1, max_size=40)), max_size=60),
    st.floats(0, 0.05),
    st.integers(40, 400),
)
def test_packets_leave_in_order_unchanged_and_never_early(
    packets: list[tuple[float, bytes]], delay: float, room: int
) -> None:
    line, now, accepted, left = DelayLine(delay, 0.0, room), 0.0, [], []

    def drain(until: float | None) -> None:
        nonlocal now
        while (wait := line.wait(now)) is not None and (until is None or now + wait <= until):
            now += wait
            packet = line.take(now)
            if packet is None:  # a rounding error before it is due
                now += 1e-9
                continue
            left.append((now, packet))

    for gap, packet in packets:
        drain(now + gap)
        now = max(now, now + gap)
        before = line.held
        line.put(packet, now)
        if line.held > before:
            accepted.append((now, packet))
        assert line.held <= room
    drain(None)
    assert line.held == 0
    assert [packet for _, packet in left] == [packet for _, packet in accepted]
    assert all(out >= came + delay for (out, _), (came, _) in zip(left, accepted, strict=True))
    assert line.counts.overflow == len(packets) - len(accepted)
    assert line.counts.packets == len(accepted)


def test_lost_packets_are_those_that_chance_names() -> None:
    chances = iter([0.5, 0.05, 0.1, 0.09, 0.9])
    line = DelayLine(0.0, 0.1, 1000, lambda: next(chances))
    for packet in (b"a", b"b", b"c", b"d", b"e"):
        line.put(packet, 0.0)
    assert [line.take(0.0) for _ in range(4)] == [b"a", b"c", b"e", None]
    assert line.counts.lost == 2


# ---- real namespaces -------------------------------------------------------------------------------------------------
def outside() -> set[str]:
    return set(os.listdir("/sys/class/net"))


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    before = outside()
    with Lab(Network("test", ROUND_TRIP, RATE), ["one", "two", "three"], f"test-{os.getpid()}") as made:
        assert outside() == before
        yield made


@needs_lab
def test_delay_and_bandwidth_are_the_networks(lab: Lab) -> None:
    found = []
    for _ in range(4):  # on a busy machine one measurement says little
        link = measure(lab, "one", "two", 1.0)
        found.append(link)
        assert link.least_round_trip >= 0.97 * ROUND_TRIP
        assert link.bandwidth <= 1.05 * RATE
        if min(x.round_trip for x in found) <= 1.15 * ROUND_TRIP and max(x.bandwidth for x in found) >= 0.85 * RATE:
            return
    pytest.fail(f"round trip 20 ms and 100 Mbit/s were wanted, measured: {found}")


def pair(lab: Lab, dialer: str, listener: str) -> tuple[socket.socket, socket.socket]:
    with lab.inside(listener), socket.create_server(("0.0.0.0", 0)) as server:
        port = server.getsockname()[1]
        with lab.inside(dialer):
            near = socket.create_connection((lab.addresses[listener], port), timeout=20)
        far, address = server.accept()
    assert address[0] == lab.addresses[dialer]
    far.settimeout(20)
    return near, far


@needs_lab
@settings(max_examples=6, deadline=None)
@given(st.lists(st.integers(1, 200_000), min_size=1, max_size=8))
def test_bytes_arrive_in_order_both_ways_at_once(lab: Lab, sizes: list[int]) -> None:
    near, far = pair(lab, "one", "three")
    blocks = [os.urandom(size) for size in sizes]
    with near, far:
        senders = []
        for end in (near, far):
            senders.append(threading.Thread(target=lambda end=end: [end.sendall(b) for b in blocks] + [end.shutdown(1)]))
            senders[-1].start()
        received = [b"".join(iter(lambda end=end: end.recv(1 << 16), b"")) for end in (far, near)]
        for sender in senders:
            sender.join()
    assert received == [b"".join(blocks)] * 2


@needs_lab
def test_roles_reach_each_other_by_name_and_nobody_else(lab: Lab) -> None:
    code = "import socket,sys; print(socket.gethostbyname('two')); socket.create_connection(('192.0.2.1', 9), timeout=1)"
    done = subprocess.run(lab.command("one", [sys.executable, "-c", code]), capture_output=True, text=True, check=False)
    assert done.stdout.strip() == lab.addresses["two"]
    assert done.returncode == 1
    with pytest.raises(ConfigurationError, match=r"role 'four' is not in lab 'test-\d+': one, two, three"):
        lab.command("four", ["true"])


@needs_lab
def test_packets_get_lost_when_asked_for() -> None:
    with Lab(Network("lossy", 2e-3, 50e6, 0.3), ["one", "two"], f"loss-{os.getpid()}") as lab:
        with lab.inside("two"):
            sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sink.bind(("0.0.0.0", 0))
        with lab.inside("one"):
            source = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sink.settimeout(1.0)
        with sink, source:
            for number in range(400):
                source.sendto(bytes([number % 256]), (lab.addresses["two"], sink.getsockname()[1]))
            count = 0
            try:
                while sink.recv(10):
                    count += 1
            except TimeoutError:
                pass
    assert 200 < count < 350  # 280 expected, standard deviation 9


@needs_lab
def test_down_removes_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    name, before = f"gone-{os.getpid()}", outside()
    with Lab("5,50", ["one", "two"], name) as lab:
        child = lab.start(
            "one", [sys.executable, "-c", "import signal,time; signal.signal(15, lambda *_: 0); time.sleep(99)"]
        )
        assert name in labs()
        with pytest.raises(ConfigurationError, match=f"lab '{name}' is there already: `mpcache lab down --name {name}`"):
            Lab("lan", ["one", "two"], name).up()
        monkeypatch.setattr("launch.lab.removal.TERM_SECONDS", 0.3)
    assert child.returncode in (-signal.SIGTERM, -signal.SIGKILL)
    _nothing_is_left(name)
    assert outside() == before
    assert remove(name) is False


def _nothing_is_left(name: str) -> None:
    assert name not in labs()
    assert not [space for space in iproute.namespaces() if f".{name}." in space]
    assert not [path for folder in (STATE, HOSTS) for path in folder.glob(f"*{name}*")]


@needs_lab
def test_a_failure_half_way_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"half-{os.getpid()}"
    monkeypatch.setattr(Shape, "bucket", lambda shape: ["tbf", "rate", "nonsense"])
    with pytest.raises(EnvironmentProblem, match=r"`tc .*` failed: "):
        Lab("lan", ["one", "two"], name).up()
    _nothing_is_left(name)


OWNER = """
import sys, time
from launch.lab.lab import Lab
with Lab("5,50", ["one", "two"], sys.argv[1]) as lab:
    print(lab.start("two", ["sleep", "99"]).pid, flush=True)
    time.sleep(99)
"""


@needs_lab
def test_a_lab_goes_with_its_killed_owner() -> None:
    name = f"owned-{os.getpid()}"
    command = [sys.executable, "-P", "-c", OWNER, name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=module_environment()) as owner:
        assert owner.stdout is not None
        child = int(owner.stdout.readline())
        owner.kill()
    limit = time.monotonic() + 20
    while (name in labs() or Path(f"/proc/{child}/ns").exists()) and time.monotonic() < limit:
        time.sleep(0.05)
    _nothing_is_left(name)
    assert child not in processes(f"mpcache.{name}.two")


@needs_lab
def test_commands(command: Command, tmp_path: Path) -> None:
    name, file = f"cli-{os.getpid()}", tmp_path / "addresses.json"
    options = ["--name", name]
    try:
        made = command("lab", "up", "--profile", "mobile", "--rtt", "4", "--addresses", file, "--json", *options)
        facts = json.loads(made.out)
        assert (made.code, facts["round_trip_ms"], facts["mbit_per_second"]) == (0, 4.0, 50.0)
        assert list(facts["addresses"]) == roles_for(2)
        assert json.loads(file.read_text()) == facts
        assert read_state(name).network == Network("4,50", 4e-3, 50e6)
        again = command("lab", "up", *options)
        assert (again.code, "is there already" in again.err) == (2, True)
        words = [
            sys.executable,
            "-m",
            "launch.cli.main",
            "lab",
            "run",
            *options,
            "party1",
            "--",
            "sh",
            "-c",
            "hostname -I; exit 7",
        ]
        ran = subprocess.run(words, env=module_environment(), capture_output=True, text=True, check=False)
        assert (ran.returncode, ran.stdout.split()) == (7, [facts["addresses"]["party1"]])
        shown = command("lab", "status", *options)
        assert shown.code == 0
        assert facts["addresses"]["dealer"] in shown.out
    finally:
        ended = command("lab", "down", *options)
    assert ended.out == f"lab '{name}' is removed\n"
    assert command("lab", "down", *options).out == f"lab '{name}' was not up\n"
    assert command("lab", "status", *options).code == 1
    gone = command("lab", "run", *options, "party1", "--", "true")
    assert (gone.code, f"lab '{name}' is not up: `mpcache lab up`" in gone.err) == (2, True)
    _nothing_is_left(name)


# ---- what cannot be ----------------------------------------------------------------------------------------------------
def test_not_root(monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    monkeypatch.setattr("shutil.which", lambda tool: f"/sbin/{tool}")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    for words in (["up"], ["status"], ["run", "party0", "--", "true"], ["down"]):
        refused = command("lab", *words)
        assert refused.code == 2
        assert "error [environment]: network namespaces need root: run it as root" in " ".join(refused.err.split())


def test_without_iproute2(monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    monkeypatch.setattr("shutil.which", lambda tool: None if tool == "tc" else f"/sbin/{tool}")
    refused = command("lab", "up")
    assert (refused.code, "`tc` is not installed: apt install iproute2" in refused.err) == (2, True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--profile", "moon"], "network 'moon' is not one of lan, wan, mobile"),
        (["--rate", "0"], "--rate 0: a link of the lab has 0.1 to 100000 Mbit/s"),
        (["--rtt", "-1"], "--rtt -1: must be 0 to 10000 milliseconds"),
        (["--loss", "100"], "--loss 100: must be 0 or more and below 100 percent"),
        (["--roles", "one"], "roles one: 2 to 200 different names are needed, none of them 'hub'"),
        (["--roles", "one,hub"], "roles one,hub: 2 to 200 different names"),
        (["--roles", "one,T wo"], "role 'T wo': write 1 to 32 lower-case letters"),
        (["--name", "a.b"], "--name 'a.b': write 1 to 32 lower-case letters"),
        (["--delay", "magic"], "--delay 'magic' is unknown; choose one of: auto, netem, relay"),
    ],
)
def test_bad_options(options: list[str], message: str, command: Command) -> None:
    refused = command("lab", "up", *options)
    assert refused.code == 2
    assert message in " ".join(refused.err.split())


def test_profiles_fit_what_the_kernel_takes() -> None:
    for network in [*NETWORKS.values(), find_network("0,0.1"), find_network("10000,100000")]:
        shape = Shape(check_shapeable(network))
        assert 1500 <= shape.segment < shape.burst <= shape.buffer < 1 << 32
        assert shape.netem()[:3] == ["netem", "delay", f"{network.round_trip * 5e5:.0f}us"]
        assert shape.bucket()[:3] == ["tbf", "rate", f"{network.bandwidth:.0f}bit"]
