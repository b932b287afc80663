"""`mpcache gates`: every gate over its whole range, its error beside the documented bound, its rounds and bytes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.cli.options import DEFAULT_SUITE, JsonOption, PartiesOption, SuiteOption
from launch.local.checks import check_suite
from launch.terminal.console import err, out, print_json
from launch.terminal.outputs import check_writable_file

if TYPE_CHECKING:
    from launch.measure.gates.check import Row
    from launch.measure.gates.products import Products


def run(
    suite: SuiteOption = DEFAULT_SUITE,
    parties: PartiesOption = 2,
    points: Annotated[int, typer.Option("--points", min=2, help="Numbers that each gate is given, at least.")] = 4000,
    only: Annotated[str, typer.Option("--only", metavar="TEXT", help="Only gates with this in their name or group.")] = "",
    products: Annotated[
        int, typer.Option("--products", min=0, help="Instead: so many random products of each kind, to two units.")
    ] = 0,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", help="Write the tables of the suites masked and crypten to this file.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure every non-linear gate over its whole declared range against float64.

    All parties and the dealer run in this process on values that are not secret. Exit code 1 when an error is above its
    documented bound (or a product is off by more than two units in the last place).
    """
    check_suite(suite)
    if markdown is not None:
        check_writable_file(markdown, "--markdown")
    if products:
        ok = _products(suite, parties, products, as_json)
    else:
        ok = _table(suite, parties, points, only, markdown, as_json)
    if not ok:
        raise typer.Exit(1)


def _products(suite: str, parties: int, count: int, as_json: bool) -> bool:
    from launch.measure.gates.products import KINDS, LIMIT_UNITS, multiply

    found: list[Products] = []
    for kind in KINDS:
        with err.status(f"{count:,} products, {kind}"):
            found.append(multiply(suite, parties, count, kind))
    if as_json:
        print_json({"ok": all(p.ok for p in found), "products": [asdict(p) for p in found]})
    else:
        for p in found:
            text = f"suite {p.suite}, {p.parties} parties, {p.kind}: {p.count:,} products, largest error {p.worst:.4f} units"
            text += f" in the last place, {p.above} above {LIMIT_UNITS:g}"
            out.print(text, style="" if p.ok else "bold red", soft_wrap=True)
    return all(p.ok for p in found)


def _table(suite: str, parties: int, points: int, only: str, markdown: Path | None, as_json: bool) -> bool:
    from launch.measure.gates import table

    suites = [suite] if markdown is None else ["masked", "crypten"]
    found: list[Row] = []
    for name in suites:
        with err.status(f"suite {name}") as status:
            for row in table.rows(name, parties, points, only):
                found.append(row)
                status.update(f"suite {name}: {row.name}")
    if markdown is not None:
        markdown.write_text(table.markdown(found), encoding="utf-8")
    if as_json:
        print_json({"ok": all(r.ok for r in found), "gates": [{**asdict(r), "ok": r.ok} for r in found]})
    else:
        _show(found)
    return all(r.ok for r in found)


def _show(rows: list[Row]) -> None:
    from rich.table import Table

    from launch.measure.gates.table import number

    shown = Table(box=None, header_style="bold", padding=(0, 1))
    shown.add_column("gate", no_wrap=True)
    for column in ("largest\nerror", "bound", "rounds", "online\nbytes", "offline\nbytes"):
        shown.add_column(column, justify="right", no_wrap=True)
    group = ""
    for row in rows:
        if group != row.group:
            group = row.group
            shown.add_row(group, style="bold")
        mark = "*" if row.meaning == "relative" else ""
        bytes_ = (f"{row.bytes_sent:.3g}", f"{row.offline_bytes:,.0f}")
        errors = (number(row.error, 2) + mark, number(row.bound, 2) + mark)
        shown.add_row(f"  {row.name}", *errors, str(row.rounds), *bytes_, style="" if row.ok else "bold red")
    out.print(shown)
    out.print("Bytes are per number of the input: sent by a party to the others, and from the dealer. *: relative.")
    for row in rows:
        if not row.ok:
            out.print(f"{row.name}: {number(row.error)} is above the bound {number(row.bound)}", style="bold red")
