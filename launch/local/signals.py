"""SIGTERM and SIGHUP unwind the stack like Ctrl-C does, so that processes and temporary files are cleaned up."""

from __future__ import annotations

import signal
from types import FrameType
from typing import NoReturn


class Terminated(SystemExit):
    """SIGTERM or SIGHUP arrived. Its code is 128 plus the signal's number."""


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise Terminated(128 + number)


def install() -> None:
    """Handle both signals in this process."""
    signal.signal(signal.SIGTERM, _terminate)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, _terminate)
