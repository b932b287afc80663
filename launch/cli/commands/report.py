"""`mpcache report`: tables and plots from results of `mpcache bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launch.terminal.console import out
from launch.terminal.outputs import check_writable_file, make_writable_folder

OutOption = Annotated[Path | None, typer.Option("--out", help="Folder for report.md, report.html and the plots.")]


def run(
    results: Annotated[Path | None, typer.Option(help="Folder with results of `mpcache bench --config`.")] = None,
    folder: OutOption = None,
    gpu: Annotated[Path | None, typer.Option(help="A file of `python -m tests.tools.gpu_check` (docs/gpu.md).")] = None,
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
    from launch.report.gpu import check_tables, read_check
    from launch.report.page import all_tables, write_report
    from launch.report.paper import paper_tables
    from launch.report.rows import rows_of
    from launch.report.tables import where_table
    from mpc.errors import ConfigurationError

    if results is None and gpu is None:
        raise ConfigurationError("give --results FOLDER, --gpu FILE, or both")
    if folder is None and page is None:
        raise ConfigurationError("give --out FOLDER for a report, or --fill FILE for the tables of a Markdown file")
    if folder is not None:
        make_writable_folder(folder)
    if page is not None:
        check_writable_file(page, "--fill")
    rows = None if results is None else rows_of(read_results(results))
    check = None if gpu is None else read_check(gpu)
    if page is not None:
        try:
            before = page.read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigurationError(f"--fill {page} cannot be read: {error.strerror}") from None
        try:
            after = filled(before, rows, check)
        except ConfigurationError as error:
            raise ConfigurationError(f"--fill {page}: {error}") from None
        if after != before:
            temporary = page.with_suffix(".new")
            temporary.write_text(after, encoding="utf-8")
            temporary.replace(page)
        out.print(f"{page} {'is changed' if after != before else 'was up to date'}", soft_wrap=True)
    if folder is not None:
        tables = [] if rows is None else [*paper_tables(rows), where_table(rows)] if paper else all_tables(rows)
        tables += [] if check is None else check_tables(check)
        for path in write_report(rows or [], folder, title, tables):
            out.print(str(path), soft_wrap=True)
