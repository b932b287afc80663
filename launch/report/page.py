"""A report as Markdown with pictures beside it, and as one HTML page that needs no other file."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path

from launch.measure.drawing import Plot
from launch.report.plots import all_plots
from launch.report.rows import Row
from launch.report.tables import (
    Table,
    exponent_table,
    network_table,
    peer_table,
    prompt_peer_table,
    prompt_tables,
    ratio_table,
    token_tables,
    where_table,
)
from mpc.errors import ConfigurationError

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; color: #222 }
h1 { font-size: 1.6em } h2 { font-size: 1.15em; margin-top: 2em } p { max-width: 75ch; color: #444 }
table { border-collapse: collapse; font-size: 13px } th, td { padding: .25em .7em; border-bottom: 1px solid #ddd }
th { text-align: left; border-bottom: 2px solid #888 } td { text-align: right; white-space: nowrap }
td:first-child, td:nth-child(2) { text-align: left } img { max-width: 100% }
figure { margin: 1.5em 0 } figcaption { font-size: 13px; color: #444 } .wide { overflow-x: auto }
"""


def all_tables(rows: Sequence[Row]) -> list[Table]:
    """Return every table that these rows allow."""
    found = [*token_tables(rows), *prompt_tables(rows), ratio_table(rows), exponent_table(rows), network_table(rows)]
    found += [peer_table(rows), prompt_peer_table(rows)]
    return [*(table for table in found if table is not None), where_table(rows)]


def markdown(title: str, tables: Sequence[Table], plots: Mapping[str, Plot]) -> str:
    """Return the page; pictures are referred to by file name."""
    parts = [f"# {title}"]
    parts += [f"## {table.title}\n\n{table.note}\n\n{table.markdown()}" for table in tables]
    parts += [f"![{plot.caption}]({name}.png)\n\n*{plot.caption}*" for name, plot in plots.items()]
    return "\n\n".join(parts) + "\n"


def html_page(title: str, tables: Sequence[Table], plots: Mapping[str, Plot]) -> str:
    """Return the page with its pictures inside it."""
    parts = [f"<h1>{html.escape(title)}</h1>"]
    for table in tables:
        header, *lines = table.shown()
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
        body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>" for line in lines)
        parts.append(
            f"<h2>{html.escape(table.title)}</h2><p>{html.escape(table.note)}</p>"
            f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        )
    for plot in plots.values():
        data, caption = base64.b64encode(plot.png).decode(), html.escape(plot.caption)
        image = f'<img alt="{caption}" src="data:image/png;base64,{data}">'
        parts.append(f"<figure>{image}<figcaption>{caption}</figcaption></figure>")
    inside = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style></head><body>\n{inside}\n</body></html>\n"
    )


def write_report(rows: Sequence[Row], out: Path, title: str, tables: Sequence[Table]) -> list[Path]:
    """Write report.md, report.html and the plots into `out`. An earlier report there is replaced, nothing else is."""
    if out.exists() and not out.is_dir():
        raise ConfigurationError(f"--out {out} is a file; give a folder for the report")
    out.mkdir(parents=True, exist_ok=True)
    plots = all_plots(rows)
    files = {"report.md": markdown(title, tables, plots).encode(), "report.html": html_page(title, tables, plots).encode()}
    files |= {f"{name}.png": plot.png for name, plot in plots.items()}
    written = []
    for name, data in files.items():
        temporary = out / f".{name}.new"
        temporary.write_bytes(data)
        temporary.replace(out / name)
        written.append(out / name)
    return written
