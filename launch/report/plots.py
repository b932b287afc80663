"""A report's plots, readable in greyscale: markers, line styles and hatches tell what greys might not."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from launch.predict.networks import NETWORKS
from launch.report.network_model import predicted_seconds
from launch.report.rows import Row, by_label, counted, groups, timed, tokens

MARKERS = "osD^vP*Xh<>p"
STYLES = ("-", "--", "-.", ":")
HATCHES = ("", "//", "..", "xx", "\\\\", "++", "oo")
PART_NAMES = ("embedding", "attention", "feed-forward", "head", "choice", "other")


def _figure(columns: int, height: float = 4.2) -> tuple[Any, Any]:
    figure = Figure(figsize=(5.4 * columns, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def _grey(number: int, count: int) -> str:
    return str(round(0.7 * number / max(1, count - 1), 3))


def _png(figure: Any) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110, metadata={"Software": None})
    return out.getvalue()


def against_length(rows: Sequence[Row]) -> dict[str, bytes]:
    """Plot bytes and seconds of a token against length, a picture a model, a line a suite and policy. Open markers:
    predicted."""
    out = {}
    for (model, parties), found in groups(counted(rows)).items():
        lines = {label: line for label, line in by_label(found).items() if len({r.cell.prompt for r in line}) > 1}
        if not lines:
            continue
        seconds = {label: [ran for r in line if (ran := timed(rows, r))] for label, line in lines.items()}
        figure, panels = _figure(2 if any(seconds.values()) else 1, 5.2)
        handles: dict[str, Any] = {}
        for number, (label, line) in enumerate(lines.items()):
            for panel, what in zip(panels, ("bytes_sent", "seconds"), strict=False):
                shown = line if what == "bytes_sent" else seconds[label]
                points = [(r.cell.prompt, getattr(r, what), r.predicted) for r in shown]
                if not points:
                    continue
                grey = _grey(number, len(lines))
                (drawn,) = panel.plot(
                    [p[0] for p in points],
                    [p[1] / 1e6 if what == "bytes_sent" else p[1] for p in points],
                    color=grey,
                    linestyle=STYLES[number % len(STYLES)],
                    marker=MARKERS[number % len(MARKERS)],
                    markerfacecolor="white" if all(p[2] for p in points) else grey,
                )
                handles[label] = drawn
        for panel, title in zip(panels, ("MB sent by a party, a token", "seconds a token, localhost"), strict=False):
            panel.set_xscale("log", base=2)
            panel.set_yscale("log")
            panel.set_xlabel("cached tokens")
            panel.set_ylabel(title)
            panel.grid(color="0.9", which="both")
            lengths = sorted({r.cell.prompt for line in lines.values() for r in line})
            panel.set_xticks(lengths, [str(n) for n in lengths])
        figure.suptitle(f"{model}, {parties} parties", fontsize=10)
        figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=2, fontsize="small")
        out[f"length-{model}-{parties}"] = _png(figure)
    return out


def stacked_parts(rows: Sequence[Row]) -> dict[str, bytes]:
    """Plot where a token's bytes and seconds go, a bar a suite and policy, at each model's longest length that was
    measured."""
    out = {}
    for (model, parties), found in groups([r for r in tokens(rows) if not r.predicted]).items():
        longest = max(r.cell.prompt for r in found)
        bars = [r for r in found if r.cell.prompt == longest]
        figure, panels = _figure(2, 1.6 + 0.6 * len(bars))
        for panel, what, scale, title in zip(
            panels, ("bytes_sent", "seconds"), (1e6, 1.0), ("MB sent by a party", "seconds"), strict=True
        ):
            left = [0.0] * len(bars)
            for number, part in enumerate(PART_NAMES):
                widths = [r.measured["parts"].get(part, {}).get(what, 0.0) / scale for r in bars]
                if any(widths):
                    panel.barh(
                        range(len(bars)),
                        widths,
                        left=left,
                        color=str(round(0.35 + 0.12 * number, 2)),
                        hatch=HATCHES[number],
                        edgecolor="white",
                        label=part,
                    )
                left = [a + b for a, b in zip(left, widths, strict=True)]
            panel.set_yticks(range(len(bars)), [r.label for r in bars], fontsize=7)
            panel.invert_yaxis()
            panel.set_xlabel(f"{title}, a token")
        panels[1].set_yticklabels([])
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=6, fontsize="small")
        figure.suptitle(f"{model}, {longest} cached tokens, {parties} parties", fontsize=10)
        out[f"parts-{model}-{parties}"] = _png(figure)
    return out


def network_bars(rows: Sequence[Row]) -> dict[str, bytes]:
    """Plot seconds of a token on localhost (measured), LAN, WAN and mobile (predicted), a group a suite and policy."""
    out = {}
    for (model, parties), found in groups([r for r in tokens(rows) if r.seconds is not None]).items():
        longest = max(r.cell.prompt for r in found)
        bars = [r for r in found if r.cell.prompt == longest]
        names = ["localhost", *NETWORKS]
        figure, (panel,) = _figure(1, 4.6)
        width = 0.8 / len(bars)
        for number, row in enumerate(bars):
            assert row.seconds is not None
            heights = [row.seconds, *(predicted_seconds(row, n) or 0.0 for n in NETWORKS.values())]
            panel.bar(
                [place + number * width for place in range(len(names))],
                heights,
                width,
                color=_grey(number, len(bars)),
                hatch=HATCHES[number % len(HATCHES)],
                edgecolor="white",
                label=row.label,
            )
        panel.set_xticks([place + 0.4 - width / 2 for place in range(len(names))], names)
        panel.set_yscale("log")
        panel.set_ylabel("seconds a token")
        figure.legend(loc="outside lower center", ncols=2, fontsize="small")
        figure.suptitle(f"{model}, {longest} cached tokens, {parties} parties", fontsize=10)
        out[f"networks-{model}-{parties}"] = _png(figure)
    return out


def offline_online(rows: Sequence[Row]) -> dict[str, bytes]:
    """Plot dealt bytes against bytes between parties, one point a suite, policy and length."""
    out = {}
    for (model, parties), found in groups(counted(rows)).items():
        figure, (panel,) = _figure(1, 5.0)
        lines = by_label(found)
        for number, (label, line) in enumerate(lines.items()):
            panel.plot(
                [r.bytes_sent / 1e6 for r in line],
                [r.offline_bytes / 1e6 for r in line],
                color=_grey(number, len(lines)),
                marker=MARKERS[number % len(MARKERS)],
                linestyle=STYLES[number % len(STYLES)],
                label=label,
            )
            for r in line:
                panel.annotate(str(r.cell.prompt), (r.bytes_sent / 1e6, r.offline_bytes / 1e6), fontsize=6)
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_xlabel("online: MB sent by a party, a token")
        panel.set_ylabel("offline: MB dealt to a party, a token")
        panel.grid(color="0.9", which="both")
        figure.legend(loc="outside lower center", ncols=2, fontsize="small")
        figure.suptitle(f"{model}, {parties} parties; numbers: cached tokens", fontsize=10)
        out[f"offline-{model}-{parties}"] = _png(figure)
    return out


def all_plots(rows: Sequence[Row]) -> dict[str, bytes]:
    """Return every plot that these rows allow: file name without ending -> PNG."""
    found = {**against_length(rows), **stacked_parts(rows), **network_bars(rows), **offline_online(rows)}
    return {"".join(c if c.isalnum() or c in "-_." else "_" for c in name): png for name, png in found.items()}
