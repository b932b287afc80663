"""`mpcache calibrate`: a checkpoint's largest values on a text, and the public bounds that hold them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from launch.cli.options import JsonOption, ModelOption
from launch.terminal.console import err, out, print_json
from mpc.errors import ConfigurationError

if TYPE_CHECKING:
    from models.calibration.record import Calibration


def run(
    model: ModelOption,
    text: Annotated[
        Path | None,
        typer.Option("--text", help="A UTF-8 text like those that the model will read; by default a built-in one."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write no file.")] = False,
    details: Annotated[
        bool, typer.Option("--details", help="Also parts of the kinds, and what no prompt can exceed (a wide terminal).")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Run a checkpoint in plaintext, layer by layer, and choose the suites' bounds by the largest values that it has.

    Writes `mpcache.json` beside the checkpoint, which other commands use (and make where it is missing); see docs/ranges.md.
    For the model owner: values are seen here. Exit code 1 when a value does not fit the largest bound that a suite has.
    """
    from models.calibration.record import make

    with err.status("calibrating") as status:
        found = make(model, text, not dry_run, lambda done, total: status.update(f"layer {done} of {total}"))
    if not dry_run and found.file is None:
        raise ConfigurationError(
            f"{model}: mpcache.json cannot be written there; check the folder's permissions, or --dry-run"
        )
    over = {suite: found.excesses(suite) for suite in found.suites}
    if as_json:
        print_json(
            {
                "ok": not any(over.values()),
                "file": None if found.file is None else str(found.file),
                "tokens": found.extremes.tokens,
                "suites": found.suites,
                "excesses": {suite: [e.text for e in excesses] for suite, excesses in over.items()},
                "extremes": found.extremes.kinds,
                "details": found.extremes.details,
            }
        )
    else:
        out.print(extremes_table(found, details))
        for suite, options in found.suites.items():
            shown = ", ".join(f"{kind}={value}" for kind, value in options.items())
            out.print(f"[bold]{suite}[/bold]: {shown or 'its usual bounds hold everything'}", soft_wrap=True)
            for excess in over[suite]:
                out.print(f"  out of range: {excess.text}", style="bold red", soft_wrap=True)
        where = "not written" if found.file is None else f"written to {found.file}"
        out.print(f"{found.extremes.tokens} tokens; {where}", soft_wrap=True)
    if any(over.values()):
        raise typer.Exit(1)


def extremes_table(found: Calibration, details: bool = False) -> Table:
    """Return the largest values by layer, as they are in plaintext: of each kind, and with `details` what is recorded beside
    them."""
    extremes = found.extremes
    table = Table(box=None, header_style="bold")
    table.add_column("layer", justify="right")
    columns: list[tuple[str, dict[str, Any]]] = [(kind, extremes.kinds) for kind in extremes.kinds]
    if details:
        columns += [(name, extremes.details) for name in extremes.details if name != "smallest norm"]
    columns = [(name, source) for name, source in columns if any(source[name])]
    for name, _ in columns:
        table.add_column(name, justify="right", no_wrap=not details)
    layers = len(extremes.kinds["residual"]) - 1
    for place in range(layers + 1):
        cells = [f"{source[name][place]:.4g}" if source[name][place] else "" for name, source in columns]
        table.add_row("head" if place == layers else str(place), *(Text(cell) for cell in cells))
    return table
