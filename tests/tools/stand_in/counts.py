"""What a device was asked for, by thread and line of the project: kernels, copies up and down, waits."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

ROOT = str(Path(__file__).parents[3]) + "/"
RECORDER = ROOT + "mpc/device/"  # runs what others have asked for
FLOORS = ("mpc/", "protocols/", "models/", "parties/", "launch/")
Kind = Literal["kernel", "up", "down", "wait"]


def line() -> str:
    """Return "file:line" of the innermost frame of the project's packages, "a test" where there is none."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(ROOT) and name.removeprefix(ROOT).startswith(FLOORS) and not name.startswith(RECORDER):
            return f"{name.removeprefix(ROOT)}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "a test"


@dataclass
class Counts:
    """events: (thread, kind, line, operation) -> how often; moved: -> bytes."""

    events: Counter[tuple[str, Kind, str, str]] = field(default_factory=Counter)
    moved: Counter[tuple[str, Kind, str, str]] = field(default_factory=Counter)

    def total(self, thread: str, *kinds: Kind) -> int:
        """Return how often a thread did any of these."""
        return sum(n for (of, kind, _, _), n in self.events.items() if of == thread and kind in kinds)

    def bytes(self, thread: str, *kinds: Kind) -> int:
        """Return the bytes that a thread moved."""
        return sum(n for (of, kind, _, _), n in self.moved.items() if of == thread and kind in kinds)

    def by_line(self, thread: str, kind: Kind) -> list[tuple[str, int, int]]:
        """Return (line, how often, bytes), most often first."""
        times: Counter[str] = Counter()
        size: Counter[str] = Counter()
        for key, n in list(self.events.items()):
            if key[:2] == (thread, kind):
                times[key[2]] += n
                size[key[2]] += self.moved[key]
        return [(at, n, size[at]) for at, n in times.most_common()]

    def since(self, before: Counts) -> Counts:
        """Return what came after an earlier copy of these counts."""
        return Counts(self.events - before.events, self.moved - before.moved)

    def copy(self) -> Counts:
        """Return the counts of now."""
        with _lock:
            return Counts(self.events.copy(), self.moved.copy())


_active: list[Counts] = []
_lock = threading.Lock()


@contextmanager
def counting() -> Iterator[Counts]:
    """Count what all threads ask of the device within."""
    counts = Counts()
    _active.append(counts)
    try:
        yield counts
    finally:
        _active.remove(counts)


def note(kind: Kind, operation: str, size: int = 0) -> None:
    """Count one event, bytes moved."""
    if not _active:
        return
    key = (threading.current_thread().name, kind, line(), operation)
    with _lock:
        for counts in _active:
            counts.events[key] += 1
            counts.moved[key] += size
