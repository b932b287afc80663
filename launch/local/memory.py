"""How much memory this machine can still give to new processes, and how much one has held."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
# (limit, use) of this process's control group, as containers see them: cgroup v2, v1
_GROUPS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)


def available_memory() -> int | None:
    """Return the bytes that can be had without swapping, by the kernel's own estimate and a container's limit; None: not
    known."""
    found = [value for value in (_machine(), *(_group(*files) for files in _GROUPS)) if value is not None]
    return min(found) if found else None


def peak_memory(pid: int | None = None) -> int:
    """Return the most bytes that a process has held, by default this one; 0 where nothing tells.

    >>> peak_memory() > 0
    True
    """
    try:
        for line in Path(f"/proc/{pid or 'self'}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    if pid is not None:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _machine() -> int | None:
    try:
        for line in _MEMINFO.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        return None
    return None


def _group(limit: Path, use: Path) -> int | None:
    try:
        return max(0, int(limit.read_text(encoding="ascii")) - int(use.read_text(encoding="ascii")))
    except (OSError, ValueError):  # no such group, or "max": no limit
        return None
