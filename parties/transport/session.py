"""What is common to one session on every role: its streams, where it is, and the one error that ends it."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection
from typing import Any, Protocol

from mpc.errors import MpcacheError
from parties.errors import SessionFinished


class SessionStream(Protocol):
    """A stream of a session, as the session knows it (`parties.transport.peer_stream`)."""

    peer: str

    def wake(self) -> None:
        """Let whoever waits at the stream, its receiver included, look at the session's error."""

    def close(self, farewell: Any = None) -> None:
        """Send what is queued and a last message, and end what is sent."""

    def notify(self) -> None:
        """Let whoever waits for room or for the stream's end look at the session."""

    def settle(self) -> None:
        """Wait until the peer has all that was sent to it, or nothing more can be done for that."""

    def finish_call(self, seconds: float) -> None:
        """Give the stream's call so many seconds to end, then cancel it."""


class Session:
    """What is common to one session on every role: an id, the current step, and one error that ends it everywhere.

    `_lock` guards the error and the list of streams. No stream is called while it is held.
    """

    def __init__(self, id: str, role: str) -> None:
        self.id = id
        self.role = role
        self.step = "opening the session"
        self.streams: list[SessionStream] = []
        self._lock = threading.Lock()
        self._error: MpcacheError | None = None
        self._ended = False

    @property
    def error(self) -> MpcacheError | None:
        """Return why the session ends, None while it lives or when it succeeded."""
        return self._error

    @property
    def finished(self) -> bool:
        """Whether the client ended the session in good order."""
        return isinstance(self._error, SessionFinished)

    @property
    def ended(self) -> bool:
        """Whether `end` was called."""
        return self._ended

    def fail(self, error: MpcacheError) -> None:
        """End the session: whoever waits in it raises `error`. The first error counts, later ones are dropped."""
        with self._lock:
            if self._error is not None or self._ended:
                return
            self._error = error
            streams = list(self.streams)
        for stream in streams:
            stream.wake()
        self.on_fail()

    def on_fail(self) -> None:
        """Wake whoever waits elsewhere than at a stream. Called once, when the session fails."""

    def finish(self) -> None:
        """End the session in good order, from any thread."""
        self.fail(SessionFinished("the client ended the session"))

    def check(self) -> None:
        """Raise the session's error if there is one."""
        if self._error is not None:
            raise self._error

    def add(self, stream: SessionStream) -> None:
        """Make a stream part of the session."""
        with self._lock:
            self.streams.append(stream)
            failed = self._error is not None
        if failed:
            stream.wake()

    def settle(self) -> None:
        """Wait until the peers have all that was sent to them; a lost one has its window, a silent one its deadline."""
        for stream in list(self.streams):
            stream.settle()

    def end(self) -> None:
        """Make sure that nothing that happens on the streams from here on is an error."""
        with self._lock:
            self._ended = True
            streams = list(self.streams)
        for stream in streams:
            stream.notify()

    def finish_calls(self, seconds: float = 1.0, but: Collection[SessionStream] = ()) -> None:
        """Give the streams so many seconds in all to end, then cancel those that have not. but: streams to leave alone."""
        limit = time.monotonic() + seconds
        for stream in list(self.streams):
            if stream not in but:
                stream.finish_call(max(0.0, limit - time.monotonic()))
