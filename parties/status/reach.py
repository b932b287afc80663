"""Which peers a compute party reaches, looked at when somebody asks: a session needs all of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from parties.config.role_config import RoleConfig
from parties.identity.certificates import Identity
from parties.status.status import ask_one, asked

KEPT_SECONDS = 2.0


class Reach:
    """Looks for the other parties and, unless its tapes lie in a folder, the dealer. identity(): the party's own of the
    moment. Safe for threads; whoever asks within two seconds gets the last answer, so that asking often costs no peer much.
    """

    def __init__(self, config: RoleConfig, identity: Callable[[], Identity]) -> None:
        self._config, self._identity = config, identity
        self._lock = threading.Lock()
        self._looked = -KEPT_SECONDS
        self._missing: dict[str, str] = {}

    def missing(self) -> dict[str, str]:
        """Return the peers that do not answer, by name, each with the reason."""
        with self._lock:
            if time.monotonic() - self._looked >= KEPT_SECONDS:
                peers = asked(self._config)
                with ThreadPoolExecutor(max(1, len(peers))) as pool:
                    found = list(pool.map(lambda peer: ask_one(self._config, self._identity(), peer), peers))
                self._missing = {s.name: "; ".join(map(str, s.troubles)) for s in found if not s.answers}
                self._looked = time.monotonic()
            return self._missing
