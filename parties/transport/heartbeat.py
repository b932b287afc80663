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
from parties.transport.peer_stream import PeerStream
from parties.wire.error_codec import public


class HeartbeatMonitor:
    """The thread that beats for every link of a process and notices links that do not.

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
        self._links: set[PeerStream] = set()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeats", daemon=True)
        self._thread.start()

    def add(self, link: PeerStream) -> None:
        """Start to beat for a link and to listen for its peer."""
        link.last_heard = time.monotonic()
        with self._lock:
            self._links.add(link)

    def remove(self, link: PeerStream) -> None:
        """Leave a link alone."""
        with self._lock:
            self._links.discard(link)

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join(5)

    def _run(self) -> None:
        before = time.monotonic()
        while not self._stop.wait(self.interval):
            now = time.monotonic()
            with self._lock:
                links = list(self._links)
            if now - before > 3 * self.interval:  # this process itself was paused: do not blame the peers
                for link in links:
                    link.last_heard = now
                    link.limit += now - before
            before, revoked = now, self._revoked()
            for link in links:
                try:
                    if link.key() in revoked:
                        reason = f"the key of '{link.peer}' was revoked at {link.session.role}"
                        link.session.fail(PermissionRefused(reason))
                    self._tend(link, now)
                except Exception as error:
                    link.session.fail(public(error, link.session.role))

    def _tend(self, link: PeerStream, now: float) -> None:
        link.beats()
        if link.done.is_set():
            return
        since, step, silent = link.waiting_since, link.session.step, now - link.last_heard
        if link.lost:
            if now > link.limit:
                link.stay_away()
        elif not link.stalled and silent > self.deadline:
            link.fail(PeerSilent(link.peer, step, f"sent nothing for {self.deadline:g} s"))
        elif not link.stalled and silent > self.deadline / 2 and link.may_return():
            link.silent(self.deadline)
        if since is not None and now - since > self.step_seconds:
            reason = f"is alive, but sent nothing of this step for {self.step_seconds:g} s"
            link.session.fail(PeerSilent(link.peer, step, reason))
