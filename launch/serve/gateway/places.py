"""Places at the parties: so many requests run, so many wait in order, and more are told when to come again."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable

from launch.serve.gateway.errors import busy

WEIGHT = 0.3  # of the newest request among the seconds that one takes


class Places:
    """Counts requests. running: they occupy the parties; waiting: in the queue. Only the event loop calls it.

    on_change(): a number has changed.
    """

    def __init__(self, most: int, queue: int, on_change: Callable[[], None] = lambda: None) -> None:
        self.most = most
        self.queue = queue
        self.running = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._seconds = 1.0  # that a request takes, by those that are over
        self._on_change = on_change

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    async def take(self) -> None:
        """Wait for a place. Raises `ApiError` 429, with the seconds until one is expected, where the queue is full."""
        if self.running < self.most and not self._waiting:
            self.running += 1
            self._on_change()
            return
        if len(self._waiting) >= self.queue:
            running = f"this gateway runs {self.most} generations at a time"
            queued = f" and {self.queue} requests wait" if self.queue else ""
            raise busy(f"{running}{queued}; try again later", self.retry_seconds())
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self._on_change()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._pass_on()
            else:
                self._waiting.remove(turn)
            self._on_change()
            raise

    def leave(self, seconds: float | None) -> None:
        """Give a place back, to whoever waits the longest. seconds: that the request took, None for one that never began."""
        if seconds is not None:
            self._seconds += WEIGHT * (seconds - self._seconds)
        self._pass_on()
        self._on_change()

    def retry_seconds(self) -> int:
        """Return the whole seconds until a new request would find room, by how long requests have taken lately."""
        return max(1, math.ceil(self._seconds * (len(self._waiting) + 1) / self.most))

    def _pass_on(self) -> None:
        if self._waiting:
            self._waiting.popleft().set_result(None)
        else:
            self.running -= 1
