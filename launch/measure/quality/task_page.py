"""Results of the tasks as a page of Markdown tables, made from the record alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from launch.terminal.console import byte_count

TITLES = {
    "single": "needle",
    "keyed": "one of four needles",
    "queried": "three needles",
    "variables": "variables",
    "common": "common word",
    "turns": "later turns",
    "again": "asked again",
}


def heads(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the columns of a table of rows; perplexity only where it was measured."""
    tasks = [TITLES.get(task, task) for task in rows[0]["scores"]]
    texts = ["perplexity"] if any(row["perplexity"] is not None for row in rows) else []
    return ["policy", "budget", *tasks, *texts, "rounds", "sent", "dealt"]


def cells(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return a row's texts under `heads`."""
    found = [] if row["budget"] is None else [f"{row['budget']:g}"]
    head = [row["asked"], *(found or [""])]
    scores = [f"{score:.3g}" for score in row["scores"].values()]
    texts = [] if all(r["perplexity"] is None for r in rows) else [number(row["perplexity"])]
    costs = ["" if row[name] is None else byte_count(row[name]) for name in ("sent", "dealt")]
    return [*head, *scores, *texts, "" if row["rounds"] is None else str(row["rounds"]), *costs]


def number(value: float | None) -> str:
    """Return a number with three decimals, empty for None."""
    return "" if value is None else f"{value:.3f}"


def page(record: dict[str, Any]) -> str:
    """Return the page of a results.json."""
    settings = record["settings"]
    lines = [
        "# Cache policies on a real model",
        "",
        "Made by `mpcache quality --tasks` from results.json beside it; docs/quality.md defines tasks and measures.",
        "",
        f"Model `{record['model']}`, prompts in the form `{settings['form']}`, seed {settings['seed']}. Under a task: right "
        "answers, of all prompts; an answer of several words counts by the share of them that it has. Costs: one token "
        f"behind the prompt, suite {settings['suite']}, {settings['parties']} parties, predicted: rounds, bytes a party "
        "sends, bytes that the dealer deals to a party.",
    ]
    rows = record["rows"]
    for length in dict.fromkeys(row["length"] for row in rows):
        mine = [row for row in rows if row["length"] == length]
        lines += ["", f"{length} tokens, {mine[0]['prompts']} prompts of each task:", "", *_table(mine)]
    lines += [text for problem in problems(rows) for text in ("", problem)]
    return "\n".join(lines) + "\n"


def problems(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return what could not be measured, each once: answers or costs."""
    found = [f"Not measured: {row['problem']}" for row in rows if row["problem"]]
    found += [f"No cost: {row['no_cost']}" for row in rows if row["no_cost"] and not row["problem"]]
    return list(dict.fromkeys(found))


def _table(rows: Sequence[dict[str, Any]]) -> list[str]:
    names = heads(rows)
    body = [[f"`{first}`", *rest] for first, *rest in (cells(row, rows) for row in rows)]
    marks = ["---", *["---:"] * (len(names) - 1)]
    return ["| " + " | ".join(line) + " |" for line in (names, marks, *body)]
