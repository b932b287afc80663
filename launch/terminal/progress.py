"""Bars for work in stages, on standard error, where that is a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from launch.terminal.console import byte_count, err

Stage = Callable[[str, int, int], None]
"""progress(stage, done, total); total 0: not known."""

IN_BYTES = frozenset({"share model", "model load"})
"""Stages that model owners and parties count in bytes of shares."""

NARROW = 60  # columns of a terminal that has no room for a bar beside the numbers


class Counted(ProgressColumn):
    """How far a stage is: bytes for a person, or numbers; nothing where its end is not known. in_bytes: of every stage."""

    def __init__(self, in_bytes: bool = False) -> None:
        super().__init__(Column(no_wrap=True))
        self._in_bytes = in_bytes

    def render(self, task: Task) -> Text:
        """Return "1.20 MB/3.75 MB", "3/24" or nothing."""
        if task.total is None:
            return Text("")
        show = byte_count if self._in_bytes or task.description in IN_BYTES else lambda count: f"{int(count)}"
        return Text(f"{show(task.completed)}/{show(task.total)}")


class Left(TimeRemainingColumn):
    """Seconds left, as soon as they can be told."""

    def render(self, task: Task) -> Text:
        """Return "0:12 left" or nothing."""
        found = super().render(task)
        return Text("") if "-" in found.plain or task.total is None or task.finished else Text(f"{found.plain} left")


def bars(in_bytes: bool = False) -> Progress:
    """Return bars for stages: name, bar (where there is room), count, seconds so far and seconds left."""
    room = [] if err.width < NARROW else [BarColumn(bar_width=min(40, err.width - NARROW + 10))]
    name = TextColumn("{task.description}", table_column=Column(overflow="ellipsis", no_wrap=True, ratio=None))
    times = (TimeElapsedColumn(), Left(compact=True))
    return Progress(name, *room, Counted(in_bytes), *times, console=err, transient=True, disable=not err.is_terminal)


@contextmanager
def stages(in_bytes: bool = False) -> Iterator[Stage]:
    """Give `progress(stage, done, total)`, which shows a line for the stage of the moment; total 0: how much is not
    known."""
    bar = bars(in_bytes)
    tasks: dict[str, TaskID] = {}
    with bar:

        def progress(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                for task in tasks.values():
                    bar.remove_task(task)
                tasks.clear()
                tasks[stage] = bar.add_task(stage, total=None)
            bar.update(tasks[stage], completed=done, total=total or None)

        yield progress
