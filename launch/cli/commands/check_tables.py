"""The tables of `mpcache check`: errors by point, largest values by kind against their bounds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from launch.terminal.console import out

if TYPE_CHECKING:
    from launch.measure.fidelity import ProbeError
    from models.calibration.choice import Excess
    from models.calibration.extremes import Extremes
    from protocols.registry import SuiteSpec


def show_points(rows: list[ProbeError], tolerance: float) -> None:
    """Show the errors at every point; those above the tolerance stand out."""
    table = Table(box=None, header_style="bold")
    table.add_column("step")
    table.add_column("after")
    for column in ("shape", "largest value", "error / row", "max error", "mean error"):
        table.add_column(column, justify="right")
    for r in rows:
        style = "" if r.relative <= tolerance else "bold red"
        shape = "x".join(str(size) for size in r.shape)
        errors = (f"{r.max_error:.2e}", f"{r.mean_error:.2e}")
        table.add_row(r.step, r.point, shape, f"{r.largest:.3g}", Text(f"{r.relative:.1e}", style=style), *errors)
    out.print(table)


def show_ranges(spec: SuiteSpec, extremes: Extremes, over: list[Excess]) -> None:
    """Show the worst place of each kind against its bound."""
    from protocols.bounds import largest

    table = Table(box=None, header_style="bold")
    for column in ("kind", "largest value", "where", "bound there"):
        table.add_column(column, justify="left" if column in ("kind", "where") else "right")
    bounds = spec.settings.bounds
    beyond = {excess.kind: excess.place for excess in over}
    for kind, values in extremes.kinds.items():
        place = beyond.get(kind, extremes.worst(kind)[1])
        bound = f"{largest(kind, bounds[kind].at(place)):g}" if kind in bounds else "fixed"
        where = "head" if place == len(values) - 1 else f"layer {place}"
        table.add_row(kind, f"{values[place]:.4g}", where, bound, style="bold red" if kind in beyond else "")
    out.print(table)
