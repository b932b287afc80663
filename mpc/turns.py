"""Turns: of a process's threads that decode, one computes at a time, from one wait to the next.

Python runs one thread at a time, and a thread hands the interpreter on at every operation on a tensor, however small it is.
Threads that compute with small tensors therefore take it from each other thousands of times a token: on two processors two
of them take 1.6 times the processor time of one after the other, eight take 2.7 times, and none is done sooner. Who takes
turns waits for its own without the interpreter.

A turn orders work and guards nothing: no result depends on it, and nothing can wait for it for ever. Who has waited for
`PATIENCE` seconds behind one that keeps its turn takes it, and both compute. Large tensors are worked on without the
interpreter, by as many threads as there are processors: prompts and dealers take no turns, and a large product is made as if
it was a wait (`mpc.ring`, `mpc.byte_matmul`).
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

PATIENCE = 0.05
"""Seconds after which a turn is taken by who waits longest for it."""


class Turns:
    """Whose turn it is. An owner is a thread, or several that hand their turn to each other, such as sessions in step.

    >>> turns, session = Turns(), object()
    >>> turns.take(session)
    >>> with waiting():
    ...     turns.held
    False
    >>> turns.held
    True
    >>> leave()
    >>> turns.give(session)
    >>> turns.free
    True
    """

    def __init__(self, patience: float = PATIENCE) -> None:
        self.patience = patience
        self._lock = threading.Lock()
        self._queue: deque[tuple[object, threading.Lock]] = deque()  # who waits, and what is released once it has the turn
        self._holder: object = None
        self._since = 0.0

    @property
    def held(self) -> bool:
        """Whether this thread takes these turns, and it is its own."""
        return _here.turns is self and self._holder is _here.owner

    @property
    def free(self) -> bool:
        """Whether it is nobody's turn."""
        return self._holder is None

    def take(self, owner: object) -> None:
        """Wait until it is the turn of `owner`, for which this thread computes from here on."""
        _here.turns, _here.owner = self, owner
        with self._lock:
            if self._holder is None or self._holder is owner:
                self._holder, self._since = owner, time.monotonic()
                return
            given = threading.Lock()
            given.acquire()
            self._queue.append((owner, given))
        while not given.acquire(timeout=max(0.001, self._since + self.patience - time.monotonic())):
            with self._lock:
                late = time.monotonic() - self._since >= self.patience
                if late and self._queue and self._queue[0][1] is given:
                    self._queue.popleft()
                    self._holder, self._since = owner, time.monotonic()
                    return

    def give(self, owner: object) -> None:
        """Let the next one have the turn, if it is that of `owner`."""
        with self._lock:
            if self._holder is not owner:
                return
            self._holder = None
            if self._queue:
                self._holder, given = self._queue.popleft()
                self._since = time.monotonic()
                given.release()


class _Here(threading.local):
    turns: Turns | None = None
    owner: object = None


_here = _Here()


@contextmanager
def waiting() -> Iterator[None]:
    """Give this thread's turn away while it waits for something; back from it, wait for the next one. A thread that takes
    none goes on."""
    turns, owner = _here.turns, _here.owner
    if turns is None:
        yield
        return
    leave()
    turns.give(owner)
    try:
        yield
    finally:
        turns.take(owner)


def leave() -> None:
    """Let this thread compute no more for whom it did; whose turn it is stays as it is."""
    _here.turns = _here.owner = None


SESSIONS = Turns()
"""Of this process."""
