"""How a process that serves as a role shares its machine: processors, memory, and turns of Python's threads."""

from __future__ import annotations

import os
import sys

from mpc import allocator

SWITCH_SECONDS = 0.0002
"""How long a thread may keep Python to itself while another one waits. A round's message passes through several threads
(line, group, session, line); each would wait up to Python's own 5 ms for a thread that computes for another session, or
prepares."""


def processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_up(computes: bool) -> None:
    """Let this process, before it has many threads, allocate from one arena and pass on Python's turns at once. computes:
    on shares, so it keeps what is freed until `allocator.give_back`."""
    allocator.one_arena()
    if computes:
        allocator.keep_freed()
    sys.setswitchinterval(min(sys.getswitchinterval(), SWITCH_SECONDS))
