"""Timelines: spans of a real step account for its time, rounds and bytes, and form a valid Chrome trace."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from launch.measure.bench import run as bench_run
from launch.measure.bench.run import BenchResult, run_bench
from launch.measure.bench.trace import by_operation, chrome_trace, most_of, operation_costs, without_nesting
from mpc import timeline
from mpc.ledger import operation, stage
from mpc.packing import pack, unpack
from mpc.random import Prg, new_seed
from mpc.timeline import Span, recording
from protocols.schedule import Scheduler
from tests.launch.conftest import Command


def test_nested_spans_are_cut_out() -> None:
    spans = [
        Span("expand", "a", "entry", 1.5, 0.25),
        Span("serialise", "a", "packing", 1.75, 0.5),
        Span("send", "a", "exchange", 2.5, 0.5, 10),
        Span("wait", "a", "exchange", 3.0, 2.0),
        Span("serialise", "a", "message", 1.5, 1.0),
        Span("compute", "a", "own", 1.0, 7.0),
    ]
    flat = [(s.kind, s.operation, s.start, s.seconds) for s in without_nesting(spans)]
    assert flat == [
        ("compute", "own", 1.0, 0.5),
        ("expand", "entry", 1.5, 0.25),
        ("serialise", "packing", 1.75, 0.5),
        ("serialise", "message", 2.25, 0.25),
        ("send", "exchange", 2.5, 0.5),
        ("wait", "exchange", 3.0, 2.0),
        ("compute", "own", 5.0, 3.0),
    ]
    found = by_operation(spans)["a: exchange"]
    assert (found.total, found.rounds, found.sent) == (2.5, 1, 10)


def test_calls_are_spans_while_a_recording_is_on() -> None:
    seed = new_seed()
    quiet = Prg(seed).ring((100,), 20)
    with recording() as line, stage("step"), operation("draw"):
        x = Prg(seed).ring((100,), 20)
        unpack(pack(x, 20), 20, (100,))
    assert torch.equal(x, quiet)
    assert [(s.kind, s.stage, s.operation) for s in line.spans] == [
        ("expand", "step", "draw"),
        ("serialise", "step", "draw"),
        ("serialise", "step", "draw"),
    ]


def test_nothing_is_recorded_when_nobody_asks() -> None:
    assert timeline.active is None
    with recording() as line:
        assert timeline.active is line
        line.add("compute", ("stage", "op"), time.perf_counter())
    assert timeline.active is None
    assert [(s.kind, s.stage, s.operation) for s in line.spans] == [("compute", "stage", "op")]


def test_computing_is_booked_on_the_operation_that_it_is_for() -> None:
    """A coroutine that passes through operations is several spans; outside of coroutines nothing is computing."""

    async def program() -> None:
        with stage("layer"):
            with operation("first"):
                time.sleep(0.02)
            with operation("second"):
                time.sleep(0.04)
            time.sleep(0.01)

    with recording() as line:
        with operation("outside"):
            time.sleep(0.01)
        Scheduler(lambda requests: []).run(program())
    found = {name: entry.total for name, entry in by_operation(line.spans).items()}
    assert set(found) == {"layer: first", "layer: second", "layer: other", "outside: other"}
    assert found["layer: second"] > found["layer: first"] > found["layer: other"] > 0.01 > found["outside: other"]


def traced(
    arguments: list[object], out: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> tuple[BenchResult, str, list[dict[str, Any]]]:
    """What `mpcache trace` measured and said, and the events of its file."""
    results: list[BenchResult] = []
    monkeypatch.setattr(bench_run, "run_bench", lambda plan: results.append(run_bench(plan)) or results[-1])
    done = command("trace", "--shape", "tiny", *arguments, "--out", out)
    assert done.code == 0, done.err
    (result,) = results
    trace = json.loads(out.read_text())
    assert trace == json.loads(json.dumps(chrome_trace(result.timelines.rows(result.plan.names))))
    rows = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert all(event["dur"] >= 0 and event["ts"] >= 0 for event in rows)
    return result, done.out, rows


@pytest.mark.covering(1)
@pytest.mark.parametrize(("suite", "parties"), [("masked", 2), ("masked", 3), ("crypten", 2)])
@pytest.mark.parametrize("step", [("--cached", 9), ("--prefill", "--prompt", 9)], ids=["token", "prompt"])
def test_a_step(
    suite: str,
    parties: int,
    step: tuple[object, ...],
    tmp_path: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Spans account for the seconds, rounds and bytes of every role; the summary names what takes them."""
    arguments = ["--layers", 2, "--suite", suite, "--parties", parties, *step]
    result, said, rows = traced(arguments, tmp_path / "trace.json", command, monkeypatch)
    assert (result.plan.prefill, result.plan.cached) == ((9, 0) if "--prefill" in step else (0, 9))
    lines = result.timelines
    for party, spans in enumerate(lines.online):
        sums, cost = by_operation(spans), result.ledgers[party].total("step 0/")
        assert sum(s.rounds for s in sums.values()) == cost.rounds
        assert sum(s.sent for s in sums.values()) == cost.bytes_sent
        covered = sum(s.total for s in sums.values())
        assert 0.5 * result.seconds[0] < covered <= max(result.seconds) * 1.01
    dealt = sum(s.total for s in by_operation(lines.dealer).values())
    assert 0.5 * result.dealer_seconds[0] < dealt <= result.dealer_seconds[0] * 1.01
    assert [bool(spans) for spans in lines.before] == [suite == "masked"] * parties
    costs = operation_costs(lines)
    assert sum(cost.dealt for cost in costs) == result.ledgers[-1].total("step 0/").offline_bytes
    assert sum(cost.rounds for cost in costs) == result.ledgers[-1].total("step 0/").rounds
    assert sum(cost.dealer for cost in costs) == pytest.approx(dealt)
    assert costs == sorted(costs, key=lambda cost: -cost.total)
    assert {event["pid"] for event in rows} == set(range(1 + parties * (2 if suite == "masked" else 1)))
    assert {event["cat"] for event in rows} >= {"compute", "expand", "serialise", "send", "wait"}
    assert f"the whole {'prompt' if '--prefill' in step else 'token'}" in said
    assert f"dealer: {most_of(lines.dealer)}" in said
    assert costs[0].name in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--prefill", "--cached", 9), "with --prefill give --prompt N"),
        (("--prompt", 9), "--prompt 9 needs --prefill"),
        (("--prefill", "--prompt", 0), "--prompt"),
        (("--prefill", "--prompt", 9, "--policy", "h2o:budget=7"), "budget"),
    ],
)
def test_what_cannot_be_traced(arguments: tuple[object, ...], message: str, tmp_path: Path, command: Command) -> None:
    done = command("trace", "--shape", "tiny", "--out", tmp_path / "trace.json", *arguments)
    assert done.code == 2
    assert message in done.err
    assert not (tmp_path / "trace.json").exists()


def test_no_file_is_replaced(tmp_path: Path, command: Command) -> None:
    (tmp_path / "trace.json").write_text("mine")
    assert "nothing is replaced" in command("trace", "--shape", "tiny", "--out", tmp_path / "trace.json").err
    assert "does not exist" in command("trace", "--shape", "tiny", "--out", tmp_path / "no" / "trace.json").err
