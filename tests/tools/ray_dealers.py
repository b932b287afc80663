"""How much faster many Ray dealers write tapes than one: `python -m tests.tools.ray_dealers --config cluster.yaml`.

Deals what a cluster file says in turn with one dealer and with all of its workers, several times, on a Ray of this machine,
and prints tapes a minute, from the begin of the first tape to the end of the last, and with the start of the dealers. Beside
them the load of the machine: on one that others use too, only the ratio within a pair of runs says something.
"""

from __future__ import annotations

import argparse
import os
import shutil
import time
from pathlib import Path
from statistics import median
from types import ModuleType

from launch.cli.commands.ray import order_of
from launch.cluster.connection import connected
from launch.cluster.dealers import RayDealers, Worker
from launch.cluster.settings import DealerSettings, load_cluster
from parties.tapes.deal import deal


def rates(ray: ModuleType, dealers: DealerSettings) -> tuple[float, float]:
    """Return tapes a minute by ready dealers, and with their start and the load's expansion."""
    first: list[float] = []
    last = 0.0

    def event(what: str, worker: Worker) -> None:
        nonlocal last
        if what == "begun":
            first.append(time.perf_counter())
        if what == "written":
            last = time.perf_counter()

    began = time.perf_counter()
    dealt = deal(order_of(dealers), dealers.out, sessions=RayDealers(ray, dealers, event))
    ended = time.perf_counter()
    shutil.rmtree(dealers.out)
    tapes = len(dealt.session_seconds)
    return 60 * tapes / (last - first[0]), 60 * tapes / (ended - began - dealt.load_seconds)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=3)
    given = parser.parse_args()
    many = load_cluster(given.config).dealers
    one = many.model_copy(update={"workers": 1})
    found = []
    with connected("local", many.most_workers * many.cpus) as ray:
        for number in range(given.pairs):
            before = os.getloadavg()[0]
            (alone, alone_whole), (together, whole) = rates(ray, one), rates(ray, many)
            found.append(together / alone)
            print(
                f"pair {number + 1}: 1 dealer {alone:.1f} tapes a minute (with its start {alone_whole:.1f}), "
                f"{many.most_workers} dealers {together:.1f} ({whole:.1f}): {together / alone:.2f} times; "
                f"{os.cpu_count()} cores, load of the machine before {before:.1f}",
                flush=True,
            )
    print(f"median {median(found):.2f} times")


if __name__ == "__main__":
    main()
