"""Which rows leave memory when there is too little of it: those that are needed latest, as far as that is known.

A *unit* is a layer of a session: its rows are needed all at once, and in the order of layers, which is the same for every
token. So inside a session the future is known, and whoever lets the unit go that is needed latest (Belady's rule) reads as
little as anybody could. Across sessions one bit is predicted (as in paging with succinct predictions): a session that waits
for its client will be needed nobody knows when, one that computes is needed now. Units of the former go first.

All of it follows from public numbers: the number of layers, where sessions are, and when clients answer.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

Unit = tuple[str, int]
"""A session and a layer of it."""

FAR = 1 << 30  # steps; behind any known use


def steps_until(layer: int, at: int, layers: int) -> int:
    """Return with how many steps a session enters `layer` again, being in layer `at` of `layers`.

    >>> [steps_until(layer, at=2, layers=4) for layer in range(4)]
    [2, 3, 4, 1]
    """
    return (layer - at - 1) % layers + 1


@dataclass(frozen=True)
class Entered:
    """One line of a schedule: a session needs a layer or, if it `waits`, begins to wait for its client there. sizes: bytes
    of its layers by now, in order; none in the last line of a session. All public."""

    session: str
    layer: int
    sizes: tuple[int, ...]
    waits: bool = False


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

    def shrink(self, may: Callable[[Unit], bool], key: Callable[[Unit], tuple[int, ...]]) -> None:
        """Let units go that may, the one with the largest key first, until all fits."""
        while self.used > self.most and (found := [unit for unit in self.sizes if may(unit)]):
            del self.sizes[max(found, key=key)]


class Sessions:
    """Where sessions are: what is known of the next use of a unit."""

    def __init__(self) -> None:
        self._at: dict[str, tuple[int, int, bool]] = {}

    def enter(self, line: Entered) -> None:
        """Note where a session is now."""
        self._at[line.session] = line.layer, len(line.sizes), line.waits
        if not line.sizes:
            del self._at[line.session]

    def may_go(self, unit: Unit, now: Unit) -> bool:
        """Whether a unit may go while `now` is needed: of the same session, or of one that waits."""
        return unit != now and (unit[0] == now[0] or self._at[unit[0]][2])

    def latest_needed(self, unit: Unit) -> tuple[int, ...]:
        """Return how late a unit is needed, as far as that is known."""
        session, layer = unit
        at, layers, waits = self._at[session]
        return int(waits), steps_until(layer, at, layers), layer


def replay(schedule: Schedule, most: int, rule: str) -> Counts:
    """Return what a rule has to read of a recorded schedule with `most` bytes of memory: "ours", "lru", or "belady", which
    knows all of the future."""
    future = _uses(schedule) if rule == "belady" else {}
    memory, sessions, counts, last, seen = Memory(most), Sessions(), Counts(), dict[Unit, int](), set[Unit]()
    for now, line in enumerate(schedule):
        sessions.enter(line)
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
            return (-last[one],) if rule == "lru" else sessions.latest_needed(one)

        def may(one: Unit, unit: Unit = unit) -> bool:
            return sessions.may_go(one, unit) if rule == "ours" else one != unit

        memory.shrink(may, key)
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
