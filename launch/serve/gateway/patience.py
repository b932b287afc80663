"""How long a request waits for a party or dealer that is gone: seconds, where whoever starts a role waits a minute."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from mpc.errors import PeerLost
from parties.events import clean

_AWAITED = re.compile(r"waiting for ([A-Za-z0-9._-]{1,64}): (.*)", re.DOTALL)  # a role's name, and why it is waited for
MOST_SHOWN = 300  # characters of a reason, which a party may have sent

Progress = Callable[[str, int, int], None]


class Patience:
    """Hears what a generation waits for, and ends it once it has waited `seconds` for one peer that cannot be reached.

    A generation that waits for its turn, or for a tape as the parties' configuration says, goes on waiting.
    """

    def __init__(self, seconds: float, then: Progress = lambda stage, done, total: None) -> None:
        self._seconds = seconds
        self._then = then
        self._since: dict[str, float] = {}

    def progress(self, stage: str, done: int, total: int) -> None:
        """Hear of a stage, as `on_progress` of a client does. Raises `PeerLost` naming the peer."""
        found = _AWAITED.fullmatch(stage)
        if found is None:
            self._since.clear()
        else:
            self.waiting(found[1], found[2])
        self._then(stage, done, total)

    def waiting(self, peer: str, reason: str) -> None:
        """Hear that a peer is waited for. Raises `PeerLost` when that takes too long."""
        now = time.monotonic()
        if now - self._since.setdefault(peer, now) >= self._seconds:
            raise PeerLost(peer, "connecting", f"{clean(reason)[:MOST_SHOWN]} (waited {self._seconds:g} s)")
