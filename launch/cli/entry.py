"""The command's first moment. Ctrl-C ends it quietly while its modules are read, too, which takes a second; standard
streams that are closed (`>&-`) are /dev/null, so that no file or connection takes their place."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import NoReturn

INTERRUPTED = 130


closed: list[str] = []
"""Standard streams that were closed when the command began."""


def start() -> NoReturn:
    """Run the command."""
    open_streams()
    is_heard = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # a shell's background jobs ignore it
    if is_heard:
        signal.signal(signal.SIGINT, _leave)
    from launch.cli.main import entry

    if is_heard:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    entry()


def open_streams() -> None:
    """Open what is closed of standard input, output and error: to read nothing from, and to write nowhere."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            closed.append(name)
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, closefd=False))


def _leave(number: int, frame: FrameType | None) -> None:
    os._exit(INTERRUPTED)  # nothing has begun
