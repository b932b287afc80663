"""How much faster many Ray dealers write tapes than one: `python -m tests.tools.ray_dealers` (`pip install ray`; minutes).

Deals what a cluster file says (`--config`; without it 4 dealers 60 tapes of a GPT-2 of 6 layers, 384 channels) in turn with
one dealer and with all of its workers, several times, on a Ray of this machine, and prints tapes a minute, from the begin of
the first tape to the end of the last, and with the start of the dealers. Beside them the load of the machine: on one that
others use too, only the ratio within a pair of runs says something.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from statistics import median
from types import ModuleType

import yaml
from transformers import GPT2Config

from launch.cli.commands.ray import order_of
from launch.cluster.connection import connected
from launch.cluster.dealers import RayDealers, Worker
from launch.cluster.settings import DealerSettings, load_cluster
from parties.tapes.deal import deal
from tests.parties.deployment import Deployment


def processor_seconds(pid: int) -> float:
    """Return what a process has used of processors so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rates(ray: ModuleType, dealers: DealerSettings) -> tuple[float, float, float]:
    """Return tapes a minute by ready dealers, and with their start and the load's expansion; processor seconds a tape."""
    first: list[float] = []
    used: dict[int, float] = {}
    spent: dict[int, float] = {}
    last = 0.0

    def event(what: str, worker: Worker) -> None:
        nonlocal last
        if what == "ready":
            used[worker.pid] = -processor_seconds(worker.pid)
        if what == "begun":
            first.append(time.perf_counter())
        if what == "written":
            last = time.perf_counter()
            spent[worker.pid] = used[worker.pid] + processor_seconds(worker.pid)

    began = time.perf_counter()
    dealt = deal(order_of(dealers), dealers.out, sessions=RayDealers(ray, dealers, event))
    ended = time.perf_counter()
    shutil.rmtree(dealers.out)
    tapes = len(dealt.session_seconds)
    whole = ended - began - dealt.load_seconds
    return 60 * tapes / (last - first[0]), 60 * tapes / whole, sum(spent.values()) / tapes


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--pairs", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mpcache-dealers-") as folder:
        compare(given.config or made(Path(folder)), given.pairs)


def made(root: Path) -> Path:
    """Write a deployment's dealer, a model's configuration and a cluster file; return the last one."""
    dealer = Deployment(root, 2).values("dealer", "dealer")
    (root / "dealer.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(dealer, default=str))))
    shape = {"n_layer": 6, "n_embd": 384, "n_head": 6, "vocab_size": 8000, "n_positions": 256}
    GPT2Config(bos_token_id=0, eos_token_id=0, **shape).save_pretrained(root / "model")
    what = {"config": "dealer.yaml", "model": "model", "prompts": [32], "tokens": 4, "sessions": 60, "out": "tapes"}
    (root / "cluster.yaml").write_text(yaml.safe_dump({"dealers": {**what, "workers": 4, "cpus": 0.5}}))
    return root / "cluster.yaml"


def compare(config: Path, pairs: int) -> None:
    """Deal in pairs, and print."""
    many = load_cluster(config).dealers
    assert many is not None
    one = many.model_copy(update={"workers": 1})
    found = []
    with connected("local", many.most_workers * many.cpus) as ray:
        for number in range(pairs):
            before = os.getloadavg()[0]
            (alone, alone_whole, alone_used), (together, whole, together_used) = rates(ray, one), rates(ray, many)
            found.append(together / alone)
            print(
                f"pair {number + 1}: 1 dealer {alone:.1f} tapes a minute (with its start {alone_whole:.1f}, "
                f"{alone_used:.2f} s of a core a tape), {many.most_workers} dealers {together:.1f} ({whole:.1f}, "
                f"{together_used:.2f} s): {together / alone:.2f} times; "
                f"{os.cpu_count()} cores, load of the machine before {before:.1f}",
                flush=True,
            )
    print(f"median {median(found):.2f} times")


if __name__ == "__main__":
    main()
