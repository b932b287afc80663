"""Processors of a node that dealers take turns at: as many tapes at a time as there are processors.

Dealers of less than a core each (`cpus: 0.5`) are more than processors. Two that compute on one by turns, a few
milliseconds each, take its caches from each other all the time and need a seventh more of it; here one of them waits while
the other writes a whole tape.

A place is a lock on a file (`flock`) in a folder that the dealers of one deal share. It is free again when its holder ends,
however that ends. Names carry the node's, so that nodes that see one folder do not wait for each other. Where a file system
has no such locks nobody waits.
"""

from __future__ import annotations

import fcntl
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from mpc import role_process

LOOK_SECONDS = 0.005


def places(threads: int) -> int:
    """Return how many dealers of so many threads compute at a time on this node."""
    return max(1, role_process.processors() // threads)


@contextmanager
def processor(folder: Path, count: int) -> Iterator[None]:
    """Wait until one of the `count` places of this node is free, and keep it in here."""
    with ExitStack() as opened:
        node = socket.gethostname()
        files = [opened.enter_context((folder / f"processor-{node}-{number}").open("ab")) for number in range(count)]
        while not any(_taken(file.fileno()) for file in files):
            time.sleep(LOOK_SECONDS)
        yield


def _taken(descriptor: int) -> bool:
    """Lock a file if nobody has; True if this process has it now, or nobody can."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # no locks here
        return True
    return True
