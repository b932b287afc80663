"""Dealers take turns at processors: between processes, and whatever ends the one that has a place."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from launch.cluster.processors import places, processor

HOLD = """
import sys
from pathlib import Path
from launch.cluster.processors import processor
with processor(Path(sys.argv[1]), 1):
    print("has it", flush=True)
    sys.stdin.read()
"""


def waiting(folder: Path, count: int) -> tuple[threading.Thread, threading.Event]:
    """Return a thread that asks for a place, and what is set once it has one."""
    has = threading.Event()

    def take() -> None:
        with processor(folder, count):
            has.set()

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    return thread, has


def test_as_many_as_there_are_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(4)), raising=False)
    assert [places(threads) for threads in (1, 2, 3, 4, 8)] == [4, 2, 1, 1, 1]


def test_that_one_more_waits_for_one_that_is_done(tmp_path: Path) -> None:
    with processor(tmp_path, 2):
        with processor(tmp_path, 2):
            thread, has = waiting(tmp_path, 2)
            assert not has.wait(0.2)
        assert has.wait(10)
    thread.join(10)
    with processor(tmp_path, 1):
        pass


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_that_a_dealer_that_is_killed_holds_no_place(tmp_path: Path, end: signal.Signals) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "has it\n"
    thread, has = waiting(tmp_path, 1)
    assert not has.wait(0.2)
    holder.send_signal(end)
    assert has.wait(10)
    holder.wait(10)
    thread.join(10)


def test_that_nobody_waits_where_files_cannot_be_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_descriptor: int, _how: int) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", refused)
    with processor(tmp_path, 1), processor(tmp_path, 1):
        pass
