"""What is common to one session on every role: its links, where it is, and the one error that ends it."""

from __future__ import annotations

import threading
from typing import Any, Protocol

from mpc.errors import MpcacheError
from parties.errors import SessionFinished


class Wakeable(Protocol):
    """A stream of a session, as the session knows it."""

    def wake(self) -> None:
        """Let whoever waits at the stream look at the session's error."""


class Session:
    """What is common to one session on every role: an id, the current step, and one error that ends it everywhere."""

    def __init__(self, id: str, role: str) -> None:
        self.id = id
        self.role = role
        self.step = "opening the session"
        self.links: list[Any] = []
        self._lock = threading.Lock()
        self._error: MpcacheError | None = None
        self._ended = threading.Event()

    @property
    def error(self) -> MpcacheError | None:
        """Why the session ends, None while it lives or when it succeeded."""
        return self._error

    @property
    def finished(self) -> bool:
        """The client ended the session in good order."""
        return isinstance(self._error, SessionFinished)

    @property
    def ended(self) -> bool:
        """True once `end` was called."""
        return self._ended.is_set()

    def fail(self, error: MpcacheError) -> None:
        """End the session: whoever waits in it raises `error`. The first error counts, later ones are dropped."""
        with self._lock:
            if self._error is not None or self._ended.is_set():
                return
            self._error = error
            links = list(self.links)
        for link in links:
            link.wake()
        self.on_fail()

    def on_fail(self) -> None:
        """Called once when the session fails; wakes whoever waits elsewhere than at a link."""

    def finish(self) -> None:
        """End the session in good order, from any thread."""
        self.fail(SessionFinished("the client ended the session"))

    def check(self) -> None:
        """Raise the session's error if there is one."""
        if self._error is not None:
            raise self._error

    def add(self, link: Wakeable) -> None:
        """Make a link part of the session."""
        with self._lock:
            self.links.append(link)
            failed = self._error is not None
        if failed:
            link.wake()

    def end(self) -> None:
        """Nothing that happens on the links from here on is an error."""
        self._ended.set()
