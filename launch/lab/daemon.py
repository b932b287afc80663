"""The lab's own process, in the hub's namespace: relays packets where the kernel cannot delay them, and removes a lab whose
owner is gone. `python -m launch.lab.daemon NAME [--owned] [--relay DELAY LOSS ROOM]`
"""

from __future__ import annotations

import argparse
import ctypes
import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from launch.lab.relay import PASS_SECONDS, DelayLine, forward, open_device
from launch.local.supervision import report_ready
from mpc.errors import MpcacheError

_PR_SET_TIMERSLACK = 29


def main() -> None:
    """Serve until it is ended."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("--owned", action="store_true")
    parser.add_argument("--relay", nargs=3, type=float)
    parser.add_argument("--counts", type=Path)
    wanted = parser.parse_args()
    try:
        handle = open_device() if wanted.relay else None
    except MpcacheError as error:
        sys.exit(str(error))
    if wanted.owned:
        threading.Thread(target=_end_with_owner, args=(wanted.name,), daemon=True).start()
    report_ready()
    if handle is None:
        while True:
            time.sleep(3600)
    delay, loss, room = wanted.relay
    with suppress(OSError):  # a network is not slower because the machine is busy
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1000, 0, 0, 0)  # nanoseconds; the kernel's default is 50 000
    forward(handle, DelayLine(max(0.0, delay - PASS_SECONDS), loss, int(room)), wanted.counts)


def _end_with_owner(name: str) -> None:
    from launch.lab.removal import remove

    while os.read(sys.stdin.fileno(), 4096):
        pass
    remove(name)
    os._exit(0)


if __name__ == "__main__":
    main()
