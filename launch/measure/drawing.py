"""How all plots look: Okabe and Ito's colours by lightness, a marker or a hatch for each, labels at the lines themselves.

Every two neighbours of `COLORS` differ in lightness (CIE L*) by 15 or more, so that they stay apart on a grey printer; for
those who see few colours, and for what stands further apart, each has a marker, a line style and a hatch of its own.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

# Okabe and Ito, "Color Universal Design", 2008: black, orange, blue, sky blue, vermilion, yellow, bluish green. Their
# reddish purple is as light as the green.
COLORS = ("#000000", "#E69F00", "#0072B2", "#56B4E9", "#D55E00", "#F0E442", "#009E73")
MARKERS = "osD^vP*Xh<>p"
STYLES = ("-", "--", "-.", ":")
HATCHES = ("", "//", "..", "xx", "\\\\", "++", "oo")
EDGE = "black"
LEAST_GAP = 0.055  # between two labels, of a panel's height


@dataclass(frozen=True)
class Plot:
    """A picture, and the sentence that says what it shows."""

    png: bytes
    caption: str


@dataclass(frozen=True)
class Look:
    """How the n-th line, or bar, of a plot looks."""

    number: int

    @property
    def color(self) -> str:
        """Return its colour."""
        return COLORS[self.number % len(COLORS)]

    def line(self) -> dict[str, Any]:
        """Return what `plot` takes. Markers have dark edges, since the yellow is faint on white."""
        return {
            "color": self.color,
            "marker": MARKERS[self.number % len(MARKERS)],
            "linestyle": STYLES[self.number // len(COLORS) % len(STYLES)],
            "markeredgecolor": EDGE,
            "markeredgewidth": 0.6,
        }

    def bar(self) -> dict[str, Any]:
        """Return what `bar` takes. A hatch is drawn in the colour of the edge, so black is no bar's colour by choice."""
        return {"color": self.color, "hatch": HATCHES[self.number % len(HATCHES)], "edgecolor": EDGE, "linewidth": 0.6}


def new_figure(lines: int, columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    """Return a figure of `size` inches and its panels, an array [lines, columns]."""
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(lines, columns, squeeze=False)


def png_of(figure: Any) -> bytes:
    """Return the figure as a PNG file that says nothing of the program that made it."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110, metadata={"Software": None})
    return out.getvalue()


def logarithmic(axis: Any) -> None:
    """Give a logarithmic axis plain numbers at 1, 2, 3, 5 and 7 times each power of ten."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Return places between 0 and 1, in the order of the wanted ones and near to them, no two nearer than `gap`; where so
    many do not fit, at even distances.

    >>> [round(place, 2) for place in spread([0.5, 0.5, 0.9], gap=0.2)]
    [0.5, 0.7, 0.9]
    >>> [round(place, 2) for place in spread([1.0, 1.0, 0.1], gap=0.2)]
    [0.8, 1.0, 0.1]
    """
    gap = min(gap, 1 / max(1, len(wanted) - 1))
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    out = [0.0] * len(wanted)
    least = 0.0
    for i in order:
        out[i] = least = max(wanted[i], least)
        least += gap
    most = 1.0
    for i in reversed(order):
        out[i] = most = min(out[i], most)
        most -= gap
    return out


def label_ends(panel: Any, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Write beside the last point of each line what it is: (x, y, text, colour) each, in the panel's final limits.

    Labels stand at the right edge, as near to their lines as they fit, with a thin line to the point.
    """
    to_axes = panel.transData + panel.transAxes.inverted()
    heights = [float(to_axes.transform((x, y))[1]) for x, y, _, _ in ends]
    for (x, y, text, color), place in zip(ends, spread(heights, LEAST_GAP), strict=True):
        panel.annotate(
            text,
            xy=(x, y),
            xytext=(1.04, place),
            textcoords=panel.transAxes,
            fontsize=7.5,
            va="center",
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.8, "shrinkA": 1, "shrinkB": 3},
            annotation_clip=False,
        )
