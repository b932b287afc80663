"""`mpcache trace`: a timeline of one token or of a prompt, and what took longest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.cli.options import (
    DEFAULT_SUITE,
    SHAPE_HELP,
    PartiesOption,
    PolicyOption,
    SuiteOption,
    SuiteOptionsOption,
    shape_name,
)
from launch.terminal.console import byte_count, err, out
from launch.terminal.outputs import check_writable_file

if TYPE_CHECKING:
    from launch.measure.bench.trace import OperationCost, Timelines

CACHED = 1024
PROMPT = 128


def run(
    trace: Annotated[Path, typer.Option("--out", help="File for the timeline (JSON); it must not exist.")],
    shape: Annotated[str, typer.Option("--model", "--shape", help=SHAPE_HELP, callback=shape_name)] = "gpt2",
    layers: Annotated[int | None, typer.Option("--layers", min=1, help="Only the first layers of the shape.")] = None,
    cached: Annotated[
        int | None, typer.Option("--cached", min=1, help=f"Tokens before the one that is traced.  [default: {CACHED}]")
    ] = None,
    prefill: Annotated[
        bool, typer.Option("--prefill", help="Trace a prompt up to its first token, instead of a decoded token.")
    ] = False,
    prompt: Annotated[
        int | None, typer.Option("--prompt", min=1, help=f"Tokens of the prompt, with --prefill.  [default: {PROMPT}]")
    ] = None,
    suite: SuiteOption = DEFAULT_SUITE,
    policy: PolicyOption = "full",
    parties: PartiesOption = 2,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads of each process.")] = 1,
    suite_option: SuiteOptionsOption = None,
    top: Annotated[int, typer.Option("--top", min=1, help="Operations to list.")] = 20,
) -> None:
    """Run one token, or one prompt, in real processes and record what each of them does when.

    The dealer deals; then each party prepares what follows from the tape alone; then, from the input on, parties compute,
    serialise, send and wait. The list of operations is of the last party, which is dealt most, and of the dealer.

    The file is in Chrome's trace format: open it at ui.perfetto.dev or chrome://tracing. It holds stages, operations, times
    and bytes, nothing secret. All processes run on this machine, so their clocks are one. A prompt's dealt randomness is
    held at once, by dealer and parties: 128 tokens of GPT-2 base need a few GB.
    """
    from launch.cli.options import suite_options
    from launch.local.checks import check_suite
    from launch.measure.bench.cell import Cell
    from launch.measure.bench.measure import bench_plan
    from launch.measure.bench.plan import party_name
    from launch.measure.bench.run import run_bench
    from launch.measure.bench.trace import chrome_trace

    _check(trace, cached, prefill, prompt)
    cell = Cell(
        measure="prompt" if prefill else "token",
        model=shape,
        layers=layers,
        prompt=(prompt or PROMPT) if prefill else (cached or CACHED),
        suite=check_suite(suite),
        policy=policy,
        parties=parties,
        threads=threads,
        options=suite_options(suite_option),
        repeat=1,
    )
    plan = bench_plan(cell).model_copy(update={"trace": True})
    with err.status(f"{cell.title()}"):
        timelines = run_bench(plan).timelines
    names = [party_name(n) for n in range(parties)]
    with trace.open("x", encoding="utf-8") as file:
        json.dump(chrome_trace(timelines.rows(names)), file)
    _show_roles(timelines, names)
    _show_operations(timelines, f"the whole {cell.measure}", top)
    out.print(f"{trace}: open it at https://ui.perfetto.dev", soft_wrap=True)


def _check(trace: Path, cached: int | None, prefill: bool, prompt: int | None) -> None:
    """Raise `ConfigurationError` for a file that cannot be made and for options that do not go together."""
    from mpc.errors import ConfigurationError

    if trace.exists():
        raise ConfigurationError(f"--out {trace} exists already; give another name, nothing is replaced")
    check_writable_file(trace)
    if prefill and cached is not None:
        raise ConfigurationError(f"--cached {cached} is about a decoded token: with --prefill give --prompt N instead")
    if prompt is not None and not prefill:
        raise ConfigurationError(f"--prompt {prompt} needs --prefill; the tokens before a decoded one are --cached N")


def _show_roles(timelines: Timelines, names: list[str]) -> None:
    """Show what each role spends its seconds on, and which operations take most of them."""
    from rich.table import Table

    from launch.measure.bench.trace import by_operation, most_of
    from mpc.timeline import KINDS

    table = Table(box=None, header_style="bold", padding=(0, 1), title="seconds", title_justify="left")
    table.add_column("", no_wrap=True)
    for column in ("all", *KINDS):
        table.add_column(column, justify="right")
    rows = timelines.rows(names)
    for name, spans in rows.items():
        found = by_operation(spans).values()
        kinds = [sum(entry.seconds[kind] for entry in found) for kind in KINDS]
        table.add_row(name, *(f"{value:.3f}" for value in (sum(kinds), *kinds)))
    out.print(table)
    for name in ("dealer", *(name for name in rows if name.startswith(names[-1]))):
        out.print(f"{name}: {most_of(rows[name])}", soft_wrap=True, highlight=False)


def _show_operations(timelines: Timelines, whole: str, top: int) -> None:
    """Show the operations that took longest, at the dealer and the last party together."""
    from rich.table import Table

    from launch.measure.bench.trace import operation_costs

    table = Table(box=None, header_style="bold", padding=(0, 1), title="milliseconds", title_justify="left")
    table.add_column("part: operation", no_wrap=True)
    for column in ("all", "dealer", "before", "online", "waiting", "rounds", "sent", "dealt"):
        table.add_column(column, justify="right", no_wrap=True)

    def add(title: str, costs: list[OperationCost], style: str = "") -> None:
        seconds = [sum(getattr(c, what) for c in costs) for what in ("total", "dealer", "before", "online", "waiting")]
        rounds, sent, dealt = (sum(getattr(c, what) for c in costs) for what in ("rounds", "sent", "dealt"))
        table.add_row(
            title, *(f"{1e3 * s:.1f}" for s in seconds), str(rounds), byte_count(sent), byte_count(dealt), style=style
        )

    found = operation_costs(timelines)
    for cost in found[:top]:
        add(cost.name, [cost])
    if found[top:]:
        add(f"{len(found) - top} more", found[top:])
    add(whole, found, "bold")
    out.print(table)
