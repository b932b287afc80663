"""Ranks of one party for tests: rank 0 in this process, the others as processes of this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from mpc.ranks import RankFacts, Ranks, serve
from tests import forked

FACTS = RankFacts("party0", {"version": "1"})


@dataclass(frozen=True)
class Group:
    """Running ranks."""

    ranks: Ranks
    others: list[forked.Forked]


def join(store: Path, rank: int, count: int) -> None:
    """Join the ranks that meet in a file."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=count, timeout=timedelta(seconds=60)
    )


@contextmanager
def running(
    folder: Path, count: int = 2, patience: float = 20.0, theirs: Mapping[str, str] | None = None
) -> Iterator[Group]:
    """Start `count` ranks. theirs: facts of the others."""
    store = folder / "ranks"
    version = (theirs or FACTS.common)["version"]
    commands = [[sys.executable, "-m", __name__, str(store), str(rank), str(count), version] for rank in range(1, count)]
    others = [forked.started(command, stderr=subprocess.PIPE, text=True) for command in commands]
    try:
        join(store, 0, count)
        ranks = Ranks(FACTS, "cpu", patience)
        yield Group(ranks, others)
        ranks.end()
        if ranks.lost is None:
            assert [other.wait(20) for other in others] == [0] * (count - 1)
    finally:
        for other in others:
            other.kill()
            other.communicate()
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    join(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    serve(RankFacts("party0", {"version": sys.argv[4]}), "cpu")
