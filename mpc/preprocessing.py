"""Preprocessing: a party expands its tape, and computes what follows from the tape alone, before the values are there.

The program is public, so a party can run it twice: a *preprocessing* pass, on shape tensors in place of all that depends on
inputs, takes the tape's entries in program order (`PreprocessingTape`) and puts them, with every term that depends on them
and on public masked weights alone (`Tape.precompute`), into `PrecomputedValues`; the *online* pass asks for the same things
in the same order and gets what lies there (`PrecomputedTape`). Each end checks the other: an entry that is not the one asked
for is a `TapeError`, before anything is opened with it.

Security: the entries are the very ones that the online pass would have taken, each is taken from the tape once, handed out
once and forgotten. Both passes are of the same party; nothing leaves it.

Costs: none on the wire. Offline bytes are booked where an entry is used. Memory: `limit` bytes of waiting values (one entry
may exceed it).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from torch import Tensor

from mpc.errors import TapeError
from mpc.ledger import Ledger, current
from mpc.tape import PartyTape, Shape, Tape
from mpc.turns import waiting

Key = tuple[object, ...]
POLL_SECONDS = 1.0


class Stopped(Exception):
    """Raised in a preprocessing pass whose session is over; no error."""


def _words(key: Key) -> str:
    op, what, shape, *ring = key
    return f"'{op}' ({what}, shape {list(shape) if isinstance(shape, tuple) else shape}, {ring})"


class PrecomputedValues:
    """What was precomputed and not used yet, in order. One thread (or pass) puts, one takes.

    limit: bytes that may wait before `put` does; None: no limit, for passes that alternate in one thread, where `take` of
    what is not there is an error at once. check: called about once a second while waiting; raises when the wait is vain.
    """

    def __init__(self, limit: int | None = None, check: Callable[[], None] = lambda: None) -> None:
        self.limit = limit
        self._check = check
        self._entries: deque[tuple[Key, Any, int, int]] = deque()  # with the value's bytes
        self._bytes_in = 0  # written by the one who puts
        self._bytes_out = 0  # written by the one who takes
        self._changed = threading.Condition()
        self._sleepers = 0  # both ends can be among them for a moment
        self._stopped = False
        self._error: BaseException | None = None
        self._complete = False

    @property
    def waiting_bytes(self) -> int:
        """Bytes of precomputed values that wait."""
        return self._bytes_in - self._bytes_out

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, key: Key, value: Any, offline: int) -> None:
        """Append an entry; waits while there is too much. Raises `Stopped` after `stop`."""
        if self._stopped:
            raise Stopped
        if self.limit is not None and self.waiting_bytes > self.limit:
            self._sleep(lambda: self.waiting_bytes <= (self.limit or 0) // 2 or self._stopped)
            if self._stopped:
                raise Stopped
        size = _size(value)
        self._bytes_in += size
        self._entries.append((key, value, offline, size))
        self._wake()

    def take(self, key: Key) -> tuple[Any, int]:
        """Return the next entry, which must be `key`, and its offline bytes. Raises `TapeError`, or the preprocessing pass's
        error."""
        try:
            found, value, offline, size = self._entries.popleft()
        except IndexError:
            found, value, offline, size = self._awaited(key)
        self._bytes_out += size
        if self._sleepers:
            self._wake()
        if found != key:
            raise TapeError(
                f"preprocessing prepared {_words(found)}, this party's program needs {_words(key)} "
                f"({current()[0] or 'session'}); both are the same program, so this is a fault of it: set preprocessing: off"
            )
        return value, offline

    def _awaited(self, key: Key) -> tuple[Key, Any, int, int]:
        if self.limit is not None:
            self._sleep(lambda: bool(self._entries) or self._error is not None or self._complete)
        if self._entries:
            return self._entries.popleft()
        if self._error is not None:
            raise self._error
        raise TapeError(f"preprocessing prepared nothing more where this party's program needs {_words(key)}")

    def _sleep(self, ready: Callable[[], bool]) -> None:
        with waiting(), self._changed:
            self._sleepers += 1
            try:
                while not ready():
                    self._changed.wait(POLL_SECONDS)
                    if not ready():
                        self._check()
            finally:
                self._sleepers -= 1

    def _wake(self) -> None:
        if self._sleepers:
            with self._changed:
                self._changed.notify_all()

    def finish(self, error: BaseException | None = None) -> None:
        """Say that the preprocessing pass has ended, with `error` or with its program."""
        with self._changed:
            self._error, self._complete = error, True
            self._changed.notify_all()

    def stop(self) -> None:
        """Nobody will take any more: forget all that waits, and end the preprocessing pass at its next `put`."""
        with self._changed:
            self._stopped = True
            self._entries.clear()
            self._bytes_out = self._bytes_in
            self._changed.notify_all()


def _size(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.nbytes
    return sum(_size(v) for v in value)


class _Meter(Ledger):
    """Catches what a tape would book while an entry is precomputed."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def offline(self, count: int) -> None:
        """Remember a count for the entry."""
        self.bytes += count

    def read(self) -> int:
        """Return what came since the last reading."""
        count, self.bytes = self.bytes, 0
        return count


