"""Who of a session has come so far, and the wait for the others: parties for each other, a dealer for its parties."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, TypeVar

from mpc.errors import PeerLost

T = TypeVar("T")


class Gathering(Generic[T]):
    """What those who are waited for have brought, such as their streams, by name. Threads may add and wait.

    names: who is to come, in order. check(): raises the session's error.

    >>> gathering = Gathering(["party1", "party2"], check=lambda: None)
    >>> gathering.add("party2", "a stream")
    >>> gathering.missing()
    ['party1']
    """

    def __init__(self, names: Sequence[str], check: Callable[[], None]) -> None:
        self._names = list(names)
        self._check = check
        self._here: dict[str, T] = {}
        self._changed = threading.Condition()

    def __contains__(self, name: str) -> bool:
        return name in self._here

    def add(self, name: str, brought: T) -> None:
        """Note that `name` is here."""
        with self._changed:
            self._here[name] = brought
            self._changed.notify_all()

    def wake(self) -> None:
        """Let whoever waits look at the session's error."""
        with self._changed:
            self._changed.notify_all()

    def here(self) -> list[T]:
        """Return what has been brought so far."""
        with self._changed:
            return list(self._here.values())

    def missing(self) -> list[str]:
        """Return the names of those who have not come, in order."""
        return [name for name in self._names if name not in self._here]

    def wait(
        self, seconds: float, failed: str, waiting: Callable[[list[str]], None] = lambda missing: None
    ) -> Mapping[str, T]:
        """Return what all have brought, once all are here. waiting: told who is missing.

        Raises the session's error, or `PeerLost` naming the first who has not come within `seconds`: it "`failed` within
        N s".
        """
        limit = time.monotonic() + seconds
        with self._changed:
            while missing := self.missing():
                self._check()
                waiting(missing)
                if (left := limit - time.monotonic()) <= 0:
                    raise PeerLost(missing[0], "connecting", f"{failed} within {seconds:g} s")
                self._changed.wait(left)
            return dict(self._here)
