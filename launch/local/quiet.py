"""Whether this machine is quiet enough to measure seconds on: nobody else computes, and a host takes no time away."""

from __future__ import annotations

import os
import time
from pathlib import Path

SECONDS = 0.25
OTHERS = 0.15  # of all processors
STOLEN = 0.02
KEPT = 0.9  # of a processor that a busy thread of this process gets
_STAT = Path("/proc/stat")


def disturbance(seconds: float = SECONDS) -> str:
    """Compute for a moment; return in words what disturbs it, nothing on a quiet machine.

    Looked at: the share of all processors that others use, and that a host takes away ("steal"), by /proc/stat; and the
    processor time that a thread gets which asks for all of one.
    """
    before, begun, mine, began = _ticks(), time.thread_time(), time.process_time(), time.perf_counter()
    while time.perf_counter() - began < seconds:
        pass
    took = time.perf_counter() - began
    kept, own, after = (time.thread_time() - begun) / took, time.process_time() - mine, _ticks()
    found = []
    if before is not None and after is not None:
        busy, stolen, total = (b - a for a, b in zip(before, after, strict=True))
        others = busy - own * os.sysconf("SC_CLK_TCK")
        if total > 0 and others / total > OTHERS:
            found.append(f"other programs use {100 * others / total:.0f} % of its processors")
        if total > 0 and stolen / total > STOLEN:
            found.append(f"its host takes {100 * stolen / total:.0f} % of them away")
    if kept < KEPT:
        found.append(f"a busy thread gets {100 * kept:.0f} % of one")
    return ", ".join(found)


class Meanwhile:
    """What a host takes away while something long is measured."""

    def __init__(self) -> None:
        self._before = _ticks()

    def stolen(self) -> float:
        """Return the share of all processors that the host has taken away so far; 0 where nothing tells."""
        after = _ticks()
        if self._before is None or after is None:
            return 0.0
        _, stolen, total = (b - a for a, b in zip(self._before, after, strict=True))
        return stolen / total if total > 0 else 0.0


def _ticks() -> tuple[int, int, int] | None:
    """Return ticks of all processors since the start: in programs, taken away, and altogether; None where nothing tells."""
    try:
        counts = [int(n) for n in _STAT.read_text(encoding="ascii").splitlines()[0].split()[1:9]]
    except (OSError, ValueError, IndexError):
        return None
    user, nice, system, _, _, interrupts, soft, stolen = counts
    return user + nice + system + interrupts + soft, stolen, sum(counts)
