"""At the start of a server: for whom it waits. Sessions wait by themselves; this is for the person who reads the log."""

from __future__ import annotations

import threading
from collections.abc import Callable

from parties.config.role_config import RoleConfig
from parties.events import log
from parties.identity.certificates import Identity
from parties.identity.trust import Peer
from parties.status.status import PeerStatus, ask_one, asked
from parties.wire.error_codec import public

FIRST_PAUSE = 1.0
LONGEST_PAUSE = 8.0
GROWTH = 1.5


class PeerWatch:
    """Looks for the peers of `config`, with growing pauses, until all are there or `stop`. Logs each change.

    identity(): the server's own of the moment.
    """

    def __init__(self, config: RoleConfig, identity: Callable[[], Identity], first_pause: float = FIRST_PAUSE) -> None:
        self._config = config
        self._identity = identity
        self._pause = first_pause
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="peer watch", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Stop looking; a look that is under way may take some seconds more."""
        self._stop.set()

    def __enter__(self) -> PeerWatch:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def _run(self) -> None:
        try:
            self._look()
        except Exception as error:
            public(error, self._config.name)

    def _look(self) -> None:
        me, missing = self._config.name, asked(self._config)
        while missing:
            missing = [peer for peer in missing if not self._is_there(peer)]
            if missing and self._stop.wait(self._pause):
                return
            self._pause = min(GROWTH * self._pause, LONGEST_PAUSE)
        log.info("%s: all peers are there", me)

    def _is_there(self, peer: Peer) -> bool:
        if self._stop.is_set():
            return False
        status = ask_one(self._config, self._identity(), peer)
        if self._stop.is_set():
            return False
        me = self._config.name
        if not status.answers:
            log.info("%s: waiting for %s: %s (next look in %.1f s)", me, peer.name, _reasons(status), self._pause)
            return False
        log.info("%s: %s is there (version %s)", me, peer.name, status.version)
        for trouble in status.troubles:
            log.warning("%s: %s", me, trouble)
        return True


def _reasons(status: PeerStatus) -> str:
    return "; ".join(str(trouble) for trouble in status.troubles)
