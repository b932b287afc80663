"""All compute parties and the dealer as threads of one process, over in-memory channels and tapes.

INSECURE FOR REAL DATA BY NATURE: one process holds every share, so whoever can read its memory can read every secret. It
is for measuring fidelity and for tests, with shares that this process made itself; roles that keep secrets from each
other run as processes of their own (`launch.local`, or one `mpcache party` per host).
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

from mpc.channel import MemoryChannel, memory_channels
from mpc.errors import PeerError
from mpc.random import new_seed
from mpc.tape import DealerTape, PartyTape, chunks

P = TypeVar("P")
D = TypeVar("D")

TAPE_SECONDS = 600.0


def run_in_process(
    parties: int, party_main: Callable[[MemoryChannel, PartyTape], P], dealer_main: Callable[[DealerTape], D]
) -> tuple[list[P], D]:
    """Run a program on all parties and the dealer; the results of the parties in order, and of the dealer.

    The first exception of any of them is raised here; that another party has left is reported only when nothing else
    explains it.
    """
    channels = memory_channels(parties, deadline=TAPE_SECONDS)
    seeds = [new_seed() for _ in range(parties)]
    streams: list[queue.SimpleQueue[bytes | None]] = [queue.SimpleQueue() for _ in range(parties)]
    results: dict[int, P] = {}
    dealt: list[D] = []
    errors: list[BaseException] = []

    def stream(party: int) -> Iterator[bytes]:
        while (piece := streams[party].get(timeout=TAPE_SECONDS)) is not None:
            yield piece

    def party_thread(i: int) -> None:
        try:
            tape = PartyTape(seeds[i], i == parties - 1, chunks(stream(i)), channels[i].ledger)
            results[i] = party_main(channels[i], tape)
        except BaseException as error:
            errors.append(error)
            channels[i].close()

    def dealer_thread() -> None:
        try:
            dealt.append(dealer_main(DealerTape(seeds, lambda i, piece: streams[i].put(piece))))
        except BaseException as error:
            errors.append(error)
        finally:
            for s in streams:
                s.put(None)

    threads = [threading.Thread(target=party_thread, args=(i,), daemon=True) for i in range(parties)]
    threads.append(threading.Thread(target=dealer_thread, daemon=True))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise next((error for error in errors if not isinstance(error, PeerError)), errors[0])
    return [results[i] for i in range(parties)], dealt[0]
