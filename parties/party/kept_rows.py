"""How many rows of each drafted step stay: said by the client once, needed by both passes of a party's program."""

from __future__ import annotations

import threading
from collections.abc import Callable

POLL_SECONDS = 1.0


class KeptRows:
    """Numbers by output; public. check: called about once a second while waiting; raises when the wait is vain."""

    def __init__(self, check: Callable[[], None]) -> None:
        self._check = check
        self._rows: dict[int, int] = {}
        self._changed = threading.Condition()

    def put(self, step: int, rows: int) -> None:
        """Remember how many rows of output `step` stay."""
        with self._changed:
            self._rows[step] = rows
            self._changed.notify_all()

    def wait(self, step: int) -> int:
        """Return how many rows of output `step` stay, once that is known. Raises what `check` does."""
        with self._changed:
            while step not in self._rows:
                self._check()
                self._changed.wait(POLL_SECONDS)
            return self._rows[step]
