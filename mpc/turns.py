"""Turns: of the threads of a process that compute for sessions, one computes at a time, from one wait to the next.

Python runs one thread at a time, and a thread hands the interpreter on at every operation on a tensor, however small it is.
Threads that compute with small tensors therefore take it from each other thousands of times a token: on two processors two
of them take 1.6 times the processor time of one after the other, eight take 2.7 times, and none is done sooner. Who takes
turns waits for its own without the interpreter.

A turn orders work and guards nothing: no result depends on it, and nothing can wait for it for ever. Who has waited for
`PATIENCE` seconds behind one that keeps its turn (a large product, which other threads may run beside; a wait that gives
nothing back) takes it, and both compute.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

PATIENCE = 0.05
SLICE = 0.02


class Turns:
    """Whose turn it is. Threads that hand their turn to each other, such as sessions in step, have one between them.

    >>> turns = Turns()
    >>> with turns.computing():
    ...     turns.held, turns.offer()
    ...     with turns.waiting():
    ...         turns.held
    (True, None)
    False
    >>> turns.held
    False
    """

    def __init__(self, patience: float = PATIENCE, slice: float = SLICE) -> None:
        self.patience = patience
        self.slice = slice
        self._lock = threading.Lock()
        self._queue: deque[tuple[object, threading.Lock]] = deque()  # who waits, and what is released once it has the turn
        self._holder: object = None
        self._since = 0.0
        self._here = _Here()

    @property
    def held(self) -> bool:
        """Whether this thread takes turns, and it is its own."""
        return self._here.owner is not None and self._holder is self._here.owner

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Let this thread take turns with others, and have its own now."""
        owner = object()
        self.take(owner)
        try:
            yield
        finally:
            self.leave()
            self.give(owner)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Give the turn away while this thread waits for something; back from it, wait for the next one. Nothing for a thread
        that takes none."""
        owner = self._here.owner
        if owner is None:
            yield
            return
        self.leave()
        self.give(owner)
        try:
            yield
        finally:
            self.take(owner)

    def offer(self) -> None:
        """Give the turn away for once, if others wait and it has been kept for `slice` seconds. Often called."""
        if self._queue and self.held and time.monotonic() - self._since > self.slice:
            with self.waiting():
                pass

    def take(self, owner: object) -> None:
        """Wait until it is the turn of `owner`, for which this thread computes from here on."""
        self._here.owner = owner
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

    def leave(self) -> None:
        """Let this thread compute no more for whom it did; whose turn it is stays as it is."""
        self._here.owner = None

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
    owner: object = None


TURNS = Turns()
"""Of this process."""
