"""Seconds of work on a device, honestly: fresh data in rotation, warm-ups, a median, and a wait at both ends."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mpc.random import Prg, new_seed

WARM_UPS, REPETITIONS = 2, 5
Row = dict[str, Any]


def synchronise(device: str) -> None:
    """Wait for a real GPU."""
    if device.startswith("cuda") and torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(work: Callable[[int], Any], device: str) -> tuple[float, float]:
    """Return the median and the spread of `work(n)` for n = 0, 1, ..., after warm-ups."""
    found = []
    for n in range(WARM_UPS + REPETITIONS):
        synchronise(device)
        start = time.perf_counter()
        work(n)
        synchronise(device)
        found.append(time.perf_counter() - start)
    kept = found[WARM_UPS:]
    return statistics.median(kept), max(kept) - min(kept)


def ring_elements(shape: Sequence[int], bits: int, count: int = 1) -> list[Tensor]:
    """Return uniform elements at the host, `count` tensors of one shape."""
    prg = Prg(new_seed())
    return [prg.ring(shape, bits) for _ in range(count)]


def timed(name: str, work: Callable[[int], Any], device: str, **more: Any) -> Row:
    """Return a row of seconds, and rates of what `more` says in units of work: bytes, operations."""
    median, spread = seconds(work, device)
    row: Row = {"name": name, "ok": True, "seconds": median, "spread": spread}
    for key in ("bytes", "operations"):
        if key in more:
            row[f"{key}_per_second"] = more.pop(key) / median
    return row | more
