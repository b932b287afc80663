"""The launcher: a dead process is reported at once, and nothing survives the parent, however it ends."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.local import deployment as local
from launch.local.deployment import LocalDeployment, local_deployment
from launch.local.processes import ProcessEnded
from mpc.errors import ConfigurationError, PeerLost
from tests.launch.conftest import processes_of

GONE_SECONDS = 8.0

linux_only = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc")


def wait_until(condition: object, seconds: float) -> bool:
    limit = time.monotonic() + seconds
    while not (done := condition()) and time.monotonic() < limit:  # type: ignore[operator]
        time.sleep(0.05)
    return bool(done)


@linux_only
def test_a_taken_port_and_a_killed_party(text_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free, asked = local.free_ports, []

    def ports(count: int) -> list[int]:
        asked.append(count)
        found = free(count)
        return [taken.getsockname()[1], *found[1:]] if len(asked) == 1 else found

    monkeypatch.setattr(local, "free_ports", ports)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        watch_a_party_die(text_model)
    assert asked == [3, 3]


def watch_a_party_die(text_model: Path) -> None:
    with local_deployment(2) as deployment:
        folder = deployment.folder
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert len(processes_of(folder)) == 3
        assert deployment.watched(lambda: 42) == 42
        with pytest.raises(ConfigurationError, match="of the work itself"):
            deployment.watched(lambda: fail(ConfigurationError("of the work itself")))
        victim = next(child for child in deployment.children if child.name == "party1")
        began = time.monotonic()

        def work() -> None:
            os.kill(victim.pid, signal.SIGKILL)
            time.sleep(30)

        with pytest.raises(ProcessEnded, match=r"^party1 was killed by signal 9: ") as found:
            deployment.watched(work)
        assert time.monotonic() - began < 5
        assert (found.value.name, found.value.exit_code) == ("party1", -9)
        with pytest.raises(ProcessEnded, match=r"^party1 was killed"):
            deployment.watched(lambda: fail(PeerLost("party1", "prefill", "gone")))
        with pytest.raises(ProcessEnded, match=r"^party1 was killed"):
            deployment.share_model(text_model, "tiny")
    assert processes_of(folder) == []
    assert not folder.exists()


def fail(error: Exception) -> None:
    raise error


@linux_only
def test_a_process_that_cannot_start_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    written = local._write

    def spoiled(folder: Path, name: str, values: dict[str, object]) -> None:
        written(folder, name, {**values, "coulour": "red"} if name == "party0" else values)

    monkeypatch.setattr(local, "_write", spoiled)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    message = r"^party0 ended with exit code 2: error \[configuration\]: .*unknown key 'coulour'"
    with pytest.raises(ProcessEnded, match=message), local_deployment(2):
        pass
    assert list(tmp_path.iterdir()) == []
    assert processes_of(tmp_path) == []


def test_a_model_owner_that_fails(running: LocalDeployment, tmp_path: Path) -> None:
    message = r"^model-owner ended with exit code 2: error \[configuration\]: .*nothing is there"
    with pytest.raises(ProcessEnded, match=message):
        running.share_model(tmp_path / "none", "none")
    assert running.watched(lambda: 1) == 1


@linux_only
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_nothing_survives_the_parent(number: signal.Signals, code: int, text_model: Path, tmp_path: Path) -> None:
    arguments = ["generate", "--model", str(text_model), "--prompt", "a", "--max-new-tokens", "40"]
    parent = subprocess.Popen(
        [sys.executable, "-m", "launch.cli.main", *arguments],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where tests run in a shell's background
    )
    try:
        wait_until(lambda: len(processes_of(tmp_path)) >= 3 or parent.poll() is not None, 60)
        assert parent.poll() is None, parent.communicate()
        assert len(processes_of(tmp_path)) >= 3
        parent.send_signal(number)
        _, err = parent.communicate(timeout=30)
    finally:
        parent.kill()
    assert parent.returncode == code
    assert "Traceback" not in err
    assert wait_until(lambda: not processes_of(tmp_path), GONE_SECONDS)
    assert wait_until(lambda: not list(tmp_path.iterdir()), 2)
