"""The command's first moment. Ctrl-C ends it quietly while its modules are read, too, which takes a second; standard
streams that are closed (`>&-`) are /dev/null, so that no file or connection takes their place."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import NoReturn

from launch.terminal.streams import open_streams

INTERRUPTED = 130


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


def _leave(number: int, frame: FrameType | None) -> None:
    os._exit(INTERRUPTED)  # nothing has begun
