"""A server's end of `Probe`: round trips, its clock, and bytes in both directions.

Whatever a caller does costs little: one probe of a caller and few of all at a time, bounded bytes, messages and time, and
never more bytes back than came.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from mpc.errors import MpcacheError, WireError
from parties.errors import Busy
from parties.events import refused
from parties.identity.trust import Trust
from parties.transport.connection import abort_if_alive
from parties.wire import wire_pb2 as wire
from parties.wire.error_codec import public

PROBE_BYTES = 16 << 20
PROBE_MESSAGES = 1024
PROBE_SECONDS = 60.0
PROBES = 4
PIECE_BYTES = 1 << 17


class Prober:
    """Answers probes at the server `name`; trust: who calls."""

    def __init__(self, name: str, trust: Trust) -> None:
        self.clock: Callable[[], float] = time.time
        self._name = name
        self._trust = trust
        self._lock = threading.Lock()
        self._callers: set[str] = set()
        self._piece = secrets.token_bytes(PIECE_BYTES)

    def answer(
        self, requests: Iterator[wire.ProbeRequest], context: Any, authorise: Callable[[str], None]
    ) -> Iterator[wire.ProbeReply]:
        """Yield the replies of one probe. authorise(caller's name) may refuse; the call then ends with a typed status."""
        wanted = "unknown"
        name: str | None = None
        timer = threading.Timer(PROBE_SECONDS, context.cancel)
        timer.daemon = True
        try:
            wanted = self._trust.caller(context).name
            authorise(wanted)
            self._enter(wanted)
            name = wanted
            timer.start()
            yield from self._replies(requests, name)
        except MpcacheError as error:
            refused(self._name, wanted, "probe", error)
            abort_if_alive(context, error)
        except Exception as error:  # gRPC raises a plain one when the caller is gone
            if context.is_active():
                abort_if_alive(context, public(error, self._name))
        finally:
            timer.cancel()
            if name is not None:
                with self._lock:
                    self._callers.discard(name)

    def _enter(self, name: str) -> None:
        with self._lock:
            if name in self._callers:
                raise Busy(f"{self._name} answers a probe of '{name}' already; wait for its end")
            if len(self._callers) >= PROBES:
                raise Busy(f"{self._name} answers {PROBES} probes at a time; try again later")
            self._callers.add(name)

    def _replies(self, requests: Iterator[wire.ProbeRequest], name: str) -> Iterator[wire.ProbeReply]:
        total = unanswered = 0
        for count, request in enumerate(requests, 1):
            kind = request.WhichOneof("content")
            if count > PROBE_MESSAGES:
                raise WireError(f"{name} sent more than {PROBE_MESSAGES} messages in one probe")
            if kind == "ping":
                yield wire.ProbeReply(clock=self.clock())
            elif kind == "payload":
                total += len(request.payload)
                unanswered += len(request.payload)
                if total > PROBE_BYTES:
                    raise WireError(f"{name} sent more than {PROBE_BYTES} bytes in one probe")
            elif kind == "back":
                yield wire.ProbeReply(received=unanswered)
                for start in range(0, unanswered, PIECE_BYTES):
                    yield wire.ProbeReply(payload=self._piece[: min(PIECE_BYTES, unanswered - start)])
                unanswered = 0
            else:
                raise WireError(f"{name} sent a probe without content")
