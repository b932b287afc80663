"""Giving a generation up from another thread: the session ends here and at all parties at once."""

from __future__ import annotations

import threading

from parties.errors import Cancelled
from parties.transport.session import Session


class Cancellation:
    """Ends one generation when `cancel` is called, from any thread, whatever it waits for. For one generation only.

    >>> cancellation = Cancellation()  # goes to `PrivateModel.generate(..., cancellation=cancellation)` or `Client.generate`
    >>> cancellation.cancel()
    >>> cancellation.cancelled
    True
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._session: Session | None = None
        self._cancelled = False

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._cancelled

    def cancel(self) -> None:
        """Let the generation raise `Cancelled`; the parties are told. Nothing happens when it is over."""
        with self._lock:
            self._cancelled = True
            session = self._session
        if session is not None:
            session.fail(Cancelled("the caller gave the generation up"))

    def check(self) -> None:
        """Raise `Cancelled` once `cancel` was called."""
        if self._cancelled:
            raise Cancelled("the caller gave the generation up")

    def watch(self, session: Session) -> None:
        """Let `cancel` end this session. Raises `Cancelled` when it is too late to begin."""
        with self._lock:
            self._session = session
        self.check()
