"""Where tests compute: on the CPU, on the stand-in device, or on a real GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from unittest import mock

from launch.local import in_process
from tests.tools.stand_in.patches import installed

STAND_IN = "stand-in"
NAMES = ("cpu", STAND_IN, "cuda")


@contextmanager
def computing_on(name: str) -> Iterator[str]:
    """Let roles in this process compute on one of `NAMES`; yields what torch calls it. "cuda" needs a GPU."""
    device = "cuda:0" if name == STAND_IN else name
    with installed() if name == STAND_IN else nullcontext(), mock.patch.object(in_process, "DEVICE", device):
        yield device
