"""A token's timeline from the spans that parties recorded: as a Chrome trace, and summed by operation."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mpc.timeline import KINDS, Span


def without_nesting(spans: Sequence[Span]) -> list[Span]:
    """Return the spans that do not overlap: what a "compute" span holds of other spans is cut out of it.

    A piece before another span belongs to that one's operation (a program that exchanges in the middle of computing was
    computing for the exchange), the rest to the span's own.

    >>> outer = Span("compute", "step 0", "softmax", 0.0, 3.0)
    >>> inner = Span("wait", "step 0", "open", 1.0, 1.0)
    >>> [(span.kind, span.operation, span.start, span.seconds) for span in without_nesting([outer, inner])]
    [('compute', 'open', 0.0, 1.0), ('wait', 'open', 1.0, 1.0), ('compute', 'softmax', 2.0, 1.0)]
    """
    others = sorted((s for s in spans if s.kind != "compute"), key=lambda s: s.start)
    starts = [s.start for s in others]
    out = list(others)
    for span in spans:
        if span.kind != "compute":
            continue
        at, end = span.start, span.start + span.seconds
        for other in others[bisect.bisect_left(starts, at) : bisect.bisect_left(starts, end)]:
            if other.start > at:
                out.append(Span("compute", other.stage, other.operation, at, other.start - at))
            at = max(at, other.start + other.seconds)
        if end > at:
            out.append(Span("compute", span.stage, span.operation, at, end - at))
    return sorted(out, key=lambda s: s.start)


def chrome_trace(parties: Sequence[Sequence[Span]], names: Sequence[str]) -> dict[str, Any]:
    """Return the trace event format that Perfetto (ui.perfetto.dev) and chrome://tracing open: a process a party, a row a
    kind.

    Times are microseconds since the first span.
    """
    flat = [without_nesting(spans) for spans in parties]
    origin = min((span.start for spans in flat for span in spans), default=0.0)
    events: list[dict[str, Any]] = []
    for pid, (name, spans) in enumerate(zip(names, flat, strict=True)):
        events.append({"ph": "M", "pid": pid, "tid": 0, "name": "process_name", "args": {"name": name}})
        for tid, kind in enumerate(KINDS):
            events.append({"ph": "M", "pid": pid, "tid": tid, "name": "thread_name", "args": {"name": kind}})
        for span in spans:
            event: dict[str, Any] = {
                "ph": "X",
                "pid": pid,
                "tid": KINDS.index(span.kind),
                "name": span.operation,
                "cat": span.kind,
                "ts": round((span.start - origin) * 1e6, 3),
                "dur": round(span.seconds * 1e6, 3),
                "args": {"stage": span.stage},
            }
            if span.kind == "send":
                event["args"]["bytes"] = span.sent
            events.append(event)
    return {"traceEvents": events, "displayTimeUnit": "ms"}


@dataclass
class OperationTime:
    """Seconds of one operation by kind, its rounds and bytes."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(KINDS, 0.0))
    rounds: int = 0
    sent: int = 0

    @property
    def total(self) -> float:
        """Return the seconds of all kinds."""
        return sum(self.seconds.values())


def by_operation(spans: Sequence[Span]) -> dict[str, OperationTime]:
    """Return one party's spans summed by part of the model and operation, the longest first. A round is booked on its first
    opening's operation, as in the ledger."""
    out: dict[str, OperationTime] = {}
    for span in without_nesting(spans):
        part = span.stage.rpartition("/")[2]
        entry = out.setdefault(f"{part}: {span.operation}", OperationTime())
        entry.seconds[span.kind] += span.seconds
        if span.kind == "send":
            entry.rounds += 1
            entry.sent += span.sent
    return dict(sorted(out.items(), key=lambda item: -item[1].total))
