"""What all sessions of a party cache in memory, and what of it lies in pages when that is more than is allowed.

Each session has a `SessionPager`, which its program tells of every layer that it enters (`protocols.paging`). Where all
sessions together have more in memory than is allowed, layers go by `parties.pages.replacement`: what is needed latest first,
be it this session's own, one of a session that waits for its client, or one of a session that computes. The last is asked
for it, and lets it go when it enters its next layer: rows are moved by the session's own thread. The pages of the next layer
that is away are read ahead by the operating system while this one computes. What leaves is in the operating system's page
cache first, which writes it to disk when it likes to and gives it back from there as long as the machine has memory to
spare: the buffer for victims between memory and disk.

Memory is that of keys, values and what codecs hold: at most what is allowed, the layers that sessions are just in, and of
each session that computes one that it was asked for.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

from mpc.errors import EnvironmentProblem, MpcacheError
from parties.pages.page_store import PageStore
from parties.pages.replacement import Counts, Entered, Sessions
from parties.pages.shelf import SessionPages, Shelf
from protocols.paging import is_away, slot_of
from protocols.value import Value

FIELDS = ("k", "v")
SEGMENTS = "held"


class CacheMemory:
    """The memory for the caches of one party's sessions. most: bytes in memory, None for any number; paged: bytes in pages.
    note: is told what sessions enter, for a schedule (`parties.pages.replacement.replay`)."""

    def __init__(
        self, store: PageStore, most: int | None, paged: int, note: Callable[[Entered], None] | None = None
    ) -> None:
        self._store = store
        self.most, self._paged = most, paged
        self.note = note
        self.counts = Counts()
        self._lock = threading.RLock()  # of what is below, and of every pager's numbers
        self._pagers: set[SessionPager] = set()
        self._sessions = Sessions()
        self.paged_bytes = 0

    def pager(self, session: str) -> SessionPager | None:
        """Return what keeps a session's rows; None where all stay in memory."""
        return None if self.most is None or not self._paged else SessionPager(self, self._store, session)

    @property
    def used_bytes(self) -> int:
        """Bytes of all sessions in memory."""
        with self._lock:
            return sum(pager.used_bytes for pager in self._pagers)

    def join(self, pager: SessionPager) -> None:
        """Count a session."""
        with self._lock:
            self._pagers.add(pager)

    def leave(self, pager: SessionPager) -> None:
        """Count it no more."""
        with self._lock:
            self._pagers.discard(pager)

    def book(self, size: int) -> None:
        """Count bytes of pages. Raises `EnvironmentProblem` where there are too many."""
        with self._lock:
            if size > 0 and self.paged_bytes + size > self._paged:
                raise EnvironmentProblem(
                    f"the store is full: sessions have {self.paged_bytes:,} bytes in pages and 'max_paged_bytes' in this "
                    f"party's 'limits' is {self._paged:,}: raise it, ask for less, or ask later"
                )
            self.paged_bytes += size

    def fits(self, size: int) -> bool:
        """Whether pages may take so many more bytes."""
        with self._lock:
            return self.paged_bytes + size <= self._paged

    def entered(self, line: Entered) -> None:
        """Note where a session is."""
        with self._lock:
            self._sessions.enter(line)
            if self.note is not None:
                self.note(line)

    def make_room(self, pager: SessionPager) -> None:
        """Let rows go until what all sessions have in memory is what is allowed, or nothing more may go."""
        assert self.most is not None
        stuck: set[tuple[SessionPager, int]] = set()
        while True:
            with self._lock:
                if self.used_bytes - sum(one.asked_bytes for one in self._pagers) <= self.most:
                    return
                found = [(one, n) for one in self._pagers for n in one.may_go(own=one is pager) if (one, n) not in stuck]
                if not found:
                    return
                one, layer = max(found, key=lambda unit: self._sessions.until((unit[0].session, unit[1])))
                if one is not pager and not one.waiting:
                    one.asked = layer
                    continue
            if not one.evict(layer, own=one is pager):
                stuck.add((one, layer))


