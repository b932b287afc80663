"""`python -m tests.tools.transport_speed`: what a round between two parties costs over gRPC and over lines beside it.

Two processes on this machine, connected as a benchmark's parties are (`launch.measure.bench.transport`), send each other
random bytes of one size at the same time. Of each size: milliseconds a round (median and least), megabytes a second in each
direction, and milliseconds of one process's processor time, which other programs of the machine do not change much.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from launch.measure.bench.plan import DEALER
from launch.measure.bench.transport import CERTIFICATES, Mesh
from mpc.ledger import Ledger
from parties.identity.certificates import create_deployment
from parties.transport.channel import GrpcChannel
from parties.transport.resumption import Way

NAMES = ["party0", "party1"]
SIZES = ((1_000, 1000), (100_000, 200), (1_000_000, 50), (16_000_000, 6), (100_000_000, 2))  # bytes, rounds
FEW = 1  # of the sizes, where it must be quick
WAYS: tuple[Way, ...] = ("grpc", "tls", "local")


def rounds(folder: Path, index: int, way: Way, count_of_sizes: int) -> Iterator[dict[str, Any]]:
    """Exchange messages of the first sizes as one of the two parties; yield what each size cost."""
    with Mesh(folder, NAMES, index, way=way) as mesh:
        channel = GrpcChannel(index, NAMES, mesh.links, Ledger())
        for size, count in SIZES[:count_of_sizes]:
            data, seconds = os.urandom(size), []
            channel.exchange_all(data)  # warm-up
            own = time.process_time()
            for _ in range(count):
                start = time.perf_counter()
                channel.exchange_all(data)
                seconds.append(time.perf_counter() - start)
            taken: Any = getattr(mesh.links[1 - index], "way", "grpc")
            yield {
                "way": taken,
                "bytes": size,
                "median_ms": round(1e3 * statistics.median(seconds), 3),
                "least_ms": round(1e3 * min(seconds), 3),
                "megabytes_a_second": round(size / statistics.fmean(seconds) / 1e6, 1),
                "processor_ms": round(1e3 * (time.process_time() - own) / count, 3),
            }


def measured(way: Way, count_of_sizes: int = len(SIZES)) -> list[dict[str, Any]]:
    """Return the rows of one way, of party 0."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        create_deployment(folder / CERTIFICATES, {**dict.fromkeys(NAMES, "party"), DEALER: "dealer"}, days=1)
        command = [sys.executable, "-m", "tests.tools.transport_speed", way, name, str(count_of_sizes)]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as other:
            try:
                return list(rounds(folder, 0, way, count_of_sizes))
            finally:
                other.wait(30)


def main() -> None:
    """Print the rows of every way, as JSON; with WAY, FOLDER and a number of sizes: be the other party."""
    if len(sys.argv) == 4:
        list(rounds(Path(sys.argv[2]), 1, cast(Way, sys.argv[1]), int(sys.argv[3])))
        return
    for way in WAYS:
        for row in measured(way):
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
