"""The child's side of local processes: end with the parent, report readiness, take temporary files along.

A supervised child's standard input is a pipe whose other end only the parent holds. When the parent is gone, for whatever
reason (SIGKILL included), the pipe ends; the child then removes the run's temporary folder and ends at once.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

from launch.terminal.console import err

SCRATCH_VARIABLE = "MPCACHE_SCRATCH"
READY = "mpcache-ready"
PROGRESS = "mpcache-progress"
SEEN = "mpcache-seen"
ORPHANED_EXIT = 3


def begin(role: str, supervised: bool) -> None:
    """Let a server's process end with its parent, or, where it has none, tell whoever looks on at a terminal that it has
    been started: for some seconds it only reads its modules. (A log needs no such line: it begins with the address.)"""
    if supervised:
        end_with_parent()
    elif err.is_terminal:
        err.print(f"{role} starts: reading its modules", style="dim")


def end_with_parent() -> None:
    """Start the thread that ends this process when standard input ends."""
    scratch = os.environ.get(SCRATCH_VARIABLE)
    threading.Thread(target=_watch, args=(Path(scratch) if scratch else None,), daemon=True).start()


def _watch(scratch: Path | None) -> None:
    # Straight from the descriptor: a thread blocked in the buffered reader would hold its lock at interpreter exit.
    while os.read(sys.stdin.fileno(), 4096):
        pass
    if scratch is not None:
        shutil.rmtree(scratch, ignore_errors=True)
    os._exit(ORPHANED_EXIT)


def report_ready(**facts: object) -> None:
    """Tell the parent that this process serves; facts are public (its address, say)."""
    print(f"{READY} {json.dumps(facts)}", flush=True)


def report_progress(stage: str, done: int, total: int) -> None:
    """Tell the parent how far work is; public counts. total 0: how much there is is not known."""
    print(f"{PROGRESS} {json.dumps([stage, done, total])}", flush=True)


def report_seen(facts: Mapping[str, object]) -> None:
    """Tell the parent what this process has seen, where the parent asked for it."""
    print(f"{SEEN} {json.dumps(facts)}", flush=True)