class SessionPager:
    """The rows of one session's cache. Its methods are called by the session's thread, which holds `_guard` but while it
    waits for its client: then others may let its rows go. Raises what `SessionPages` does.

    asked: a layer that another session's thread asks for, None for none."""

    def __init__(self, memory: CacheMemory, store: PageStore, session: str) -> None:
        self.waiting = False
        self.asked: int | None = None
        self.session = session
        self._memory = memory
        self._pages = SessionPages(store, session, memory.book)
        self._guard = threading.Lock()
        self._guard.acquire()
        self._layers: Sequence[Any] = ()
        self._shelves: dict[tuple[int, str], Shelf] = {}
        self._sizes: dict[int, int] = {}  # bytes in memory, of layers all of whose rows are there
        self._rests: dict[int, int] = {}  # of the others
        self._whole: dict[int, int] = {}  # of all layers, as they were last in memory
        self._now = -1
        self._before = -1
        self._last = False
        self._failed: MpcacheError | None = None

    # ---- for the program ---------------------------------------------------------------------------------------------
    def begin(self, layers: Sequence[Any]) -> None:
        """As in `Pager`."""
        self._layers = layers
        self._memory.join(self)

    def enter(self, layer: int) -> None:
        """As in `Pager`."""
        before, self._now = self._now, layer
        first = not self._measure(layer) and layer not in self._rests
        self._before = before if first else -1  # a policy may still work on a prompt's last layer
        if before >= 0 and before not in self._rests:
            self._measured(before)
        if not first:
            self._memory.counts.needed += 1
        self._note(waits=False)
        self._give_up()
        self.fetch(layer)
        self._memory.make_room(self)
        ahead = next((n for n in self._ahead() if n in self._rests), None)
        for key, shelf in self._shelves.items() if ahead is not None else ():
            if key[0] == ahead:
                shelf.expect()

    def enter_last(self) -> None:
        """As in `Pager`."""
        self._last = True

    def fetch(self, layer: int) -> None:
        """Have a layer's rows in memory."""
        if layer not in self._rests:
            return
        del self._rests[layer]
        entry = self._layers[layer]
        for name in (*FIELDS, SEGMENTS):
            found = entry.__dict__[slot_of(name)]
            if is_away(found):
                entry.__dict__[slot_of(name)] = found.loaded()
        self._memory.counts.read += 1
        self._memory.counts.read_bytes += self._measured(layer)

    @contextmanager
    def waits(self) -> Iterator[None]:
        """Let others take this session's memory while it waits for its client. Raises what went wrong meanwhile."""
        if self._now >= 0 and self._now not in self._rests:
            self._measured(self._now)
        self._note(waits=True)
        with self._memory._lock:
            self.waiting = True
        self._give_up()
        self._guard.release()
        try:
            yield
        finally:
            self._guard.acquire()
            self.waiting = False
        if self._failed is not None:
            raise self._failed

    def close(self) -> None:
        """Remove all pages; at the end of the session."""
        self._memory.leave(self)
        self._memory.entered(Entered(self.session, self._now, ()))
        self._pages.close()
        self._layers, self._shelves = (), {}

    # ---- for the memory ----------------------------------------------------------------------------------------------
    @property
    def used_bytes(self) -> int:
        """Bytes in memory."""
        return sum(self._sizes.values()) + sum(self._rests.values())

    @property
    def asked_bytes(self) -> int:
        """Bytes that this session was asked for and has not given up yet."""
        return 0 if self.asked is None else self._sizes.get(self.asked, 0)

    def may_go(self, own: bool) -> list[int]:
        """Return the layers that may leave memory. own: this session's thread asks; of another one that computes a layer is
        asked for at a time."""
        if self.asked is not None and not own and not self.waiting:
            return []
        busy = () if self.waiting else (self._now, self._before)
        return [layer for layer, size in list(self._sizes.items()) if size and layer not in (*busy, self.asked)]

    def evict(self, layer: int, own: bool) -> bool:
        """Let a layer's rows go; whether that made room. own: this session's thread asks; that the store is full ends the
        session that needs room, not one that only has rows."""
        if own:
            return self._evicted(layer)
        if not self._memory.fits(self._sizes.get(layer, 0)) or not self._guard.acquire(blocking=False):
            return False
        try:
            return self.waiting and self._failed is None and self._evicted(layer)
        except MpcacheError as error:
            self._failed = error
            return False
        finally:
            self._guard.release()

    def _give_up(self) -> None:
        """Let the layer go that another session has asked for, unless it is needed by now, or the store is full."""
        with self._memory._lock:
            layer, self.asked = self.asked, None
            gives = layer is not None and layer in self.may_go(own=True) and self._memory.fits(self._sizes[layer])
        if gives:
            self._evicted(cast(int, layer))

    # ---- rows ----------------------------------------------------------------------------------------------------------
    def _evicted(self, layer: int) -> bool:
        entry = self._layers[layer]
        before, rest = self._measured(layer), 0
        for name in FIELDS:
            value = entry.__dict__[slot_of(name)]
            stand = None if value is None or is_away(value) else self._put(layer, name, value)
            if stand is not None:
                entry.__dict__[slot_of(name)] = stand
                rest += stand.shelf.kept_bytes
        segments = entry.__dict__[slot_of(SEGMENTS)]
        if segments and not is_away(segments):
            held = [self._put_segment(layer, number, segment) for number, segment in enumerate(segments)]
            entry.__dict__[slot_of(SEGMENTS)] = _Segments(self, layer, held)
            rest += sum(stand.shelf.kept_bytes for _, found in held for stand in found.values())
        rest += self._measure(layer)  # of values that are more than their rows
        del self._sizes[layer]
        self._rests[layer] = rest
        return rest < before

    def _put(self, layer: int, label: str, value: Value) -> _Away | None:
        rows = value.row_tensors()
        if rows is None:
            return None
        shelf = self._shelves.setdefault((layer, label), Shelf(self._pages, f"{layer:04d}-{label}"))
        shelf.put(rows)
        return _Away(self, layer, shelf)

    def _put_segment(self, layer: int, number: int, segment: Any) -> tuple[Any, dict[str, _Away]]:
        """Return a segment without its rows, and what stands for them."""
        mine = {f.name: getattr(segment, f.name) for f in dataclasses.fields(segment)}
        rows = {name: x for name, x in mine.items() if any(x is row for row in segment.rows)}
        stands = {name: self._put(layer, f"{SEGMENTS}{number}-{name}", x) for name, x in rows.items()}
        there = {name: stand for name, stand in stands.items() if stand is not None}
        return dataclasses.replace(segment, **dict.fromkeys(there)), there

    def _measured(self, layer: int) -> int:
        """Return the bytes of a layer that is in memory, from now on counted as such."""
        with self._memory._lock:
            size = self._sizes[layer] = self._whole[layer] = self._measure(layer)
        return size

    def _measure(self, layer: int) -> int:
        """Return the bytes of a layer's rows in memory."""
        entry, total, seen = self._layers[layer], 0, set[int]()
        found = [entry.__dict__[slot_of(name)] for name in FIELDS]
        segments = entry.__dict__[slot_of(SEGMENTS)]
        found += [row for segment in (() if is_away(segments) else segments) for row in segment.rows]
        for value in found:
            if value is None or is_away(value):
                continue
            rows = value.row_tensors()
            if rows is None:
                total += value.element_bytes * value.shape.numel()
                continue
            for t in rows.tensors:
                if t.data_ptr() not in seen:
                    seen.add(t.data_ptr())
                    total += t.untyped_storage().nbytes()
        return total

    def _ahead(self) -> Iterator[int]:
        for step in range(1, len(self._layers)):
            yield (self._now + step) % len(self._layers)

    def _note(self, waits: bool) -> None:
        sizes = tuple(self._whole.get(layer, 0) for layer in range(len(self._layers)))
        self._memory.entered(Entered(self.session, self._now, sizes, waits, self._last))


class _Stand:
    """Stands in a layer for what lies on shelves; the whole layer comes back."""

    def __init__(self, pager: SessionPager, layer: int) -> None:
        self._where = pager, layer
        self._value: Any = None

    def back(self) -> Any:
        """As in `Away`."""
        if self._value is None:
            pager, layer = self._where
            pager.fetch(layer)
        return self._value


class _Away(_Stand):
    """Stands for a value whose rows lie on a shelf."""

    def __init__(self, pager: SessionPager, layer: int, shelf: Shelf) -> None:
        super().__init__(pager, layer)
        self.shelf = shelf
        self.length = shelf.length

    def loaded(self) -> Any:
        """Return the value, read now."""
        self._value = self.shelf.get()
        return self._value


class _Segments(_Stand):
    """Stands for segments whose rows lie on shelves."""

    length = 0

    def __init__(self, pager: SessionPager, layer: int, held: list[tuple[Any, dict[str, _Away]]]) -> None:
        super().__init__(pager, layer)
        self._held = held

    def loaded(self) -> Any:
        """Return the segments, read now."""
        self._value = tuple(
            dataclasses.replace(segment, **{name: stand.loaded() for name, stand in rows.items()})
            for segment, rows in self._held
        )
        return self._value
