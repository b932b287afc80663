"""What a party's second rank saves in a layer: `python -m tests.tools.rank_speed --hidden 2048 --prompt 64`.

One layer of a GPT-2 of that width, suite masked, two parties, all roles in this process with one thread each, party 0 with a
second rank and without, in turn. Counted are processor seconds of party 0, so that other work here is left out, and of the
other rank, which computes at the same time: with a core of its own each, a layer takes the larger one.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from transformers import GPT2Config

from launch.local.in_process import InProcessSuite
from models.architecture import Architecture
from models.checkpoint import read_architecture
from models.decoder import Decoder
from models.generation import GenerationPlan, generate
from models.loaded import load_weights
from models.policies import parse
from protocols.registry import SuiteSpec
from protocols.suite import OutputShare, Suite
from tests.mpc.rank_processes import Group, running

NEW_TOKENS = 3
MEASURED = "party 0"


def processor_seconds(pid: int) -> float:
    """Return what a process has used of processors so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Clock:
    """The endpoint of the generation: seconds of a processor by output, the prompt's first."""

    def __init__(self, other: int | None) -> None:
        self.own: list[float] = []
        self.others: list[float] = []
        self._other = other
        self.start()

    def start(self) -> None:
        """Begin to count."""
        self._began = time.thread_time()
        self._theirs = 0.0 if self._other is None else processor_seconds(self._other)

    def emit(self, step: int, share: OutputShare) -> bool:
        self.own.append(time.thread_time() - self._began)
        self.others.append(0.0 if self._other is None else processor_seconds(self._other) - self._theirs)
        self.start()
        return True

    def next_tokens(self, step: int, count: int) -> Tensor | None:
        return None

    def kept(self, step: int, rows: int) -> int:
        return rows

    def progress(self, stage: str, done: int, total: int) -> None:
        return None


@dataclass(frozen=True)
class Layer:
    """A model of one layer with small random weights, and how long its prompt is."""

    architecture: Architecture
    prompt: int

    def run(self, group: Group | None) -> Clock:
        """Generate; return party 0's clock."""
        clocks: dict[str, Clock] = {}

        def program(suite: Suite, party: int | None) -> None:
            name, measured = threading.current_thread().name, party == 0
            if group is not None and measured:
                suite.split_weights(group.ranks)
            shapes, random = self.architecture.weight_shapes(), torch.Generator().manual_seed(party or 0)

            def share(name: str) -> Tensor | None:
                return None if party is None else torch.randint(-900, 900, shapes[name], generator=random)

            weights = suite.run(load_weights(suite, self.architecture, share))
            decoder = Decoder(suite, self.architecture, weights, parse("full"))
            prompt = None if party is None else torch.full((self.prompt,), party, dtype=torch.int64)
            clock = clocks[name] = Clock(group.others[0].pid if group is not None and measured else None)
            suite.run(generate(suite, decoder, GenerationPlan(self.prompt, NEW_TOKENS), prompt, clock))

        with torch.no_grad():
            InProcessSuite(SuiteSpec("masked")).run(program)
        return clocks[MEASURED]


def described(hidden: int, folder: Path) -> Architecture:
    """Return one layer of GPT-2 of a width."""
    sizes = {"vocab_size": 512, "n_positions": 1024, "n_embd": hidden, "n_layer": 1, "n_head": hidden // 64}
    GPT2Config(**sizes, architectures=["GPT2LMHeadModel"]).save_pretrained(folder)
    found = read_architecture(folder)
    assert isinstance(found, Architecture)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=3)
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, running(Path(folder), 2, 600.0) as group:
        layer = Layer(described(given.hidden, Path(folder)), given.prompt)
        layer.run(None)
        found: dict[str, list[float]] = {"prompt": [], "token": []}
        for _ in range(given.pairs):
            alone, together = layer.run(None), layer.run(group)
            for what, at in (("prompt", slice(0, 1)), ("token", slice(1, None))):
                one, own, other = (median(times[at]) for times in (alone.own, together.own, together.others))
                found[what].append(max(own, other) / one)
                print(f"{what}: one rank {one:.3f} s, two {own:.3f} s and {other:.3f} s: {found[what][-1]:.2f}", flush=True)
    said = ", ".join(f"{what} {median(ratios):.2f}" for what, ratios in found.items())
    print(f"hidden {given.hidden}, prompt of {given.prompt}: {said} of one rank's seconds")


if __name__ == "__main__":
    main()
