"""What keeps a session from waiting for a peer that is gone: heartbeats, deadlines and the windows of lost connections.

How long a session waits for a peer, at most. A connection that ends is waited for `resume_seconds` from then on. A peer
that is connected and silent is given up `deadline_seconds` after its last message; after half of that the dialling side
tries a new connection, since a router may have dropped the old one. A connection that is silent first and ends then: both,
added. So nobody waits longer than deadline_seconds + resume_seconds after a peer's last message, and a window starts anew
only once the peer was heard again. A peer that sends signs of life, but not what a step needs, is given up after
`step_seconds`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from mpc.errors import PeerSilent, PermissionRefused
from parties.transport.peer_stream import PeerStream, Receiving
from parties.wire.error_codec import public


class HeartbeatMonitor:
    """A thread that beats for every stream of a process and notices the peers that do not.

    deadline: seconds of silence after which a peer is given up; step_seconds: the same for a live peer on which a step
    waits. revoked(): fingerprints of keys that are trusted no more; sessions with a peer that has one of them end.
    """

    def __init__(
        self, deadline: float, step_seconds: float, revoked: Callable[[], frozenset[str]] = lambda: frozenset()
    ) -> None:
        self.deadline = deadline
        self.step_seconds = step_seconds
        self._revoked = revoked
        self.interval = min(2.0, deadline / 8)
        self._streams: set[PeerStream] = set()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None  # from the first stream on

    def add(self, stream: PeerStream) -> None:
        """Start to beat for a stream and to listen for its peer."""
        stream.last_heard = time.monotonic()
        with self._lock:
            self._streams.add(stream)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="heartbeats", daemon=True)
                self._thread.start()

    def remove(self, stream: object) -> None:
        """Leave a stream alone."""
        with self._lock:
            self._streams = {one for one in self._streams if one is not stream}

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(5)

    def _run(self) -> None:
        before = time.monotonic()
        while not self._stop.wait(self.interval):
            now = time.monotonic()
            with self._lock:
                streams = list(self._streams)
            if now - before > 3 * self.interval:  # this process itself was paused: do not blame the peers
                for stream in streams:
                    stream.excuse(now, now - before)
            before, revoked = now, self._revoked()
            for stream in streams:
                session = stream.session
                try:
                    if stream.key() in revoked:
                        session.fail(PermissionRefused(f"the key of '{stream.peer}' was revoked at {session.role}"))
                    self._tend(stream, now)
                except Exception as error:
                    session.fail(public(error, session.role))

    def _tend(self, stream: PeerStream, now: float) -> None:
        stream.beat()
        if stream.receiving is Receiving.OVER:
            return
        since, step = stream.waiting_since, stream.session.step
        stream.check_silence(now, self.deadline)
        if since is not None and now - since > self.step_seconds:
            reason = f"is alive, but sent nothing of this step for {self.step_seconds:g} s"
            stream.session.fail(PeerSilent(stream.peer, step, reason))
