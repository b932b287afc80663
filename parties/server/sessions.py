"""The sessions of a server: those that live, and what ended those that are over."""

from __future__ import annotations

import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

from mpc.errors import MpcacheError, WireError
from parties.server.admission import Ticket
from parties.server.traces import SessionTrace
from parties.transport.session import Session
from parties.wire import wire_pb2 as wire
from parties.wire.error_codec import from_failure, to_failure
from parties.wire.manifest import Manifest

REMEMBERED = 1024
LOOK_SECONDS = 0.25


class ServedSession(Session):
    """A session at a server. ticket: its place there; trace: its spans."""

    manifest: Manifest
    ticket: Ticket
    trace: SessionTrace


S = TypeVar("S", bound=ServedSession)


class Sessions(Generic[S]):
    """The sessions of a server, those that wait for their turn as well; no id twice."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._changed = threading.Condition()
        self._live: dict[str, S] = {}
        # What ended a session is remembered in its wire form: an exception holds on to the frames that it went through,
        # and to the shares in them.
        self._over: OrderedDict[str, wire.Failure | None] = OrderedDict()
        self._reported: weakref.WeakSet[MpcacheError] = weakref.WeakSet()

    def add(self, session: S) -> None:
        """Register a session. Raises the error that ended the session of this id, or `WireError` if it is used."""
        with self._changed:
            self._raise_again(session.id)
            if session.id in self._live or session.id in self._over:
                raise WireError(f"session {session.id} was opened at {self._name} before: every session needs a new id")
            self._live[session.id] = session
            self._changed.notify_all()

    def remove(self, session: S) -> None:
        """Remember the id of a session that is over."""
        with self._changed:
            if self._live.pop(session.id, None) is not None:
                error = None if session.finished else session.error
                self._over[session.id] = None if error is None else to_failure(error)
                if error is not None:
                    self._reported.add(error)
                while len(self._over) > REMEMBERED:
                    self._over.popitem(last=False)
            self._changed.notify_all()

    def wait_for(self, id: str, seconds: float, check: Callable[[], None] = lambda: None) -> S | None:
        """Return the live session `id`, waiting for it to be opened; None after `seconds` or when it is over.

        check() is called now and then and may raise to give up. Raises the error that ended it.
        """
        limit = time.monotonic() + seconds
        with self._changed:
            while id not in self._live and id not in self._over and (left := limit - time.monotonic()) > 0:
                check()
                self._changed.wait(min(left, LOOK_SECONDS))
            self._raise_again(id)
            return self._live.get(id)

    def _raise_again(self, id: str) -> None:
        """Raise the error that ended the session `id`, if one did."""
        if (failure := self._over.get(id)) is not None:
            error = from_failure(failure, self._name)
            self._reported.add(error)
            raise error

    def ended_by(self, error: MpcacheError) -> bool:
        """Whether this very error ended some session, which reports it."""
        with self._changed:
            return any(s.error is error for s in self._live.values()) or error in self._reported

    def all(self) -> list[S]:
        """Return all live sessions."""
        with self._changed:
            return list(self._live.values())