class PreprocessingTape(Tape):
    """A party's tape during the preprocessing pass: what it hands out, the online pass will get as well. `tape` belongs to
    it from now on; its ledger counts nothing."""

    preprocessing = True

    def __init__(self, tape: PartyTape, store: PrecomputedValues) -> None:
        super().__init__(Ledger(), tape.device)
        self._tape = tape
        self._store = store
        self._meter = _Meter()
        tape.ledger = self._meter

    @property
    def dealing(self) -> bool:
        return False

    def _put(self, key: Key, value: Any) -> Any:
        self._store.put(key, value, self._meter.read())
        self.position += 1
        return value

    def random(self, op: str, shape: Shape, bits: int = 64, kind: str = "sum") -> Tensor:
        out: Tensor = self._put(_key(op, "random", shape, bits, kind), self._tape.random(op, shape, bits, kind))
        return out

    def random_shares(self, op: str, shape: Shape, bits: int = 64, kind: str = "sum", host: bool = False) -> list[Tensor]:
        (found,) = self._tape.random_shares(op, shape, bits, kind, host)
        return [self._put(_key(op, "random", shape, bits, kind), found)]

    def dependent(
        self, op: str, shape: Shape, value: Callable[[], Tensor] | None = None, bits: int = 64, kind: str = "sum"
    ) -> Tensor:
        found = self._tape.dependent(op, shape, None, bits, kind)
        out: Tensor = self._put(_key(op, "dependent", shape, bits, kind), found)
        return out

    def table(self, op: str, shape: Shape, value: Callable[[], Tensor] | None = None, bits: int = 64) -> Tensor:
        out: Tensor = self._put(_key(op, "table", shape, bits), self._tape.table(op, shape, None, bits))
        return out

    def common(
        self, op: str, shape: Shape, value: Callable[[], Tensor] | None = None, bits: int = 64, host: bool = False
    ) -> Tensor:
        out: Tensor = self._put(_key(op, "common", shape, bits), self._tape.common(op, shape, None, bits, host))
        return out

    def precompute(self, op: str, shape: Shape, compute: Callable[[], Tensor]) -> Tensor:
        value = compute()
        if value.is_meta:
            raise TapeError(
                f"preprocessing: '{op}' depends on a mask that a preprocessing pass does not keep; set preprocessing: off"
            )
        out: Tensor = self._put(_key(op, "precomputed", shape), value)
        return out


class PrecomputedTape(Tape):
    """A party's tape during the online pass: what the preprocessing pass has left in `store`."""

    def __init__(self, store: PrecomputedValues, ledger: Ledger, device: Any = "cpu") -> None:
        super().__init__(ledger, device)
        self._store = store

    @property
    def dealing(self) -> bool:
        return False

    def _take(self, key: Key) -> Tensor:
        value, offline = self._store.take(key)
        self.position += 1
        if offline:
            self.ledger.offline(offline)
        found: Tensor = value
        return found

    def random(self, op: str, shape: Shape, bits: int = 64, kind: str = "sum") -> Tensor:
        return self._take(_key(op, "random", shape, bits, kind))

    def random_shares(self, op: str, shape: Shape, bits: int = 64, kind: str = "sum", host: bool = False) -> list[Tensor]:
        return [self.random(op, shape, bits, kind)]

    def dependent(
        self, op: str, shape: Shape, value: Callable[[], Tensor] | None = None, bits: int = 64, kind: str = "sum"
    ) -> Tensor:
        return self._take(_key(op, "dependent", shape, bits, kind))

    def table(self, op: str, shape: Shape, value: Callable[[], Tensor] | None = None, bits: int = 64) -> Tensor:
        return self._take(_key(op, "table", shape, bits))

    def common(
        self, op: str, shape: Shape, value: Callable[[], Tensor] | None = None, bits: int = 64, host: bool = False
    ) -> Tensor:
        return self._take(_key(op, "common", shape, bits))

    def precompute(self, op: str, shape: Shape, compute: Callable[[], Tensor]) -> Tensor:
        return self._take(_key(op, "precomputed", shape))


def _key(op: str, what: str, shape: Shape, *ring: object) -> Key:
    return (op, what, tuple(shape), *ring)
