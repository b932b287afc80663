"""A small soak: sessions, a kill and a restart in the network lab; and that the checks see what is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter

import pytest

from launch.lab import iproute
from launch.lab.lab import module_environment
from mpc.errors import PeerLost, WireError
from tests.soak import run as soak
from tests.soak.gauges import Gauge

WHY_NOT = iproute.problem() or (None if iproute.has_tun() or iproute.has_netem() else "no way to delay packets")


@pytest.mark.skipif(WHY_NOT is not None, reason=f"no network lab here: {WHY_NOT}")
def test_sessions_survive_a_restart() -> None:
    # A process of its own: threads of gRPC that run here already would connect from outside the lab.
    words = ["--sessions", "6", "--clients", "3", "--restarts", "1", "--victims", "party1"]
    command = [sys.executable, "-m", "tests.soak", *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=module_environment(), text=True, **pipes) as process:  # type: ignore[call-overload]
        try:
            said, errors = process.communicate(timeout=500)
        finally:
            process.kill()
    assert said, errors[-2000:]
    summary = json.loads(said.splitlines()[-1])
    # Libraries still warm up during so few sessions: memory is judged by the long run.
    assert [problem for problem in summary["problems"] if "memory" not in problem] == []
    assert summary["succeeded"] >= 6
    assert summary["kills"] == {"party1": 1}
    assert not [name for name in iproute.namespaces() if f".soak-{process.pid}." in name]


def judged(middle: Gauge, end: Gauge, warm: bool = True) -> list[str]:
    outcome = soak.Outcome()
    soak._compared("party0", middle, end, warm, outcome)
    return outcome.problems


def test_what_grows_is_seen() -> None:
    before = Gauge(100_000_000, 20, 30)
    assert judged(before, Gauge(104_900_000, 22, 32)) == []
    assert judged(before, Gauge(105_100_000, 20, 30)) == ["party0: resident memory grew by 5.1% over the second half"]
    assert judged(before, Gauge(99_000_000, 23, 30)) == ["party0: 20 threads after half the sessions, 23 at the end"]
    assert judged(before, Gauge(200_000_000, 99, 99), warm=False) == []
    assert judged(before, Gauge(99_000_000, 20, 33)) == ["party0: 30 files after half the sessions, 33 at the end"]


class Noted:
    """A deployment of which only notes are asked."""

    def __init__(self, *used: str) -> None:
        self.found = {"party0": [("session", tape) for tape in used]}

    def notes(self) -> dict[str, list[tuple[str, str]]]:
        return self.found


def test_a_tape_that_serves_twice_is_seen() -> None:
    for used, expected in ((("a", "b"), []), (("a", "b", "a"), ["party0: a tape was used 2 times"])):
        outcome = soak.Outcome(succeeded=2)
        soak._check_tapes(soak.Soak(), Noted(*used), outcome)  # type: ignore[arg-type]
        assert outcome.problems == expected


def test_only_errors_that_name_a_peer_pass() -> None:
    run = object.__new__(soak._Run)
    run.outcome = soak.Outcome()
    run._failed(PeerLost("party1", "prefill", "the connection ended"))
    assert run.outcome.problems == []
    run._failed(PeerLost("", "prefill", "the connection ended"))
    run._failed(WireError("something else"))
    run._failed(ValueError("secret"))
    assert len(run.outcome.problems) == 3
    assert "secret" not in "".join(run.outcome.problems)
    assert run.outcome.errors == Counter({"PeerLost party1": 1, "PeerLost": 1, "WireError": 1, "ValueError": 1})
