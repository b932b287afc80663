"""The ranks of a party: processes that hold its weights together (`mpc.ranks`), started here or by `torchrun`.

`workers: N` in a party's file says how many. `mpcache party` starts the others itself on this machine, where they meet in a
file of a folder of its own; under `torchrun` each of its processes is a rank and they meet where torchrun says. Rank 0 alone
has the party's connections, shares on disk and tapes.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from launch.local.processes import Processes
from mpc.errors import ConfigurationError, EnvironmentProblem, MpcacheError
from mpc.ranks import RankFacts, Ranks, serve
from mpc.role_process import processors
from parties.config.role_config import RoleConfig
from parties.wire.manifest import package_version

MEETING = "MPCACHE_RANKS"  # environment: where ranks that were started here meet


@dataclass(frozen=True)
class RankPlace:
    """Which rank a process is, of how many. meeting: where they meet, as `torch.distributed` takes it."""

    rank: int
    count: int
    meeting: str

    def device(self, config: RoleConfig) -> torch.device:
        """Return where this rank computes: of GPUs each rank has the next one."""
        device = torch.device(config.device)
        local = int(os.environ.get("LOCAL_RANK", self.rank))
        return torch.device("cuda", (device.index or 0) + local) if device.type == "cuda" else device


def given_place(config: RoleConfig, environment: Mapping[str, str]) -> RankPlace | None:
    """Return the place that `torchrun`, or rank 0, has given this process; None without one.

    Raises `ConfigurationError` when they are not as many as the configuration's `workers`.
    """
    if "RANK" not in environment or "WORLD_SIZE" not in environment:
        return None
    rank, count = int(environment["RANK"]), int(environment["WORLD_SIZE"])
    if count != config.workers:
        raise ConfigurationError(
            f"rank {rank} of {config.name} was started as one of {count}, 'workers' in its configuration says "
            f"{config.workers}: start as many (`torchrun --nproc-per-node {config.workers}`), or change 'workers'"
        )
    return RankPlace(rank, count, environment.get(MEETING, "env://")) if count > 1 else None


def _facts(config: RoleConfig, count: int) -> RankFacts:
    common = {"version": package_version(), "torch": torch.__version__, "parties": " ".join(config.party_names)}
    return RankFacts(config.name, {**common, "workers": str(count), "device": torch.device(config.device).type})


def _join(place: RankPlace, config: RoleConfig) -> None:
    """Meet the other ranks. Raises `EnvironmentProblem` when they do not all come."""
    device, seconds = place.device(config), config.connect_seconds
    if place.meeting != "env://":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # nobody else needs to reach them
    backend = "nccl" if device.type == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, place.meeting, timedelta(seconds=seconds), world_size=place.count, rank=place.rank)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise EnvironmentProblem(
            f"the {place.count} ranks of {config.name} did not meet in {seconds:g} s ({type(error).__name__}: {reason}): "
            "start all of them, with the same 'workers'"
        ) from None


def serve_rank(place: RankPlace, config: RoleConfig) -> None:
    """Be a rank other than 0, until rank 0 ends."""
    _join(place, config)
    serve(_facts(config, place.count), place.device(config))


class PartyRanks:
    """A party's ranks, seen from rank 0. ranks: None where the party is one process."""

    def __init__(self, ranks: Ranks | None = None, processes: Processes | None = None) -> None:
        self.ranks, self._processes = ranks, processes

    def failure(self) -> MpcacheError | None:
        """Return why the party cannot go on, None if it can."""
        if self.ranks is not None and self.ranks.lost is not None:
            return self.ranks.lost
        ended = (child.ended() for child in self._processes.children) if self._processes is not None else ()
        return next(filter(None, ended), None)


@contextmanager
def party_ranks(config: RoleConfig, path: Path, place: RankPlace | None) -> Iterator[PartyRanks]:
    """Give rank 0 its ranks, starting those that nobody has started. path: of the configuration file.

    On leaving they are told to end, and those that were started here are ended.
    """
    if config.workers == 1:
        yield PartyRanks()
        return
    if place is not None:
        _join(place, config)
        with _told(Ranks(_facts(config, place.count), place.device(config), config.deadline_seconds)) as ranks:
            yield PartyRanks(ranks)
        return
    scratch = Path(tempfile.mkdtemp(prefix="mpcache-ranks-"))
    try:
        yield from _started(config, path, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _started(config: RoleConfig, path: Path, scratch: Path) -> Iterator[PartyRanks]:
    """Start the other ranks on this machine, which share its cores."""
    place = RankPlace(0, config.workers, f"file://{scratch}/meeting")
    threads = int(os.environ.get("OMP_NUM_THREADS", max(1, processors() // place.count)))
    torch.set_num_threads(threads)
    own = {"WORLD_SIZE": str(place.count), MEETING: place.meeting, "OMP_NUM_THREADS": str(threads)}
    with Processes(scratch, own) as processes:
        for rank in range(1, place.count):
            words = ["party", "--supervised", "--config", str(path.resolve())]
            processes.start(f"rank {rank} of {config.name}", words, ["env", f"RANK={rank}"])

        def meet() -> Ranks:
            _join(place, config)
            return Ranks(_facts(config, place.count), place.device(config), config.deadline_seconds)

        with _told(processes.watched(meet)) as ranks:
            yield PartyRanks(ranks, processes)


@contextmanager
def _told(ranks: Ranks) -> Iterator[Ranks]:
    try:
        yield ranks
    finally:
        ranks.end()
