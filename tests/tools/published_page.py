"""The table of docs/bench.md beside published logs, with this project's costs as the estimate gives them (`make published`):

    python -m tests.tools.published_page [--check]

--check: print what differs and exit with 1, and write nothing.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from launch.measure.bench.cell import Cell
from launch.measure.bench.measure import measure_prompt_estimate
from launch.report.tables import Table
from launch.terminal.console import byte_count
from models.shapes import find_shape

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "bench.md"
PUBLISHED = ROOT / "docs" / "bench" / "published.yaml"
START = "<!-- table published: made by `make published` -->\n"
END = "\n<!-- end of table published -->"
LAYERS = ("attention", "feed-forward")
PARTIES = 2  # theirs too; here one sends as much as the other


def published() -> dict[str, Any]:
    """The figures and where they stand."""
    found: dict[str, Any] = yaml.safe_load(PUBLISHED.read_text(encoding="utf-8"))
    return found


def _own(title: str, scope: str, parts: Sequence[dict[str, float]]) -> tuple[str, ...]:
    """A line of this project's; bytes of a part are those of one party."""
    rounds, sent, dealt = (round(sum(part[name] for part in parts)) for name in ("rounds", "bytes_sent", "offline_bytes"))
    return title, scope, byte_count(dealt), byte_count(PARTIES * sent), str(rounds)


def costs(figures: dict[str, Any]) -> Table:
    """Dealt and sent bytes and rounds side by side."""
    cell = Cell(measure="estimate-prompt", model=figures["model"], prompt=figures["prompt"], parties=PARTIES)
    parts = measure_prompt_estimate(cell)["parts"]
    layers = f"{find_shape(cell.model).layers} layers"
    title = f"mpcache, suite `{cell.suite}`"
    lines: list[tuple[str, ...]] = [
        (
            system["name"],
            layers,
            byte_count(system["dealt_bytes"]["value"]),
            byte_count(system["sent_bytes"]["value"]),
            str(system["rounds"]["value"]),
        )
        for system in figures["systems"]
    ]
    lines.append(_own(title, layers, [parts[name] for name in LAYERS]))
    lines.append(_own(title, f"embedding, {layers}, vocabulary, arg-max", list(parts.values())))
    return Table("", "", ("system", "what", "dealt to a party", "sent by both parties", "rounds"), tuple(lines))


def _seconds(runs: Sequence[dict[str, Any]]) -> str:
    each = [run["value"] / 1e6 for run in runs]
    return f"{statistics.median(each):.2f} ({', '.join(f'{s:.2f}' for s in each)})"


def seconds(figures: dict[str, Any]) -> Table:
    """Their seconds, on their machine, alone."""
    where = figures["hardware"]["text"]
    lines = [
        (system["name"], where, _seconds(system["dealing_microseconds"]), _seconds(system["online_microseconds"]))
        for system in figures["systems"]
    ]
    return Table("", "", ("system", "machine", "dealing, seconds (runs)", "online, seconds (runs)"), tuple(lines))


def source(figures: dict[str, Any]) -> str:
    """Where the figures are from."""
    commit = figures["commit"]
    at = f"[{commit[:12]}]({figures['repository']}/tree/{commit})"
    return f"{figures['about']} Revision {at}; file and line of every figure: [published.yaml](bench/published.yaml)."


def block() -> str:
    """What stands between the marks."""
    figures = published()
    return "\n" + "\n\n".join([costs(figures).markdown(), seconds(figures).markdown(), source(figures)]) + "\n"


def block_in(page: str) -> str:
    """What stands there now."""
    return page.split(START, 1)[1].split(END, 1)[0]


def main() -> int:
    """Make the tables and put them where they belong."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true")
    page, new = PAGE.read_text(encoding="utf-8"), block()
    old = block_in(page)
    if new == old:
        return 0
    if parser.parse_args().check:
        print("\n".join(line for line in new.splitlines() if line not in old.splitlines()))
        return 1
    PAGE.write_text(page.replace(START + old + END, START + new + END), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
