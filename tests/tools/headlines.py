"""`python -m tests.tools.headlines --write`: what each cache system is known for, held against the results in docs/quality.

A relation is one of the paper's, in the form that a small model can show; figures are means over seeds of rows in
`memory/results.json` and `turns/results.json`, recall of what is generated unless another measure is named. Why one is not
reached is written beside it, with the figures that show it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from launch.measure.quality.memory_page import mean
from launch.measure.quality.page import page

QUALITY = Path(__file__).parents[2] / "docs" / "quality"
WHERE = QUALITY / "policies" / "results.md"
Figures = dict[str, float]


@cache
def _rows(folder: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((QUALITY / folder / "results.json").read_text(encoding="utf-8"))["rows"]
    return rows


def of(policy: str, share: float | None = None, measure: str = "recall", folder: str = "memory") -> float:
    """Return a measure's mean over seeds of a policy's row at a share of memory, or at what its own text says (None)."""
    (row,) = (r for r in _rows(folder) if (r["asked"], r["memory"]) == (policy, share))
    return mean(row["seeds"], measure)


def turns(policy: str, share: float | None, measure: str) -> float:
    """Return the same of conversations."""
    return of(policy, share, measure, "turns")


@dataclass(frozen=True)
class Headline:
    """A system's relation. figures: by name, what was measured; holds: whether the relation does; why: what shows why it
    does not, empty where it does."""

    system: str
    relation: str
    figures: Callable[[], Figures]
    holds: Callable[[Figures], bool]
    why: str = ""


PROFILE = "layers:weights=0.026 1.713 0.957 1.304"
HEADS = "compresskv:window=40,heads=1.0 2.1 3.0"
HEADLINES: tuple[Headline, ...] = ()
"""In the order of the list of policies."""


def table() -> str:
    """Return the table of all relations. Raises `ValueError` for one that holds with a reason why not, or the other way."""
    lines = ["| system | relation | measured | |", "| --- | --- | --- | --- |"]
    for one in HEADLINES:
        figures = one.figures()
        if one.holds(figures) == bool(one.why):
            found = "holds" if one.why else "does not hold"
            raise ValueError(f"{one.system}: the relation {found}, its reason says otherwise")
        told = ", ".join(f"{name} {value:.3f}" for name, value in figures.items())
        outcome = f"not reached: {one.why}" if one.why else "reached"
        lines.append(f"| {one.system} | {one.relation} | {told} | {outcome} |")
    return "\n".join(lines) + "\n"


def text() -> str:
    """Return the page: the policies by budget, then the relations."""
    record = json.loads((QUALITY / "policies" / "results.json").read_text(encoding="utf-8"))
    return f"""{page(record)}
## What each system is known for

Made by `python -m tests.tools.headlines` from the rows of [equal memory](../memory/results.md) and of
[conversations](../turns/results.md): recall of generated answers at so much of the full cache's memory, mean over two seeds.

{table()}"""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="replace the page")
    if parser.parse_args().write:
        WHERE.write_text(text(), encoding="utf-8")
    else:
        print(text(), end="")
