"""The picture of a load test: when each session came and had its tokens, and how the waits are distributed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from launch.measure.drawing import EDGE, Look, Plot, new_figure, png_of
from launch.measure.load import PERCENTILES, LoadResult, Seen, percentiles


def drawn(result: LoadResult) -> Plot:
    """Return the picture. On the left a row for each session: from its arrival (a bar's begin) to its first token (a ring),
    then its further tokens; a cross at the arrival of one that failed. On the right the share of waits up to some seconds,
    to the first token and between tokens, with `PERCENTILES` marked."""
    figure, (panels,) = new_figure(1, 2, (11.5, 2.4 + 0.14 * min(len(result.sessions), 60)))
    done = [seen for seen in result.sessions if seen.error is None]
    _sessions(panels[0], result.sessions)
    waits = {
        "to the first token": [seen.token_seconds[0] for seen in done],
        "between tokens": [b - a for seen in done for a, b in pairwise(seen.token_seconds)],
    }
    _waits(panels[1], waits)
    load = result.load
    caption = (
        f"{len(done)} of {load.sessions} sessions, arrivals {load.arrivals}, {load.prompt} tokens of prompt, "
        f"{load.new_tokens} new ones"
    )
    figure.suptitle(caption, fontsize=9)
    return Plot(png_of(figure), caption)


def _sessions(panel: Any, sessions: Sequence[Seen]) -> None:
    waiting, first, further, failed = (Look(number) for number in range(4))
    for number, seen in enumerate(sessions):
        if seen.error is not None:
            panel.plot([seen.began], [number], "x", color=failed.color)
            continue
        times = [seen.began + at for at in seen.token_seconds]
        panel.plot([seen.began, times[0]], [number, number], color=waiting.color, linewidth=0.8)
        panel.plot(times[1:], [number] * (len(times) - 1), "|", color=further.color, markersize=7)
        panel.plot([times[0]], [number], "o", color=first.color, markeredgecolor=EDGE, markersize=5, fillstyle="none")
    panel.set(xlabel="seconds from the beginning", ylabel="session", ylim=(len(sessions) - 0.5, -0.5))


def _waits(panel: Any, waits: dict[str, list[float]]) -> None:
    for number, (name, values) in enumerate(waits.items()):
        found = percentiles(values)
        if found is None:
            continue
        look, ordered = Look(2 * number), sorted(values)
        shares = [(place + 1) / len(ordered) for place in range(len(ordered))]
        panel.step([ordered[0], *ordered], [0.0, *shares], where="post", color=look.color, label=name)
        marks = {key: value for key, value in look.line().items() if key != "linestyle"}
        panel.plot(list(found.values()), [p / 100 for p in PERCENTILES], linestyle="none", **marks)
    panel.set(xlabel="seconds", ylabel="share of waits", ylim=(0, 1.02), xlim=(0, None))
    if panel.lines:
        panel.legend(fontsize=8)
