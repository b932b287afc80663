"""Plots as PNG files: quality against budget, recall over depth and length."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch.measure.drawing import Look, label_ends, logarithmic, new_figure, png_of
from launch.measure.quality.memory_page import mean

MEASURES = {
    "recall": "recall",
    "token_agreement": "tokens equal to the full cache's",
    "attention_mass": "attention kept",
    "perplexity": "perplexity",
}
QUALITY_CAPTION = "Quality of cache policies against their budget; level lines have none"
NEEDLE_CAPTION = "Recall by place of what is asked for: depth 0 is the prompt's first record, 1 its last"
AT_MEMORY = {
    "recall": "recall",
    "perplexity": "perplexity of the right answer",
    "later": "recall of later turns",
    "again": "recall of what is asked again",
}
MEMORY_CAPTION = "Cache policies by what their caches take at a party; means over seeds"
COLUMNS = 4


def plot_quality(rows: Sequence[dict[str, Any]], path: Path) -> bool:
    """Draw a panel a measure, a line a policy and length, named at its end; what has no budget is a line across. False:
    nothing to draw."""
    shown = [name for name in MEASURES if any(row[name] is not None for row in rows)]
    if not shown:
        return False
    lengths = sorted({row["length"] for row in rows})
    budgets = sorted({row["budget"] for row in rows if row["budget"] is not None}) or [0.0, 1.0]
    lines = [(policy, length) for policy in dict.fromkeys(row["asked"] for row in rows) for length in lengths]
    figure, (panels,) = new_figure(1, len(shown), (6.6 * len(shown), max(5.0, 0.3 * len(lines))))
    for panel, name in zip(panels, shown, strict=True):
        ends = []
        for number, (policy, length) in enumerate(lines):
            points = sorted(
                (-1.0 if row["budget"] is None else row["budget"], row[name])
                for row in rows
                if row["asked"] == policy and row["length"] == length and row[name] is not None
            )
            if not points:
                continue
            if points[0][0] < 0:
                points = [(budgets[0], points[0][1]), (budgets[-1], points[0][1])]
            look = Look(number)
            panel.plot(*zip(*points, strict=True), **look.line())
            ends.append((*points[-1], f"{policy}, {length} tokens" if len(lengths) > 1 else policy, look.color))
        panel.set_xlabel("budget (share of tokens)")
        panel.set_ylabel(MEASURES[name])
        panel.grid(color="0.9")
        if name != "perplexity":
            panel.set_ylim(-0.03, 1.03)
        label_ends(panel, ends)
    figure.suptitle(QUALITY_CAPTION if len(lengths) > 1 else f"{QUALITY_CAPTION}; {lengths[0]} tokens", fontsize=10)
    path.write_bytes(png_of(figure))
    return True


def plot_memory(rows: Sequence[dict[str, Any]], path: Path) -> bool:
    """Draw a line of panels a length, a panel a measure, a line a policy over the share of memory that it takes, named at
    its end. False: nothing to draw."""
    rows = [row for row in rows if row["seeds"]]
    if not rows:
        return False
    shown = [measure for measure in AT_MEMORY if measure in rows[0]["seeds"][0]]
    lengths = list(dict.fromkeys(row["length"] for row in rows))
    policies = list(dict.fromkeys(row["asked"] for row in rows))
    size = (6.6 * len(shown), max(5.0, 0.3 * len(policies)) * len(lengths))
    figure, panels = new_figure(len(lengths), len(shown), size)
    for length, line in zip(lengths, panels, strict=True):
        for panel, measure in zip(line, shown, strict=True):
            title, ends = AT_MEMORY[measure], []
            for number, policy in enumerate(policies):
                mine = [row for row in rows if (row["length"], row["asked"]) == (length, policy)]
                points = sorted((row["share"], mean(row["seeds"], measure)) for row in mine)
                if points:
                    look = Look(number)
                    panel.plot(*zip(*points, strict=True), **look.line())
                    ends.append((*points[-1], policy, look.color))
            panel.set_xlabel("memory of the cache (share of the full one's bytes)")
            panel.set_ylabel(title if len(lengths) == 1 else f"{title}, {length} tokens")
            panel.grid(color="0.9")
            if measure == "perplexity":
                panel.set_yscale("log")
                logarithmic(panel.yaxis)
            else:
                panel.set_ylim(-0.03, 1.03)
            label_ends(panel, ends)
    figure.suptitle(MEMORY_CAPTION, fontsize=10)
    path.write_bytes(png_of(figure))
    return True


def plot_needle(cells: Sequence[dict[str, Any]], path: Path) -> bool:
    """Draw a map a policy, depth down and length across; dark is high, the number stands in the field. False: no cells."""
    if not cells:
        return False
    asked = list(dict.fromkeys(cell["asked"] for cell in cells))
    order = sorted(cells, key=lambda cell: (asked.index(cell["asked"]), cell["budget"] or 0.0))
    policies = list(dict.fromkeys(cell["policy"] for cell in order))
    lengths = sorted({cell["length"] for cell in cells})
    depths = sorted({cell["depth"] for cell in cells})
    found = {(cell["policy"], cell["length"], cell["depth"]): cell["recall"] for cell in cells}
    columns = min(COLUMNS, len(policies))
    lines = -(-len(policies) // columns)
    size = (1.5 + columns * (1.6 + 0.6 * len(lengths)), 0.3 + lines * (1.2 + 0.4 * len(depths)))
    figure, panels = new_figure(lines, columns, size)
    for panel in panels.flat[len(policies) :]:
        panel.set_axis_off()
    for panel, policy in zip(panels.flat, policies, strict=False):
        values = [[found.get((policy, length, depth), float("nan")) for length in lengths] for depth in depths]
        panel.imshow(values, cmap="Greys", vmin=0, vmax=1, aspect="auto")
        for i, row in enumerate(values):
            for j, value in enumerate(row):
                text = "-" if value != value else f"{value:.2f}"
                panel.text(j, i, text, ha="center", va="center", color="white" if value > 0.5 else "black", fontsize=8)
        panel.set_title(policy, fontsize=7)
        panel.set_xticks(range(len(lengths)), [str(length) for length in lengths])
        panel.set_yticks(range(len(depths)), [f"{depth:g}" for depth in depths])
    figure.supxlabel("tokens of the prompt", fontsize=9)
    figure.supylabel("depth of the asked record", fontsize=9)
    figure.suptitle(NEEDLE_CAPTION, fontsize=10, wrap=True)
    path.write_bytes(png_of(figure))
    return True
