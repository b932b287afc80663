"""Which rows leave memory when there is too little of it: those that are needed latest, as far as that is known.

A *unit* is a layer of a session: its rows are needed all at once, and in the order of layers, which is the same for every
token. So inside a session the future is known, and whoever lets the unit go that is needed latest (Belady's rule) reads as
little as anybody could; behind the last token that a session may generate nothing is needed. Across sessions it is predicted
from what was seen last: after how many tokens a session waits for its client, and how long; of one that waits for the first
time, how long the last client did that was waited for. Until somebody has answered nobody knows, and rows of those that wait
go first. Time is counted in layers that any session enters, of which a session that computes enters one of as many as there
are such sessions.

A session that computes gives up a layer that another one asks for when it enters its next one, one layer at a time; one that
waits gives up any, at once.

All of it follows from public numbers: the number of layers, where sessions are, and when clients answer.
"""

from __future__ import annotations

import bisect
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

Unit = tuple[str, int]
"""A session and a layer of it."""

FAR = 1 << 30  # steps; behind any known use
NEVER = 1 << 31


def steps_until(layer: int, at: int, layers: int) -> int:
    """Return with how many steps a session enters `layer` again, being in layer `at` of `layers`.

    >>> [steps_until(layer, at=2, layers=4) for layer in range(4)]
    [2, 3, 4, 1]
    """
    return (layer - at - 1) % layers + 1


@dataclass(frozen=True)
class Entered:
    """One line of a schedule: a session needs a layer or, if it `waits`, begins to wait for its client there. sizes: bytes
    of its layers by now, in order; none in the last line of a session. last: it is at the last token that it may generate.
    All public."""

    session: str
    layer: int
    sizes: tuple[int, ...]
    waits: bool = False
    last: bool = False


Schedule = Sequence[Entered]


@dataclass
class Counts:
    """How often a unit was needed, how often it had to be read, and of how many bytes."""

    needed: int = 0
    read: int = 0
    read_bytes: int = 0

    @property
    def hit_rate(self) -> float:
        """The share of uses for which nothing was read."""
        return 1.0 - self.read / self.needed if self.needed else 1.0


@dataclass
class Memory:
    """Units that are in memory, at most `most` bytes of them, but for what is needed right now."""

    most: int
    sizes: dict[Unit, int] = field(default_factory=dict)

    @property
    def used(self) -> int:
        """Bytes that are taken."""
        return sum(self.sizes.values())


@dataclass
class _Place:
    """Where a session is. last: at its last token; tokens: since it waited last; between: of those before that, as many as
    it had; began: when the wait began, now or last; waited: how long the one before took. None: not known yet."""

    layer: int = 0
    layers: int = 1
    waits: bool = False
    last: bool = False
    tokens: int = 0
    between: int | None = None
    began: int = 0
    waited: int | None = None


class Sessions:
    """Where sessions are: what is known of the next use of a unit."""

    def __init__(self) -> None:
        self._at: dict[str, _Place] = {}
        self._now = 0
        self._waited: int | None = None  # steps that a client took last, anyone's

    def enter(self, line: Entered) -> None:
        """Note where a session is now."""
        self._now += 1
        if not line.sizes:
            self._at.pop(line.session, None)
            return
        place = self._at.setdefault(line.session, _Place())
        place.layer, place.layers, place.last = line.layer, len(line.sizes), line.last
        if place.waits:
            place.waited = self._waited = self._now - place.began
        place.waits = line.waits
        if line.waits:
            place.began, place.between, place.tokens = self._now, place.tokens, 0
        elif line.layer == 0:
            place.tokens += 1

    def until(self, unit: Unit) -> tuple[int, int]:
        """Return how late a unit is needed, as far as that is known: the largest goes first."""
        session, layer = unit
        at = self._at.get(session)
        if at is None:
            return FAR, layer
        turn = max(1, sum(not place.waits for place in self._at.values()))
        if at.waits:
            waited, gone = self._waited if at.waited is None else at.waited, self._now - at.began
            if waited is None:
                return FAR + layer, layer
            return (waited - gone if gone < waited else gone) + (layer + 1) * turn, layer
        if at.last and layer <= at.layer:
            return NEVER, layer
        found = steps_until(layer, at.layer, at.layers) * turn
        if layer <= at.layer and at.waited is not None and at.between is not None and at.tokens >= at.between:
            found += at.waited  # it will wait before it needs this one
        return found, layer


def replay(schedule: Schedule, most: int, rule: str) -> Counts:
    """Return what a rule has to read of a recorded schedule with `most` bytes of memory: "ours", "lru", or "belady", which
    knows all of the future."""
    future = _uses(schedule) if rule == "belady" else {}
    memory, sessions, counts, last, seen = Memory(most), Sessions(), Counts(), dict[Unit, int](), set[Unit]()
    asked: dict[str, int] = {}  # a layer of a session that computes, which it gives up when it enters the next one
    waiting: set[str] = set()
    for now, line in enumerate(schedule):
        sessions.enter(line)
        (waiting.add if line.waits else waiting.discard)(line.session)
        promised = asked.pop(line.session, None)
        if promised is not None and (promised != line.layer or line.waits):
            memory.sizes.pop((line.session, promised), None)
        for unit in [unit for unit in memory.sizes if unit[0] == line.session and not line.sizes]:
            del memory.sizes[unit]
        if not line.sizes:
            continue
        for layer, size in enumerate(line.sizes):
            if (line.session, layer) in memory.sizes:
                memory.sizes[line.session, layer] = size
        unit = line.session, line.layer
        if line.waits:
            continue
        last[unit] = now
        if unit in seen:
            counts.needed += 1
            if unit not in memory.sizes:
                counts.read += 1
                counts.read_bytes += line.sizes[line.layer]
        seen.add(unit)
        memory.sizes[unit] = line.sizes[line.layer]

        def key(one: Unit, now: int = now) -> tuple[int, ...]:
            if rule == "belady":
                return (_next(future[one], now),)
            return (-last[one],) if rule == "lru" else sessions.until(one)

        while memory.used - sum(memory.sizes.get(one, 0) for one in asked.items()) > most:
            found = [one for one in memory.sizes if one != unit and (rule != "ours" or one[0] not in asked)]
            if not found:
                break
            goes = max(found, key=key)
            if rule == "ours" and goes[0] != line.session and goes[0] not in waiting:
                asked[goes[0]] = goes[1]
            else:
                del memory.sizes[goes]
    return counts


def _uses(schedule: Schedule) -> dict[Unit, list[int]]:
    found: dict[Unit, list[int]] = {}
    for now, line in enumerate(schedule):
        if line.sizes and not line.waits:
            found.setdefault((line.session, line.layer), []).append(now)
    return found


def _next(uses: Sequence[int], now: int) -> int:
    place = bisect.bisect_right(uses, now)
    return uses[place] if place < len(uses) else FAR


def distinct(schedule: Schedule) -> int:
    """Return the most bytes that all sessions of a schedule have at a time."""
    now: dict[Hashable, int] = {}
    most = 0
    for line in schedule:
        now[line.session] = sum(line.sizes)
        most = max(most, sum(now.values()))
    return most
