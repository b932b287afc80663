"""Weights that are loaded: masked once in some session, used by later ones.

A load has a random id. Dealer and parties may use a load again only if all of them hold the one of that id, for the same
model, suite, precision and options: a mask never serves two weights and a weight's masked form never gets a second mask
of the same load.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

Key = tuple[str, ...]


class Loads:
    """The loads of one server, at most `limit` of them; the one unused for longest goes first."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._held: OrderedDict[str, tuple[Key, dict[str, Any]]] = OrderedDict()

    def ids(self, key: Key) -> list[str]:
        """Ids of the loads with this key, the latest used last."""
        with self._lock:
            return [load for load, (held, _) in self._held.items() if held == key]

    def get(self, load: str, key: Key) -> dict[str, Any] | None:
        """The weights of a load, None when it is not held (any more) or has another key."""
        with self._lock:
            held = self._held.get(load)
            if held is None or held[0] != key:
                return None
            self._held.move_to_end(load)
            return held[1]

    def put(self, load: str, key: Key, weights: dict[str, Any]) -> None:
        """Keep the weights of a load that is complete."""
        with self._lock:
            self._held[load] = (key, weights)
            while len(self._held) > self._limit:
                self._held.popitem(last=False)

    def drop(self, model: str) -> None:
        """Forget the loads of a model; sessions that use them keep them until they end."""
        with self._lock:
            for load in [load for load, (key, _) in self._held.items() if key[0] == model]:
                del self._held[load]
