"""How a process that serves as a role shares its machine: processors and memory."""

from __future__ import annotations

import os

from mpc import allocator


def processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_up(computes: bool) -> None:
    """Let this process, before it has many threads, allocate from one arena. computes: on shares, so it keeps what is freed
    until `allocator.give_back`."""
    allocator.one_arena()
    if computes:
        allocator.keep_freed()
