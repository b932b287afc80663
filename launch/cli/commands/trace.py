"""`mpcache trace`: a timeline of one token, and what took longest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.cli.options import DEFAULT_SUITE, PartiesOption, PolicyOption, SuiteOption, SuiteOptionsOption
from launch.terminal.console import byte_count, err, out

if TYPE_CHECKING:
    from launch.measure.bench.trace import OperationTime
    from mpc.timeline import Span


def run(
    trace: Annotated[Path, typer.Option("--out", help="File for the timeline (JSON); it must not exist.")],
    shape: Annotated[str, typer.Option("--shape", help="A known shape or a config.json, as for `mpcache bench`.")] = "gpt2",
    layers: Annotated[int | None, typer.Option("--layers", min=1, help="Only the first layers of the shape.")] = None,
    cached: Annotated[int, typer.Option("--cached", min=1, help="Tokens before the one that is traced.")] = 1024,
    suite: SuiteOption = DEFAULT_SUITE,
    policy: PolicyOption = "full",
    parties: PartiesOption = 2,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads of each process.")] = 1,
    suite_option: SuiteOptionsOption = None,
    top: Annotated[int, typer.Option("--top", min=1, help="Operations to list.")] = 20,
) -> None:
    """Decode one token in real processes and record when each party computes, serialises, sends and waits.

    The file is in Chrome's trace format: open it at ui.perfetto.dev or chrome://tracing. It holds stages, operations, times
    and bytes, nothing secret. All processes run on this machine, so their clocks are one.
    """
    from launch.cli.options import suite_options
    from launch.local.checks import check_suite
    from launch.measure.bench.cell import Cell
    from launch.measure.bench.measure import bench_plan
    from launch.measure.bench.plan import party_name
    from launch.measure.bench.run import run_bench
    from launch.measure.bench.trace import chrome_trace
    from mpc.errors import ConfigurationError

    if trace.exists():
        raise ConfigurationError(f"--out {trace} exists already; give another name, nothing is replaced")
    if not trace.parent.is_dir():
        raise ConfigurationError(f"--out {trace}: the folder {trace.parent} does not exist")
    cell = Cell(
        model=shape,
        layers=layers,
        prompt=cached,
        suite=check_suite(suite),
        policy=policy,
        parties=parties,
        threads=threads,
        options=suite_options(suite_option),
        repeat=1,
    )
    plan = bench_plan(cell).model_copy(update={"trace": True})
    with err.status(f"{cell.title()}"):
        result = run_bench(plan)
    names = [party_name(n) for n in range(parties)]
    with trace.open("x", encoding="utf-8") as file:
        json.dump(chrome_trace(result.spans, names), file)
    _show(result.spans[0], names[0], top)
    out.print(f"{trace}: open it at https://ui.perfetto.dev", soft_wrap=True)


def _show(spans: list[Span], name: str, top: int) -> None:
    from rich.table import Table

    from launch.measure.bench.trace import by_operation
    from mpc.timeline import KINDS

    found = by_operation(spans)
    table = Table(box=None, header_style="bold", padding=(0, 1), title=f"milliseconds of {name}", title_justify="left")
    table.add_column("part: operation", no_wrap=True)
    for column in ("all", *KINDS, "rounds", "sent"):
        table.add_column(column, justify="right")

    def add(title: str, entries: list[OperationTime], style: str = "") -> None:
        sums = {kind: sum(e.seconds[kind] for e in entries) for kind in KINDS}
        numbers = [f"{1e3 * value:.1f}" for value in (sum(sums.values()), *sums.values())]
        rounds, sent = sum(e.rounds for e in entries), sum(e.sent for e in entries)
        table.add_row(title, *numbers, str(rounds), byte_count(sent), style=style)

    for title, entry in list(found.items())[:top]:
        add(title, [entry])
    rest = list(found.values())[top:]
    if rest:
        add(f"{len(rest)} more", rest)
    add("the whole token", list(found.values()), "bold")
    out.print(table)
