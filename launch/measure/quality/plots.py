"""Plots as PNG files, readable in greyscale: quality against budget, recall over depth and length."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

MEASURES = {
    "recall": "recall",
    "token_agreement": "tokens equal to the full cache's",
    "attention_mass": "attention kept",
    "perplexity": "perplexity",
}
MARKERS = "osD^vP*Xh<>p"
STYLES = ("-", "--", "-.", ":")
COLUMNS = 4


def plot_quality(rows: Sequence[dict[str, Any]], path: Path) -> bool:
    """Draw a panel a measure, a line a policy and length; what has no budget is a line across. False: nothing to draw."""
    shown = [name for name in MEASURES if any(row[name] is not None for row in rows)]
    if not shown:
        return False
    policies = list(dict.fromkeys(row["asked"] for row in rows))
    lengths = sorted({row["length"] for row in rows})
    figure = Figure(figsize=(5.2 * len(shown), 5.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    budgets = sorted({row["budget"] for row in rows if row["budget"] is not None}) or [0.0, 1.0]
    handles: dict[str, Any] = {}
    for panel, name in zip(panels, shown, strict=True):
        for number, policy in enumerate(policies):
            grey = str(0.65 * number / max(1, len(policies) - 1))
            for style, length in enumerate(lengths):
                points = sorted(
                    (-1.0 if row["budget"] is None else row["budget"], row[name])
                    for row in rows
                    if row["asked"] == policy and row["length"] == length and row[name] is not None
                )
                if not points:
                    continue
                if points[0][0] < 0:
                    points = [(budgets[0], points[0][1]), (budgets[-1], points[0][1])]
                (line,) = panel.plot(
                    *zip(*points, strict=True),
                    color=grey,
                    marker=MARKERS[number % len(MARKERS)],
                    linestyle=STYLES[style % len(STYLES)],
                )
                handles[f"{policy}, {length} tokens"] = line
        panel.set_xlabel("budget (share of tokens)")
        panel.set_ylabel(MEASURES[name])
        panel.grid(color="0.9")
        if name != "perplexity":
            panel.set_ylim(-0.03, 1.03)
    figure.legend(
        list(handles.values()), list(handles), loc="outside lower center", ncols=3, fontsize="small", handlelength=4
    )
    figure.savefig(path, dpi=110)
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
    figure = Figure(figsize=(1.5 + columns * (1.6 + 0.6 * len(lengths)), lines * (1.2 + 0.4 * len(depths))))
    figure.set_layout_engine("constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(lines, columns, squeeze=False)
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
    figure.savefig(path, dpi=110)
    return True
