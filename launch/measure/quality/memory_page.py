"""Policies at equal memory as a page of Markdown tables, best first, made from the record alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from launch.measure.quality.page import number
from launch.terminal.console import byte_count

MEASURES = {
    "recall": "recall",
    "fed": "answer fed",
    "perplexity": "perplexity",
    "later": "later turns",
    "again": "asked again",
}
"""By measure: title. Rows are ranked by the first one that they have."""


def heads(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the columns of tables of rows, of which some were measured."""
    first, *rest = _measured(rows)
    return ["policy", "budget", "bytes", "of full", MEASURES[first], "by seed", *(MEASURES[name] for name in rest)]


def _measured(rows: Sequence[dict[str, Any]]) -> list[str]:
    seed = next(row["seeds"][0] for row in rows if row["seeds"])
    return [name for name in MEASURES if name in seed]


def mean(seeds: Sequence[dict[str, float]], measure: str) -> float:
    """Return a measure's mean over seeds, of which there are some."""
    return sum(seed[measure] for seed in seeds) / len(seeds)


def tables(rows: Sequence[dict[str, Any]]) -> list[tuple[str, list[list[str]]]]:
    """Return (title, lines) of each length and share of memory, and of what takes no share; best recall first."""
    found = []
    for length in dict.fromkeys(row["length"] for row in rows):
        for share in sorted({row["memory"] for row in rows if row["memory"] is not None}):
            mine = [row for row in rows if (row["length"], row["memory"]) == (length, share) and row["seeds"]]
            found.append((f"{length} tokens, {100 * share:g} % of the full cache's memory", _lines(mine)))
        rest = [row for row in rows if row["length"] == length and row["memory"] is None and row["seeds"]]
        found.append((f"{length} tokens, memory as it is", _lines(rest)))
    return [(title, lines) for title, lines in found if lines]


def _lines(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    if not rows:
        return []
    first, *rest = _measured(rows)
    ranked = sorted(rows, key=lambda row: -mean(row["seeds"], first))
    return [
        [
            row["asked"],
            number(row["budget"], ".3f"),
            byte_count(row["bytes"]),
            number(row["share"], ".3f"),
            number(mean(row["seeds"], first), ".3f"),
            ", ".join(number(seed[first], ".3f") for seed in row["seeds"]),
            *(number(mean(row["seeds"], name), ".3f") for name in rest),
        ]
        for row in ranked
    ]


def problems(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return what could not be measured, each once."""
    return list(dict.fromkeys(f"Not measured: {row['problem']}" for row in rows if row["problem"]))


def page(record: dict[str, Any]) -> str:
    """Return the page of a results.json."""
    settings = record["settings"]
    seeds = ", ".join(map(str, settings["seeds"]))
    lines = [
        "# Cache policies at equal memory",
        "",
        "Made by `mpcache quality --memory` from results.json beside it; docs/quality.md defines the measures.",
        "",
        f"Model `{record['model']}`, task: {record['recall_task']}, {settings['questions']} prompts of each length and seed "
        f"({seeds}). Bytes: of the cache at a party behind the prompt and one token, suite {settings['suite']}, "
        f"{settings['parties']} parties, predicted, as the policy's codec holds it. Best recall first.",
    ]
    for title, body in tables(record["rows"]):
        names = heads(record["rows"])
        cells = [[f"`{first}`".replace("|", "\\|"), *rest] for first, *rest in body]
        marks = ["---", *["---:"] * (len(names) - 1)]
        lines += ["", f"{title}:", "", *("| " + " | ".join(line) + " |" for line in (names, marks, *cells))]
    lines += [text for problem in problems(record["rows"]) for text in ("", problem)]
    return "\n".join(lines) + "\n"
