"""Runs a program on all parties and the dealer as threads of one process, over in-memory channels and tapes."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

from mpc.channel import MemoryChannel, memory_channels
from mpc.random import new_seed
from mpc.tape import DealerTape, PartyTape, chunks

PartyMain = Callable[[MemoryChannel, PartyTape], Any]
DealerMain = Callable[[DealerTape], Any]


def run_parties(parties: int, party_main: PartyMain, dealer_main: DealerMain) -> tuple[list[Any], Any]:
    """Results of every party, and of the dealer. The first exception of any of them is raised here."""
    channels = memory_channels(parties)
    seeds = [new_seed() for _ in range(parties)]
    streams: list[queue.SimpleQueue[bytes | None]] = [queue.SimpleQueue() for _ in range(parties)]
    results: list[Any] = [None] * (parties + 1)
    errors: list[BaseException] = []

    def stream(party: int) -> Iterator[bytes]:
        while (piece := streams[party].get(timeout=120)) is not None:
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
            tape = DealerTape(seeds, lambda i, piece: streams[i].put(piece))
            results[parties] = dealer_main(tape)
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
        raise errors[0]
    return results[:parties], results[parties]
