"""What a role does when: spans of computing, expanding, serialising, sending and waiting, while a recording is on.

A span has a kind, the (stage, operation) that it belongs to, a start and a length; nothing else, so nothing secret. When no
recording is on, a span costs one look at a global.

Kinds: "compute" (a protocol's coroutine runs), "expand" (a generator makes bytes from a seed), "serialise" (ring elements
and messages packed and unpacked), "send" (handed to the transport), "wait" (for the peers' messages of a round). A span may
lie within another one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
KINDS = ("compute", "expand", "serialise", "send", "wait")


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
    """Spans in the order in which they ended. computing_since: when the coroutine that runs began what it does now; None
    while none runs."""

    spans: list[Span] = field(default_factory=list)
    computing_since: float | None = None

    def add(self, kind: str, key: tuple[str, str], start: float, sent: int = 0) -> None:
        """Add a span from `start` to now."""
        self.spans.append(Span(kind, *key, start, time.perf_counter() - start, sent))

    def begin(self) -> None:
        """A coroutine runs from now on."""
        self.computing_since = time.perf_counter()

    def computed(self, key: tuple[str, str]) -> None:
        """Add what the running coroutine computed under `key`, its stage and operation until now; another one begins."""
        if self.computing_since is not None:
            self.add("compute", key, self.computing_since)
            self.begin()

    def end(self, key: tuple[str, str]) -> None:
        """The coroutine that ran under `key` stops or waits."""
        self.computed(key)
        self.computing_since = None


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


def timed(kind: str, key: Callable[[], tuple[str, str]]) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorate a function so that each call adds a span of this kind. key: asked for the stage and operation of a call."""

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            line = active
            if line is None:
                return function(*args, **kwargs)
            start = time.perf_counter()
            out = function(*args, **kwargs)
            line.add(kind, key(), start)
            return out

        return call

    return decorate
