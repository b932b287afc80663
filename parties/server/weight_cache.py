"""Weights that are loaded: masked once in some session, used by later ones.

A load has a random id. Dealer and parties may use a load again only if all of them hold the one of that id, for the same
model, suite, precision and options, and each party for the same storing of its shares: a mask never serves two weights and a
weight's masked form never gets a second mask of the same load.

Sessions of one client and key that start at once load once: each claims the key at every server, after its place there, and
releases it when it is told that the weights are there, when it has loaded them, or when it ends. Claims are taken in the
same order of servers as places (see `parties.server.admission`), so they cannot lock up either. A client waits for its own
claims only: one that claims and does not go on holds up nobody else.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Key = tuple[str, ...]


class WeightCache:
    """The loads of one server, at most `limit` of them, at most `own` for one client.

    When there are too many, the client for which most are kept gives up the one that was not used for longest; it goes
    unless others have used it too. So whatever sets of options one client asks for, from two loads on it costs other clients
    none of theirs.
    """

    def __init__(self, limit: int, own: int | None = None) -> None:
        self._limit = limit
        self._own = limit if own is None else own
        self._users: dict[str, set[str]] = {}  # load -> clients whose sessions have used it
        self._changed = threading.Condition()
        self._held: OrderedDict[str, tuple[Key, dict[str, Any]]] = OrderedDict()
        self._claims: dict[Key, object] = {}

    def __len__(self) -> int:
        with self._changed:
            return len(self._held)

    def ids(self, key: Key) -> list[str]:
        """Return ids of the loads with this key, the latest used last."""
        with self._changed:
            return [load for load, (held, _) in self._held.items() if held == key]

    def get(self, load: str, key: Key, client: str = "") -> dict[str, Any] | None:
        """Return the weights of a load, None when it is not held (any more) or has another key. client: who uses it."""
        with self._changed:
            held = self._held.get(load)
            if held is None or held[0] != key:
                return None
            self._held.move_to_end(load)
            self._users[load].add(client)
            return held[1]

    def put(self, load: str, key: Key, weights: dict[str, Any], client: str = "") -> None:
        """Keep the weights of a load that is complete, for the client whose session has loaded them."""
        with self._changed:
            self._held[load] = (key, weights)
            self._users[load] = {client}
            while self._count(client) > self._own:
                self._give_up({client})
            while len(self._held) > self._limit:
                counts = {name: self._count(name) for users in self._users.values() for name in users}
                self._give_up({name for name, count in counts.items() if count == max(counts.values())})

    def _count(self, client: str) -> int:
        return sum(client in users for users in self._users.values())

    def _give_up(self, clients: set[str]) -> None:
        """Let these clients no longer use the one of their loads that was not used for longest."""
        load = next(load for load in self._held if self._users[load] & clients)
        self._users[load] -= clients
        if not self._users[load]:
            self._forget(load)

    def _forget(self, load: str) -> None:
        del self._held[load], self._users[load]

    def drop(self, model: str) -> None:
        """Forget the loads of a model, or with rows of a registered text, by its id; sessions that use them keep them until
        they end."""
        with self._changed:
            for load in [load for load, (key, _) in self._held.items() if model in key[0]]:
                self._forget(load)

    def lease(self, key: Key, client: str, owner: object) -> WeightLease:
        """Return a session's use of the cache. owner: the session, which holds its claim."""
        return WeightLease(self, key, client, owner)

    # ---- one session at a time loads -----------------------------------------------------------------------------------
    def claim(self, key: Key, owner: object, check: Callable[[], None], waiting: Callable[[], None]) -> None:
        """Wait until nobody else may be loading this key. check() may raise to give up; waiting() is told of a wait."""
        with self._changed:
            if self._claims.get(key, owner) is not owner:
                waiting()
            while self._claims.get(key, owner) is not owner:
                check()
                self._changed.wait()
            check()
            self._claims[key] = owner

    def release(self, owner: object) -> None:
        """Let the next one claim; nothing if `owner` has no claim."""
        with self._changed:
            for key in [key for key, holder in self._claims.items() if holder is owner]:
                del self._claims[key]
            self._changed.notify_all()

    def wake(self) -> None:
        """Let everybody who waits look whether to give up."""
        with self._changed:
            self._changed.notify_all()


@dataclass(frozen=True)
class WeightLease:
    """One session's use of the cache: the loads with its key, for its client."""

    _cache: WeightCache
    _key: Key
    _client: str
    _owner: object

    def ids(self) -> list[str]:
        """Return the ids of the loads that are held, the latest used last."""
        return self._cache.ids(self._key)

    def get(self, load: str) -> dict[str, Any] | None:
        """Return the weights of a load, None when it is not held (any more)."""
        return self._cache.get(load, self._key, self._client)

    def put(self, load: str, weights: dict[str, Any]) -> None:
        """Keep the weights of a load that is complete, and let the client's next session claim."""
        self._cache.put(load, self._key, weights, self._client)
        self._cache.release(self._owner)

    def claim(self, check: Callable[[], None], waiting: Callable[[], None] = lambda: None) -> None:
        """Wait until no other session of the client may be loading these weights; see `WeightCache.claim`."""
        self._cache.claim((*self._key, self._client), self._owner, check, waiting)

    def release(self) -> None:
        """Let the client's next session claim."""
        self._cache.release(self._owner)
