"""A step's timeline from the spans that its roles recorded: as a Chrome trace, and summed by operation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mpc.timeline import KINDS, Span


@dataclass(frozen=True)
class Timelines:
    """Spans of one step. dealer: dealing its tape; before: each party, what follows from the tape alone; online: each
    party, from the input on. dealt: bytes to the party that gets most, by "part: operation"."""

    dealer: list[Span] = field(default_factory=list)
    before: list[list[Span]] = field(default_factory=list)
    online: list[list[Span]] = field(default_factory=list)
    dealt: dict[str, int] = field(default_factory=dict)

    def rows(self, parties: Sequence[str]) -> dict[str, list[Span]]:
        """Return the spans of each role and phase, by the name that a person sees."""
        before = {f"{name}, from the tape alone": spans for name, spans in zip(parties, self.before, strict=True) if spans}
        return {"dealer": self.dealer, **before, **dict(zip(parties, self.online, strict=True))}


def name_of(stage: str, operation: str) -> str:
    """Return "attention: scores" of the stage "step 0/layer 3/attention" and its operation "scores"."""
    return f"{stage.rpartition('/')[2] or 'outside'}: {operation}"


def without_nesting(spans: Sequence[Span]) -> list[Span]:
    """Return the spans in pieces that do not overlap: what holds others is cut around them.

    >>> outer = Span("compute", "step 0", "softmax", 0.0, 3.0)
    >>> inner = Span("expand", "step 0", "softmax", 1.0, 1.0)
    >>> [(span.kind, span.start, span.seconds) for span in without_nesting([outer, inner])]
    [('compute', 0.0, 1.0), ('expand', 1.0, 1.0), ('compute', 2.0, 1.0)]
    """
    out: list[Span] = []
    open_spans: list[tuple[Span, float]] = []  # the span, and until when it is told

    def tell(span: Span, start: float, end: float) -> None:
        if end > start:
            out.append(replace(span, start=start, seconds=end - start))

    def close() -> None:
        span, told = open_spans.pop()
        end = span.start + span.seconds
        tell(span, told, end)
        if open_spans:
            outer, before = open_spans.pop()
            open_spans.append((outer, max(before, end)))

    for span in sorted(spans, key=lambda s: (s.start, -s.seconds)):
        while open_spans and open_spans[-1][0].start + open_spans[-1][0].seconds <= span.start:
            close()
        if open_spans:
            outer, told = open_spans.pop()
            tell(outer, told, span.start)
            open_spans.append((outer, max(told, span.start)))
        open_spans.append((span, span.start))
    while open_spans:
        close()
    return sorted(out, key=lambda s: s.start)


def chrome_trace(rows: Mapping[str, Sequence[Span]]) -> dict[str, Any]:
    """Return the trace event format that Perfetto (ui.perfetto.dev) and chrome://tracing open: a process a role and phase, a
    row a kind.

    Times are microseconds since the first span.
    """
    flat = {name: without_nesting(spans) for name, spans in rows.items()}
    origin = min((span.start for spans in flat.values() for span in spans), default=0.0)
    events: list[dict[str, Any]] = []
    for pid, (name, spans) in enumerate(flat.items()):
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
    """Return one role's spans summed by part of the model and operation, the longest first. A round is booked on its first
    opening's operation, as in the ledger."""
    out: dict[str, OperationTime] = {}
    for span in without_nesting(spans):
        out.setdefault(name_of(span.stage, span.operation), OperationTime()).seconds[span.kind] += span.seconds
    for span in spans:
        if span.kind == "send":
            entry = out.setdefault(name_of(span.stage, span.operation), OperationTime())
            entry.rounds += 1
            entry.sent += span.sent
    return dict(sorted(out.items(), key=lambda item: -item[1].total))


@dataclass(frozen=True)
class OperationCost:
    """What one operation of a step takes. Seconds: of the dealer, of a party from the tape alone (`before`) and from the
    input on (`online`, of which `waiting` for peers). sent, dealt: bytes of that party."""

    name: str
    dealer: float
    before: float
    online: float
    waiting: float
    rounds: int
    sent: int
    dealt: int

    @property
    def total(self) -> float:
        """Return the seconds one after the other."""
        return self.dealer + self.before + self.online


def operation_costs(timelines: Timelines) -> list[OperationCost]:
    """Return every operation's costs, the longest first; the party is the last one, which is dealt most."""
    found = [by_operation(spans) for spans in (timelines.dealer, timelines.before[-1], timelines.online[-1])]
    names = dict.fromkeys([*found[0], *found[1], *found[2], *timelines.dealt])
    out = []
    for name in names:
        dealer, before, online = (each.get(name, OperationTime()) for each in found)
        seconds = (dealer.total, before.total, online.total, online.seconds["wait"])
        out.append(OperationCost(name, *seconds, online.rounds, online.sent, timelines.dealt.get(name, 0)))
    return sorted(out, key=lambda cost: -cost.total)


def most_of(spans: Sequence[Span], count: int = 3) -> str:
    """Say which operations take most of one role's seconds.

    >>> most_of([Span("compute", "step 0/mlp", "gelu", 0.0, 3.0), Span("compute", "step 0/mlp", "linear", 3.0, 1.0)])
    '4.00 s: mlp: gelu 75 %, mlp: linear 25 %'
    """
    found = by_operation(spans)
    whole = sum(entry.total for entry in found.values())
    shares = ", ".join(f"{name} {100 * entry.total / whole:.0f} %" for name, entry in list(found.items())[:count])
    return f"{whole:.2f} s: {shares}"
