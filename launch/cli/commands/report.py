"""`mpcache report`: tables and plots from results of `mpcache bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launch.terminal.console import out
from launch.terminal.outputs import check_writable_file, make_writable_folder

OutOption = Annotated[Path | None, typer.Option("--out", help="Folder for report.md, report.html and the plots.")]


def run(
    results: Annotated[Path, typer.Option("--results", help="Folder with results of `mpcache bench --config`.")],
    folder: OutOption = None,
    paper: Annotated[
        bool, typer.Option("--paper", help="The paper's tables: latency and communication, full / policy.")
    ] = False,
    title: Annotated[str, typer.Option("--title", help="The page's title.")] = "Private inference: what it costs",
    page: Annotated[
        Path | None, typer.Option("--fill", help="Make the blocks `<!-- results: NAME -->` of this Markdown file again.")
    ] = None,
) -> None:
    """Make a Markdown and an HTML page with plots, or fill the tables of a Markdown file, from results."""
    from launch.measure.bench.results import read_results
    from launch.report.blocks import filled
    from launch.report.page import write_report
    from launch.report.paper import paper_tables
    from launch.report.rows import rows_of
    from launch.report.tables import where_table
    from mpc.errors import ConfigurationError

    if folder is None and page is None:
        raise ConfigurationError("give --out FOLDER for a report, or --fill FILE for the tables of a Markdown file")
    if folder is not None:
        make_writable_folder(folder)
    if page is not None:
        check_writable_file(page, "--fill")
    rows = rows_of(read_results(results))
    if page is not None:
        try:
            before = page.read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigurationError(f"--fill {page} cannot be read: {error.strerror}") from None
        after = filled(before, rows)
        if after != before:
            temporary = page.with_suffix(".new")
            temporary.write_text(after, encoding="utf-8")
            temporary.replace(page)
        out.print(f"{page} {'is changed' if after != before else 'was up to date'}", soft_wrap=True)
    if folder is not None:
        tables = [*paper_tables(rows), where_table(rows)] if paper else None
        for path in write_report(rows, folder, title, tables):
            out.print(str(path), soft_wrap=True)
