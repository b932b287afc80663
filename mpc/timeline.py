"""What a party does when: spans of computing, serialising, sending and waiting, while a recording is on.

A span has a kind, the (stage, operation) that it belongs to, a start and a length; nothing else, so nothing secret. When no
recording is on, a span costs one look at a global.

Kinds: "compute" (a protocol's coroutine runs), "serialise" (messages packed and unpacked), "send" (handed to the transport),
"wait" (for the peers' messages of a round).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")
KINDS = ("compute", "serialise", "send", "wait")


@dataclass(frozen=True)
class Span:
    """start: seconds on this machine's monotonic clock, the same for all its processes. sent: bytes, for rounds."""

    kind: str
    stage: str
    operation: str
    start: float
    seconds: float
    sent: int = 0


@dataclass
class Timeline:
    """Spans in the order in which they ended."""

    spans: list[Span] = field(default_factory=list)

    def add(self, kind: str, key: tuple[str, str], start: float, sent: int = 0) -> None:
        """Add a span from `start` to now."""
        self.spans.append(Span(kind, *key, start, time.perf_counter() - start, sent))


#: The recording that is on, if any.
active: Timeline | None = None


@contextmanager
def recording() -> Iterator[Timeline]:
    """Record this process's spans while inside."""
    global active
    before, active = active, Timeline()
    try:
        yield active
    finally:
        active = before
