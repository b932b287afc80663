"""What a person sees: answers on standard output, everything else on standard error, each error as one red line."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import sys
import traceback
from contextlib import suppress
from typing import Any, NoReturn

from rich.console import Console, ConsoleDimensions, Group, RenderableType
from rich.measure import Measurement
from rich.style import StyleType
from rich.table import Table
from rich.text import Text

from mpc.errors import MpcacheError


class FittingConsole(Console):
    """A console that writes a table of numbers with more columns than it has room for as a list: a number that is cut is
    none. What goes into a file or another program has room: no line of text and no id is broken there."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Print as `Console` does."""
        if self._has_room and all(isinstance(one, str) for one in objects):
            options.setdefault("soft_wrap", True)
        super().print(*(self._fitted(one) if isinstance(one, Table) else one for one in objects), **options)

    @property  # type: ignore[misc]
    def size(self) -> ConsoleDimensions:
        """Return columns and lines."""
        found = super().size
        return ConsoleDimensions(FILE_WIDTH, found.height) if self._has_room else found

    @property
    def _has_room(self) -> bool:
        return self._width is None and not self.is_terminal  # nobody has said how wide it is

    def _fitted(self, table: Table) -> RenderableType:
        numbers = any(column.justify == "right" for column in table.columns)
        whole = Measurement.get(self, self.options.update(max_width=ANY_WIDTH), table).maximum
        return as_list(table) if numbers and whole > self.width else table


def as_list(table: Table) -> RenderableType:
    r"""Return a table's rows one below the other: the first cell, then each further one behind its column's title.

    >>> table = Table("stage", "rounds", "bytes\nsent", title="costs")
    >>> table.add_row("prompt", "12", "3.4 MB")
    >>> Console(width=40).print(as_list(table))
    costs
    prompt
      rounds: 12
      bytes sent: 3.4 MB
    """
    titles = [" ".join(str(column.header).replace("-\n", "-").split()) for column in table.columns]
    lines = [] if table.title is None else [Text(str(table.title), style="bold")]
    cells = list(zip(*(column.cells for column in table.columns), strict=True))
    for row, (first, *rest) in zip(table.rows, cells, strict=True):
        lines.append(_text(first, row.style or "bold"))
        room = " " * (len(lines[-1].plain) - len(lines[-1].plain.lstrip()))
        lines += [
            Text(f"{room}  {title}: ").append(_text(cell, "")) for title, cell in zip(titles[1:], rest, strict=True) if cell
        ]
    return Group(*lines)


def _text(cell: object, style: StyleType) -> Text:
    return cell if isinstance(cell, Text) else Text.from_markup(str(cell), style=style)


err = Console(stderr=True, highlight=False, emoji=False)  # :ab: and :cd: are pairs of digits of a fingerprint
out = FittingConsole(highlight=False, emoji=False)

ERROR_EXIT = 2
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
ANY_WIDTH = 10_000  # columns, more than any table has
FILE_WIDTH = 200
RANGE_EXIT = 3
READER_LEFT = 141  # as of a program that SIGPIPE ends
_EXITS = {"range-exceeded": RANGE_EXIT}


class Settings:
    """What `mpcache --debug` and `--yes`, and a command's `--json`, set for the whole process. answered: whether the JSON
    object has been printed."""

    debug = False
    yes = False
    as_json = False
    answered = False


def error_line(error: BaseException) -> str:
    """Return `error [code]: message` on one line.

    An exception that is not one of ours may carry a value in its message, so only its type and place are given; of one of
    the system's (a full disk) also what the system says, and of which file.

    >>> from mpc.errors import ConfigurationError
    >>> error_line(ConfigurationError("the prompt is empty"))
    'error [configuration]: the prompt is empty'
    """
    if isinstance(error, MpcacheError):
        return f"error [{error.code}]: {' '.join(str(error).split())}"
    place = ""
    if error.__traceback__ is not None:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f" at {frame.filename.rsplit('/', 1)[-1]}:{frame.lineno}"
    if isinstance(error, OSError) and error.errno in FULL:
        file = "what is written" if error.filename is None else str(error.filename)
        return f"error [environment]: {file}: {os.strerror(error.errno)}; make room there, or write elsewhere"
    return f"error [internal]: {type(error).__name__}{place}; run `mpcache --debug ...` for the traceback"


def exit_code(error: BaseException) -> int:
    """Return with which code a command ends that raised this error."""
    return _EXITS.get(error.code, ERROR_EXIT) if isinstance(error, MpcacheError) else ERROR_EXIT


def show_error(error: BaseException) -> None:
    """Print the error's line in red, after its traceback when debugging; with --json also `{"error": {"code", "message"}}`
    on standard output, where no object is there yet."""
    if Settings.debug:
        traceback.print_exception(error)
    line = error_line(error)
    err.print(Text(line, style="bold red"), soft_wrap=True)
    if Settings.as_json and not Settings.answered:
        code, _, message = line.removeprefix("error [").partition("]: ")
        print_json({"error": {"code": code, "message": message}})


def show_usage(error: Any, as_json: bool) -> None:
    """Print wrong usage as `Usage: ...` and why; with --json also as an error's object of the code "usage"."""
    error.show()
    if as_json:
        print_json({"error": {"code": "usage", "message": error.format_message()}})


def replace_what_cannot_be_written() -> None:
    """Write "?" from now on for a character that standard output's encoding lacks: an answer is worth more than that."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def end_without_reader() -> None:
    """End quietly from now on where whoever reads standard output has left (`| head`); the help's console does so, too."""

    def leave(self: Console) -> None:
        _leave()

    Console.on_broken_pipe = leave  # type: ignore[method-assign]


def _leave() -> NoReturn:
    with suppress(OSError, ValueError):  # what is still to be written goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise SystemExit(READER_LEFT)


def write(text: str) -> None:
    """Write to standard output at once."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        _leave()


def print_json(value: dict[str, Any]) -> None:
    """Print exactly one JSON object, on one line of standard output; with escapes where that is not UTF-8."""
    Settings.answered = True
    plain = (sys.stdout.encoding or "").lower().replace("-", "") != "utf8"
    write(json.dumps(value, ensure_ascii=plain, allow_nan=False) + "\n")


def digits(value: float) -> str:
    """Return a number with three digits for a person, whole ones with all of theirs, and never with an exponent.

    >>> digits(0.02814), digits(15.5), digits(2743.2), digits(1.38e4), digits(0)
    ('0.0281', '15.5', '2,743', '13,800', '0')
    """
    if not value or not math.isfinite(value):
        return f"{value:g}"
    text = f"{value:,.{min(9, max(0, 2 - math.floor(math.log10(abs(value)))))}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def byte_count(count: float) -> str:
    """Return the bytes for a person: 1 KB is 1000 bytes.

    >>> byte_count(780), byte_count(8_420_000)
    ('780 B', '8.42 MB')
    """
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{int(count)} B"
