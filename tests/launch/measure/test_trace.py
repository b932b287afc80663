"""Timelines: spans of a real step account for its time, rounds and bytes, and form a valid Chrome trace."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from launch.measure.bench import run as bench_run
from launch.measure.bench.run import BenchResult, run_bench
from launch.measure.bench.trace import by_operation, chrome_trace, without_nesting
from mpc import timeline
from mpc.timeline import Span, recording
from tests.launch.conftest import Command


def test_nested_spans_are_cut_out() -> None:
    spans = [
        Span("send", "a", "exchange", 2.0, 1.0, 10),
        Span("wait", "a", "exchange", 3.0, 2.0),
        Span("compute", "a", "own", 1.0, 7.0),
    ]
    flat = [(s.kind, s.operation, s.start, s.seconds) for s in without_nesting(spans)]
    assert flat == [
        ("compute", "exchange", 1.0, 1.0),
        ("send", "exchange", 2.0, 1.0),
        ("wait", "exchange", 3.0, 2.0),
        ("compute", "own", 5.0, 3.0),
    ]
    found = by_operation(spans)["a: exchange"]
    assert (found.total, found.rounds, found.sent) == (4.0, 1, 10)


def test_nothing_is_recorded_when_nobody_asks() -> None:
    assert timeline.active is None
    with recording() as line:
        assert timeline.active is line
        line.add("compute", ("stage", "op"), time.perf_counter())
    assert timeline.active is None
    assert [(s.kind, s.stage, s.operation) for s in line.spans] == [("compute", "stage", "op")]


@pytest.mark.parametrize("suite", ["masked", "crypten"])
def test_a_token(suite: str, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    results: list[BenchResult] = []
    monkeypatch.setattr(bench_run, "run_bench", lambda plan: results.append(run_bench(plan)) or results[-1])
    out = tmp_path / "trace.json"
    done = command("trace", "--shape", "tiny", "--layers", 1, "--cached", 9, "--suite", suite, "--out", out)
    assert done.code == 0, done.err
    (result,) = results
    for party, spans in enumerate(result.spans):
        sums = by_operation(spans)
        cost = result.ledgers[party].total("step 0/")
        assert sum(s.rounds for s in sums.values()) == cost.rounds
        assert sum(s.sent for s in sums.values()) == cost.bytes_sent
        covered = sum(s.total for s in sums.values())
        assert 0.5 * result.seconds[0] < covered <= max(result.seconds) * 1.01
    trace = json.loads(out.read_text())
    assert trace == json.loads(json.dumps(chrome_trace(result.spans, ["party0", "party1"])))
    rows = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert {event["pid"] for event in rows} == {0, 1}
    assert all(event["dur"] >= 0 and event["ts"] >= 0 for event in rows)
    assert {event["cat"] for event in rows} >= {"compute", "send", "wait"}
    assert "the whole token" in done.out
    assert command("trace", "--shape", "tiny", "--out", out).code == 2
