"""What a process holds: resident memory, threads, file descriptors; from /proc."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PAGE = os.sysconf("SC_PAGE_SIZE")
SETTLE_SECONDS = 20.0
STILL = 8  # equal readings in a row, a quarter of a second apart


@dataclass(frozen=True)
class Gauge:
    """rss: bytes that are in memory."""

    rss: int
    threads: int
    files: int


def read(pid: int) -> Gauge:
    """Of a running process."""
    folder = Path(f"/proc/{pid}")
    resident = int((folder / "statm").read_text().split()[1]) * PAGE
    return Gauge(resident, len(os.listdir(folder / "task")), len(os.listdir(folder / "fd")))


def read_idle(pids: Mapping[str, int]) -> dict[str, Gauge]:
    """Of processes that have nothing to do, once their threads and files stay the same for two seconds."""
    last: dict[str, Gauge] = {}
    limit, still = time.monotonic() + SETTLE_SECONDS, 0
    while still < STILL and time.monotonic() < limit:
        found = {name: read(pid) for name, pid in pids.items()}
        same = {n: (g.threads, g.files) for n, g in found.items()} == {n: (g.threads, g.files) for n, g in last.items()}
        still, last = still + 1 if same else 0, found
        time.sleep(0.25)
    return last
