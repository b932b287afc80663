"""Runs the cells of a matrix one after the other, keeps each result, and goes on where an earlier run stopped."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launch.measure.bench.cell import Cell
from launch.measure.bench.environment import environment
from launch.measure.bench.measure import bench_plan, measure_estimate, measure_prompt_estimate, measure_step
from launch.measure.bench.results import ResultFolder
from launch.terminal.console import error_line
from mpc.errors import MpcacheError


@dataclass
class Outcome:
    """What became of a matrix. failed: cell and one line of error."""

    measured: list[Path] = field(default_factory=list)
    skipped: list[Path] = field(default_factory=list)
    failed: list[tuple[Cell, str]] = field(default_factory=list)


def measure(cell: Cell, place: dict[str, Any]) -> dict[str, Any]:
    """Measure one cell in real processes. place: `environment()` of this run."""
    rate = place["memory_bytes_per_second"]
    if cell.measure == "session":
        from launch.measure.bench.sessions import measure_session

        return measure_session(cell, rate)
    if cell.measure in ("peer", "peer-prompt"):
        from launch.measure.baselines.run import measure_baseline

        return measure_baseline(cell)
    if cell.measure == "estimate":
        return measure_estimate(cell)
    if cell.measure == "estimate-prompt":
        return measure_prompt_estimate(cell)
    return measure_step(cell, rate)


def check(cell: Cell) -> None:
    """Refuse what cannot work before anything runs. Raises typed errors."""
    if cell.measure in ("token", "prompt", "estimate", "estimate-prompt"):
        bench_plan(cell)
    elif cell.measure in ("peer", "peer-prompt"):
        from launch.measure.baselines.run import check_baseline

        check_baseline(cell)
    else:
        from launch.measure.bench.sessions import check_session

        check_session(cell)


def run_matrix(
    cells: Sequence[Cell],
    results: ResultFolder,
    say: Callable[[str], None],
    measure: Callable[[Cell, dict[str, Any]], dict[str, Any]] = measure,
) -> Outcome:
    """Measure what `results` does not hold yet. A cell that fails is reported and does not stop the others.

    say: told one line per cell. Raises a typed error, before anything runs, for cells that cannot work.
    """
    outcome = Outcome()
    todo = [cell for cell in cells if not results.has(cell)]
    outcome.skipped = [results.path(cell) for cell in cells if results.has(cell)]
    for cell in todo:
        check(cell)
    if outcome.skipped:
        say(f"{len(outcome.skipped)} of {len(cells)} cells are in {results.folder} already")
    for number, cell in enumerate(todo, 1):
        say(f"{number} of {len(todo)}  {cell.title()}")
        start = time.perf_counter()
        place = environment()
        try:
            measured = measure(cell, place)
        except MpcacheError as error:
            outcome.failed.append((cell, error_line(error)))
            say(f"  failed: {error_line(error)}")
            continue
        place["seconds_in_all"] = time.perf_counter() - start
        outcome.measured.append(results.keep(cell, place, measured))
    return outcome
