"""How much memory this machine can still give to new processes, and how much one has held."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

LISTENS = "0A"  # a socket's state in /proc/net/tcp
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


def listening_memory(ports: Sequence[int]) -> dict[int, int]:
    """Return the bytes that processes hold which listen at TCP ports of this machine, by port; of none that is another
    user's, or where nothing tells."""
    sockets = _listening(ports)
    found: dict[int, int] = {}
    for process in Path("/proc").iterdir() if sockets else ():
        if not process.name.isdecimal():
            continue
        with suppress(OSError):
            for file in (process / "fd").iterdir():
                if (port := sockets.get(os.readlink(file))) is not None:
                    pages = int((process / "statm").read_text(encoding="ascii").split()[1])
                    found[port] = max(found.get(port, 0), pages * os.sysconf("SC_PAGE_SIZE"))
    return found


def _listening(ports: Sequence[int]) -> dict[str, int]:
    """Return the port of each socket, as links in /proc name it, that listens at one of them."""
    found: dict[str, int] = {}
    for table in ("tcp", "tcp6"):
        with suppress(OSError, ValueError, IndexError):
            for line in Path(f"/proc/net/{table}").read_text(encoding="ascii").splitlines()[1:]:
                fields = line.split()
                port = int(fields[1].rpartition(":")[2], 16)
                if fields[3] == LISTENS and port in ports:
                    found[f"socket:[{fields[9]}]"] = port
    return found


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
