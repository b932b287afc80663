"""Which sessions of a compute party run in step (`mpc.in_step`): those of one model, suite and options, up to a number.

Party 0 decides, when a session has taken its place there: it joins the first group with room for its kind, or a new one.
Party 0's greeting says which (`parties.party.greeting`), and the other parties follow before they say that they are ready;
so every party knows a member before anything of it is sent. A group ends with its last session at party 0.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from mpc.errors import ConfigurationError, WireError
from mpc.in_step import StepCosts, StepMember
from parties.party.greeting import StepPlace
from parties.party.rendezvous import Network
from parties.party.step_link import StepLink
from parties.server.metrics import Metrics
from parties.transport.peer_stream import PeerStream
from parties.wire.manifest import check_id, new_id

Key = tuple[str, ...]
LOOK_SECONDS = 0.25


@dataclass
class _Group:
    """What is known of a group here. key: what its sessions have in common; members: sessions that are not over; numbered:
    how many there were; closing: nobody joins any more; booked: of its costs, what the metrics have already."""

    link: StepLink
    key: Key
    members: int = 0
    numbered: int = 0
    closing: bool = False
    booked: StepCosts = field(default_factory=StepCosts)


class StepGroups:
    """The groups of one party, of at most `max_in_step` sessions each; 1: none run in step."""

    def __init__(self, network: Network, metrics: Metrics) -> None:
        self._network = network
        self._metrics = metrics
        self._most = network.config.limits.max_in_step
        self._changed = threading.Condition()
        self._groups: dict[str, _Group] = {}

    def find(self, id: str) -> StepLink | None:
        """Return the group of this id, None without one."""
        with self._changed:
            found = self._groups.get(id)
            return None if found is None else found.link

    def assign(self, key: Key) -> StepPlace | None:
        """Return a session's place, at party 0; None where sessions do not run in step. `release` gives it back."""
        if self._most < 2:
            return None
        with self._changed:
            group = next((g for g in self._groups.values() if self._has_room(g, key)), None) or self._new(new_id(), key)
            group.members += 1
            group.numbered += 1
            return StepPlace(group.link.id, group.numbered)

    def follow(self, place: StepPlace, key: Key, first: str) -> None:
        """Take part in a group that party 0, whose name is `first`, has chosen. Raises `ConfigurationError` where sessions
        do not run in step here, `WireError` for a group of another kind."""
        config = self._network.config
        if self._most < 2:
            raise ConfigurationError(
                f"{first} runs sessions in step, {config.name} does not: set 'max_in_step' in the 'limits' of all parties "
                "alike"
            )
        check_id(place.group, "group", first)
        with self._changed:
            group = self._groups.get(place.group) or self._new(place.group, key)
            if group.key != key:
                raise WireError(f"{first} wants sessions of different models or options in step")
            group.members += 1
            self._changed.notify_all()

    def join(self, place: StepPlace, check: Callable[[], None]) -> StepMember:
        """Return the member at a place. check(): raises the session's error. Raises the group's error if it has ended."""
        with self._changed:
            group = self._groups.get(place.group)
            if group is None:
                raise WireError(f"the sessions in step of group {place.group} are over at {self._network.config.name}")
            group.link.check()
            return group.link.group.join(place.number, check)

    def release(self, place: StepPlace) -> None:
        """Count a session that is over; with the last one party 0 ends the group."""
        with self._changed:
            group = self._groups.get(place.group)
            if group is None:
                return
            self._book(group)
            group.members -= 1
            group.closing = self._network.config.index == 0 and not group.members
        if group.closing:
            group.link.close()

    def attach(self, stream: PeerStream, id: str) -> StepLink:
        """Let a peer that has dialled take part in a group; waits for the greeting that names the group here. Raises
        `WireError` when none does."""
        check_id(id, "group", stream.peer)
        limit = time.monotonic() + self._network.config.deadline_seconds * 0.8
        with self._changed:
            while id not in self._groups and (left := limit - time.monotonic()) > 0:
                stream.session.check()
                self._changed.wait(min(left, LOOK_SECONDS))
            group = self._groups.get(id)
        if group is None:
            raise WireError(f"{stream.peer} dialled for sessions in step that are not here (any more)")
        group.link.attach(stream)
        return group.link

    def stop(self) -> None:
        """End all groups, at the end of the server."""
        with self._changed:
            links = [group.link for group in self._groups.values()]
        for link in links:
            link.finish()

    def _has_room(self, group: _Group, key: Key) -> bool:
        return group.key == key and group.members < self._most and not group.closing and group.link.error is None

    def _new(self, id: str, key: Key) -> _Group:
        group = self._groups[id] = _Group(StepLink(id, self._network, self._over), key)
        group.link.start()
        return group

    def _over(self, link: StepLink) -> None:
        with self._changed:
            self._book(self._groups.pop(link.id))

    def _book(self, group: _Group) -> None:
        """Let the metrics have what was counted since."""
        now, before = group.link.group.costs, group.booked
        get = self._metrics.get
        get("mpcache_step_rounds_total").inc(now.rounds - before.rounds)
        get("mpcache_step_sections_total").inc(now.sections - before.sections)
        get("mpcache_step_overhead_bytes_total").inc(now.overhead_bytes - before.overhead_bytes)
        group.booked = replace(now)
