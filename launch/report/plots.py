"""A report's plots: costs against length, by part, by network, and dealt against sent. Seconds are medians."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from launch.measure.drawing import EDGE, Look, Plot, label_ends, logarithmic, new_figure, png_of
from launch.predict.networks import NETWORKS
from launch.report.network_model import predicted_seconds
from launch.report.rows import Row, by_label, counted, groups, timed, title_of, tokens
from launch.terminal.console import digits

PART_NAMES = ("embedding", "attention", "feed-forward", "head", "choice", "other")
LEAST_SHARE = 0.1  # of a panel's width, for a part's name to fit into its bar


def against_length(rows: Sequence[Row]) -> dict[str, Plot]:
    """Plot bytes and seconds of a token against length, a picture a model, a line a suite and policy. Open markers:
    predicted."""
    out = {}
    for (model, parties), found in groups(counted(rows)).items():
        lines = {label: line for label, line in by_label(found).items() if len({r.cell.prompt for r in line}) > 1}
        if not lines:
            continue
        seconds = {label: [ran for r in line if (ran := timed(rows, r))] for label, line in lines.items()}
        shown: list[tuple[str, dict[str, list[tuple[int, float, bool]]]]] = [
            (
                "MB sent by a party",
                {k: [(r.cell.prompt, r.bytes_sent / 1e6, r.predicted) for r in v] for k, v in lines.items()},
            )
        ]
        if any(seconds.values()):
            timings = {k: [(r.cell.prompt, r.seconds or 0.0, False) for r in v] for k, v in seconds.items()}
            shown.append(("seconds, all roles on one machine", timings))
        figure, (panels,) = new_figure(1, len(shown), (6.2 * len(shown), 4.4))
        for panel, (title, drawn) in zip(panels, shown, strict=True):
            _lines_against_length(panel, title, drawn)
        figure.suptitle(f"{title_of(found)}, {parties} parties: one decoded token", fontsize=10)
        caption = "One decoded token against the tokens cached before it. Filled markers: measured (seconds: medians)"
        out[f"length-{model}-{parties}"] = Plot(
            png_of(figure), f"{caption}; open ones: predicted. Both axes are logarithmic."
        )
    return out


def _lines_against_length(panel: Any, title: str, lines: dict[str, list[tuple[int, float, bool]]]) -> None:
    """Draw the points (length, value, whether it was predicted) of each line, with its name at its end."""
    ends = []
    for number, (label, points) in enumerate(lines.items()):
        if not points:
            continue
        look = Look(number)
        panel.plot([p[0] for p in points], [p[1] for p in points], **{**look.line(), "marker": ""})
        for length, value, predicted in points:
            face = {"markerfacecolor": "white"} if predicted else {}
            panel.plot([length], [value], **{**look.line(), **face})
        ends.append((points[-1][0], points[-1][1], label, look.color))
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    lengths = sorted({length for points in lines.values() for length, _, _ in points})
    panel.set_xticks(lengths, [str(n) for n in lengths])
    logarithmic(panel.yaxis)
    panel.set_xlabel("cached tokens")
    panel.set_ylabel(title)
    panel.grid(color="0.9", which="both")
    label_ends(panel, ends)


def stacked_parts(rows: Sequence[Row]) -> dict[str, Plot]:
    """Plot where a token's bytes and seconds go, a bar a suite and policy, at each model's longest length that was
    measured."""
    out = {}
    for (model, parties), found in groups([r for r in tokens(rows) if not r.predicted]).items():
        longest = max(r.cell.prompt for r in found)
        bars = [r for r in found if r.cell.prompt == longest]
        figure, (panels,) = new_figure(1, 2, (11.5, 1.6 + 0.6 * len(bars)))
        unnamed: set[str] = set()
        for panel, what, scale, title in zip(
            panels, ("bytes_sent", "seconds"), (1e6, 1.0), ("MB sent by a party", "seconds"), strict=True
        ):
            unnamed |= _stacks(panel, bars, what, scale)
            panel.set_yticks(range(len(bars)), [r.label for r in bars], fontsize=7.5)
            panel.invert_yaxis()
            panel.set_xlabel(title)
        panels[1].set_yticklabels([])
        handles, labels = panels[0].get_legend_handles_labels()
        small = [(h, name) for h, name in zip(handles, labels, strict=True) if name in unnamed]
        if small:
            figure.legend(*zip(*small, strict=True), loc="outside lower center", ncols=len(small), fontsize=7.5)
        figure.suptitle(f"{title_of(bars)}, {longest} cached tokens, {parties} parties: one decoded token", fontsize=10)
        caption = "Where the bytes and the seconds of one decoded token go, by part of the model."
        out[f"parts-{model}-{parties}"] = Plot(png_of(figure), caption)
    return out


def _stacks(panel: Any, bars: Sequence[Row], what: str, scale: float) -> set[str]:
    """Draw a bar a row, parts side by side, each named where it fits; the parts that fit nowhere."""
    values = {part: [r.measured["parts"].get(part, {}).get(what, 0.0) / scale for r in bars] for part in PART_NAMES}
    values = {part: widths for part, widths in values.items() if any(widths)}
    most = max(sum(widths[i] for widths in values.values()) for i in range(len(bars)))
    left = [0.0] * len(bars)
    unnamed = set()
    for part, widths in values.items():
        panel.barh(range(len(bars)), widths, left=left, label=part, **Look(PART_NAMES.index(part) + 1).bar())
        wide = [i for i, width in enumerate(widths) if width >= LEAST_SHARE * most]
        for i in wide:
            box = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
            panel.text(left[i] + widths[i] / 2, i, part, ha="center", va="center", fontsize=7, bbox=box)
        if not wide:
            unnamed.add(part)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    return unnamed


def network_bars(rows: Sequence[Row]) -> dict[str, Plot]:
    """Plot seconds of a token on localhost (measured), LAN, WAN and mobile (predicted), a bar a suite and policy."""
    out = {}
    for (model, parties), found in groups([r for r in tokens(rows) if r.seconds is not None]).items():
        longest = max(r.cell.prompt for r in found)
        bars = [r for r in found if r.cell.prompt == longest]
        names = ["localhost", *NETWORKS]
        figure, panels = new_figure(1, len(names), (2.6 + 2.4 * len(names), 1.5 + 0.45 * len(bars)))
        for panel, name in zip(panels[0], names, strict=True):
            for place, row in enumerate(bars):
                value = row.seconds if name == "localhost" else predicted_seconds(row, NETWORKS[name])
                assert value is not None
                panel.barh(place, value, **Look(place + 1).bar())
                panel.text(value, place, f" {digits(value)} s", va="center", fontsize=7.5)
            panel.set_title(f"{name}, {'measured' if name == 'localhost' else 'predicted'}", fontsize=9)
            panel.set_yticks(range(len(bars)), [row.label for row in bars] if name == "localhost" else [""] * len(bars))
            panel.tick_params(axis="y", labelsize=7.5)
            panel.invert_yaxis()
            panel.margins(x=0.35)
            panel.set_xlim(left=0)
        figure.suptitle(f"{title_of(bars)}, {longest} cached tokens, {parties} parties: seconds of a token", fontsize=10)
        caption = "Seconds of one decoded token: measured on one machine (medians), and with each network's "
        out[f"networks-{model}-{parties}"] = Plot(png_of(figure), f"{caption}delay and bandwidth added. Scales differ.")
    return out


def offline_online(rows: Sequence[Row]) -> dict[str, Plot]:
    """Plot dealt bytes against bytes between parties, one point a suite, policy and length."""
    out = {}
    for (model, parties), found in groups(counted(rows)).items():
        figure, ((panel,),) = new_figure(1, 1, (7.6, 4.4))
        for number, (label, line) in enumerate(by_label(found).items()):
            look = Look(number)
            panel.plot([r.bytes_sent / 1e6 for r in line], [r.offline_bytes / 1e6 for r in line], **look.line())
            for r in line:
                place = (r.bytes_sent / 1e6, r.offline_bytes / 1e6)
                panel.annotate(str(r.cell.prompt), place, (3, -8), textcoords="offset points", fontsize=6.5, color=EDGE)
            panel.annotate(label, place, (0, 8), textcoords="offset points", ha="center", fontsize=7.5)
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.margins(0.15)
        logarithmic(panel.xaxis)
        logarithmic(panel.yaxis)
        panel.set_xlabel("online: MB sent by a party, a token")
        panel.set_ylabel("offline: MB dealt to a party, a token")
        panel.grid(color="0.9", which="both")
        figure.suptitle(f"{title_of(found)}, {parties} parties: one decoded token", fontsize=10)
        caption = "Bytes dealt beforehand against bytes sent meanwhile; the numbers at the points are cached tokens"
        out[f"offline-{model}-{parties}"] = Plot(png_of(figure), f"{caption}. Both axes are logarithmic.")
    return out


def all_plots(rows: Sequence[Row]) -> dict[str, Plot]:
    """Return every plot that these rows allow, by file name without ending."""
    found = {**against_length(rows), **stacked_parts(rows), **network_bars(rows), **offline_online(rows)}
    return {"".join(c if c.isalnum() or c in "-_." else "_" for c in name): plot for name, plot in found.items()}
