"""Results as a page of Markdown tables: what results.json holds, made from it alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

COLUMNS: dict[str, tuple[str, str]] = {
    "recall": ("recall", ".3f"),
    "token_agreement": ("equal\ntokens", ".3f"),
    "answer_agreement": ("equal\nanswers", ".3f"),
    "attention_mass": ("attention\nkept", ".4f"),
    "attended_tokens": ("tokens\nused", ".1f"),
    "kept_tokens": ("tokens\ncached", ".1f"),
    "perplexity": ("perplexity", ".3f"),
}
"""By measure: title, with a line break where a terminal's table has one, and number format."""


def columns(rows: Sequence[dict[str, Any]]) -> dict[str, tuple[str, str]]:
    """Return those of `COLUMNS` that some row has a value for."""
    return {name: column for name, column in COLUMNS.items() if any(row[name] is not None for row in rows)}


def number(value: float | None, form: str) -> str:
    """Return a number as text, empty for None."""
    return "" if value is None else format(value, form)


def decisions_text(check: dict[str, Any]) -> str:
    """Return what a spot check says of kept sets, of which there were some."""
    text = f"Kept sets: {check['equal_decisions']} of {check['decisions']} equal to plaintext"
    if check["equal_decisions"] < check["decisions"]:
        text += f"; in the others what was exchanged lies within {100 * check['gap']:.2g} % of the ranked values' spread"
    if check["decisions_after"]:
        text += f"; {check['decisions_after']} later ones, of caches that such an exchange had changed, not compared"
    return text + "."


def page(record: dict[str, Any]) -> str:
    """Return the page of a results.json."""
    settings = record["settings"]
    lines = [
        "# Quality of cache policies",
        "",
        "Made by `mpcache quality` from results.json beside it; docs/quality.md defines the measures.",
        "",
        f"Model `{record['model']}`, task: {record['recall_task'] or 'none'}, seed {settings['seed']}, device "
        f"{settings['device']}.",
    ]
    rows = record["rows"]
    for length in dict.fromkeys(row["length"] for row in rows):
        lines += ["", *_of_length(rows, length)]
    if record["needle"]:
        lines += ["", *_needle(record["needle"])]
    if record["longbench"]:
        lines += ["", *_longbench(record["longbench"])]
    check = record["spot_check"]
    if check is not None:
        lines += [
            "",
            f"On shares (suite {check['suite']}, {check['parties']} parties): {check['equal']} answers equal to plaintext, "
            f"{check['different']} different." + (f" {decisions_text(check)}" if check["decisions"] else ""),
        ]
    problems = dict.fromkeys(row["problem"] for row in [*rows, *record["longbench"]] if row["problem"])
    lines += [text for problem in problems for text in ("", f"Not measured: {problem}")]
    return "\n".join(lines) + "\n"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    marks = ["---", *["---:"] * (len(heads) - 1)]
    return ["| " + " | ".join(row) + " |" for row in (heads, marks, *rows)]


def _of_length(rows: Sequence[dict[str, Any]], length: int) -> list[str]:
    mine = [row for row in rows if row["length"] == length]
    shown = columns(mine)
    heads = ["policy", "budget", *(title.replace("\n", " ") for title, _ in shown.values())]
    cells = [
        [f"`{row['asked']}`", number(row["budget"], "g"), *(number(row[name], form) for name, (_, form) in shown.items())]
        for row in mine
    ]
    questions = f", {mine[0]['questions']} questions" if mine[0]["questions"] else ""
    return [f"{length} tokens, {mine[0]['prompts']} prompts{questions}:", "", *_table(heads, cells)]


def _needle(cells: Sequence[dict[str, Any]]) -> list[str]:
    depths = sorted({cell["depth"] for cell in cells})
    found: dict[tuple[str, int, float | None], dict[float, float]] = {}
    for cell in cells:
        found.setdefault((cell["asked"], cell["length"], cell["budget"]), {})[cell["depth"]] = cell["recall"]
    table = [
        [f"`{policy}`", str(length), number(budget, "g"), *(number(by_depth.get(depth), ".2f") for depth in depths)]
        for (policy, length, budget), by_depth in found.items()
    ]
    heads = ["policy", "length", "budget", *(f"{depth:g}" for depth in depths)]
    return ["Recall by depth of the asked records:", "", *_table(heads, table)]


def _longbench(rows: Sequence[dict[str, Any]]) -> list[str]:
    table = [
        [
            f"`{row['asked']}`",
            row["dataset"],
            number(row["budget"], "g"),
            str(row["lines"]),
            number(row["score"], ".2f"),
            number(row["token_agreement"], ".3f"),
        ]
        for row in rows
    ]
    return ["LongBench:", "", *_table(["policy", "data set", "budget", "lines", "score", "equal tokens"], table)]
