"""Where a measurement was made: versions, hardware, revision of the code, and how fast this machine's memory is.

All of it is public and goes into every result, so that a number can be judged without asking who took it.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from mpc.role_process import processors

PACKAGES = ("mpcache", "torch", "crypten", "numpy", "grpcio", "protobuf", "cryptography")
READ_BYTES = 256 << 20
READS = 5


def versions() -> dict[str, str]:
    """Return Python's and each package's version; "absent" for one that is not installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def hardware() -> dict[str, Any]:
    """Return the processor, cores this process may use, memory in bytes, operating system and CUDA devices."""
    devices = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return {
        "processor": _processor(),
        "cores": processors(),
        "memory_bytes": _memory_bytes(),
        "system": f"{platform.system()} {platform.release()}",
        "cuda_devices": devices,
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return 0


def revision() -> dict[str, Any]:
    """Return the code's git commit and whether tracked files differ from it; commit None outside a git checkout."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "changed": bool(changed) if commit else None}


def memory_bandwidth() -> float:
    """Return the bytes a second that one thread of this machine reads from main memory, the best of a few passes over
    256 MB."""
    data = torch.ones(READ_BYTES // 8, dtype=torch.int64)
    best = 0.0
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(READS):
            start = time.perf_counter()
            data.sum()
            best = max(best, READ_BYTES / (time.perf_counter() - start))
    finally:
        torch.set_num_threads(threads)
    return best


def environment() -> dict[str, Any]:
    """Return everything that a result carries about where it was made."""
    return {
        "versions": versions(),
        "hardware": hardware(),
        "revision": revision(),
        "memory_bytes_per_second": memory_bandwidth(),
        "command": " ".join(["mpcache", *sys.argv[1:]]),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }
