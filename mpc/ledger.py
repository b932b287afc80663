"""What each operation cost: bytes, rounds, messages and seconds, online and offline apart.

The channel writes into the ledger, nobody else counts: every byte that leaves or arrives is recorded under the stage and
the operation that were current where it was asked for. `stage` and `op` nest and follow a coroutine (they are context
variables), so openings of concurrent protocols that share a message are still attributed to their own operation.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from typing import Any

from mpc import timeline

_stage: ContextVar[str] = ContextVar("stage", default="")
NO_OPERATION = "other"
_op: ContextVar[str] = ContextVar("op", default=NO_OPERATION)


@dataclass
class Cost:
    """Sums for one (stage, op). Bytes are payload bytes of this party; a round is one simultaneous exchange."""

    bytes_sent: int = 0
    bytes_received: int = 0
    rounds: int = 0
    messages: int = 0
    seconds_waiting: float = 0.0
    offline_bytes: int = 0

    def add(self, other: Cost) -> None:
        """Add another cost in place."""
        self.bytes_sent += other.bytes_sent
        self.bytes_received += other.bytes_received
        self.rounds += other.rounds
        self.messages += other.messages
        self.seconds_waiting += other.seconds_waiting
        self.offline_bytes += other.offline_bytes


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Everything inside is recorded under `name`, nested stages joined with '/'."""
    outer = _stage.get()
    _boundary()
    token = _stage.set(f"{outer}/{name}" if outer else name)
    try:
        yield
    finally:
        _boundary()
        _stage.reset(token)


@contextmanager
def operation(name: str) -> Iterator[None]:
    """Everything inside is recorded under operation `name`; the innermost name wins."""
    _boundary()
    token = _op.set(name)
    try:
        yield
    finally:
        _boundary()
        _op.reset(token)


def current_stage() -> str:
    """Return the current stage."""
    return _stage.get()


def current() -> tuple[str, str]:
    """Return the current (stage, operation)."""
    return _stage.get(), _op.get()


def _boundary() -> None:
    """Book what was computed so far on the current operation, which is about to change."""
    if timeline.active is not None:
        timeline.active.computed(current())


@dataclass
class Ledger:
    """All costs of one party in one session.

    >>> ledger = Ledger()
    >>> with stage("decode"), operation("softmax"):
    ...     ledger.at().add(Cost(bytes_sent=12, rounds=1))
    >>> ledger.by_operation("decode")["softmax"].bytes_sent, ledger.total().rounds
    (12, 1)
    """

    costs: dict[tuple[str, str], Cost] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def at(self, key: tuple[str, str] | None = None) -> Cost:
        """Return the sums of one (stage, operation), by default the current one."""
        key = key or (_stage.get(), _op.get())
        found = self.costs.get(key)
        return found if found is not None else self.costs.setdefault(key, Cost())

    def offline(self, count: int) -> None:
        """Record bytes received from (or, at the dealer, sent for) the tape."""
        self.at().offline_bytes += count

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """A stage whose wall-clock seconds are recorded too."""
        with stage(name):
            key = current()[0]
            start = time.perf_counter()
            try:
                yield
            finally:
                self.seconds[key] = self.seconds.get(key, 0.0) + time.perf_counter() - start

    def total(self, prefix: str = "") -> Cost:
        """Return the sum over all stages that start with `prefix`."""
        out = Cost()
        for (where, _), cost in list(self.costs.items()):  # at once: another thread may book meanwhile
            if where.startswith(prefix):
                out.add(cost)
        return out

    def by_operation(self, prefix: str = "") -> dict[str, Cost]:
        """Return the sums per operation over the stages that start with `prefix`."""
        out: dict[str, Cost] = {}
        for (where, op), cost in self.costs.items():
            if where.startswith(prefix):
                out.setdefault(op, Cost()).add(cost)
        return out

    def by_stage(self, depth: int | None = None) -> dict[str, Cost]:
        """Return the sums per stage, names cut to `depth` components."""
        out: dict[str, Cost] = {}
        for (where, _), cost in self.costs.items():
            name = where if depth is None else "/".join(where.split("/")[:depth])
            out.setdefault(name, Cost()).add(cost)
        return out

    def to_json(self) -> dict[str, Any]:
        """Return plain dictionaries: totals, per stage, per operation, seconds."""
        return {
            "total": asdict(self.total()),
            "stages": {name: asdict(cost) for name, cost in self.by_stage().items()},
            "operations": {name: asdict(cost) for name, cost in self.by_operation().items()},
            "seconds": dict(self.seconds),
        }
