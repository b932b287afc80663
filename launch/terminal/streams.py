"""Standard streams that were closed (`>&-`) before the command began. Imports nothing that takes time."""

from __future__ import annotations

import os
import sys

closed: list[str] = []
"""Standard streams that were closed when the command began."""


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
