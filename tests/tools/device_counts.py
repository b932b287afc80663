"""What a step asks of a device: kernels, copies and waits of each role, by line of the project; on the stand-in device.

`python -m tests.tools.device_counts --cached 1024` for a token, `--prefill 128` for a prompt, of GPT-2's layers and heads
with fewer channels: the counts are those of the whole model but for what is cut into pieces by size.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from launch.local.in_process import run_in_process
from launch.measure.bench.inputs import BenchInputs
from launch.measure.bench.plan import BenchPlan
from launch.measure.bench.sources import SharedInputs, step_name
from launch.measure.bench.worker import Segmented
from models.architecture import Architecture
from models.costs.program import NoInputs
from models.shapes import find_shape, with_positions
from mpc.ledger import Ledger
from protocols.suite import OutputShare
from tests.devices import STAND_IN, computing_on
from tests.tools.stand_in.counts import Counts, Kind, counting

KINDS: tuple[Kind, ...] = ("kernel", "up", "down", "wait")


@dataclass
class StepCounts:
    """Of the measured step, by role's thread; rounds of a party."""

    roles: dict[str, Counts] = field(default_factory=dict)
    rounds: int = 0


def narrow(name: str, channels: int, layers: int | None = None) -> Architecture:
    """Return a known shape with fewer channels in each head, and with fewer layers."""
    shape = find_shape(name)
    width = shape.heads * channels
    changes = {"width": width, "head_channels": channels, "feed_forward": 4 * width, "layers": layers or shape.layers}
    return with_positions(shape.model_copy(update=changes), 4096)


Watch = Callable[[str, str, Ledger], AbstractContextManager[None]]
"""What is around each segment: of a role, by its name, with the role's ledger."""


def run_roles(plan: BenchPlan, watch: Watch) -> list[OutputShare]:
    """Run all roles of a plan in this process; return the parties' shares of the logits."""
    inputs = BenchInputs(plan.shape, plan.seed, plan.parties)

    def run(program: Segmented, role: str, ledger: Ledger) -> OutputShare:
        output: Any = None
        with torch.inference_mode():
            for name, work in program.segments():
                with watch(role, name, ledger):
                    output = work()
        found: OutputShare = output
        return found

    def party(channel: Any, tape: Any) -> OutputShare:
        program = Segmented(plan, plan.make_suite(tape, channel), SharedInputs(inputs, channel.party))
        return run(program, f"party {channel.party}", channel.ledger)

    def dealer(tape: Any) -> None:
        run(Segmented(plan, plan.make_suite(tape, None), NoInputs()), "dealer", tape.ledger)

    return run_in_process(plan.parties, party, dealer)[0]


def counted(plan: BenchPlan) -> StepCounts:
    """Run the plan's step on the stand-in device, and count the last repetition."""
    out = StepCounts()

    @contextmanager
    def watch(role: str, name: str, ledger: Ledger) -> Iterator[None]:
        before, first = counts.copy(), ledger.total().rounds
        yield
        if name == step_name(plan.repeat - 1):
            out.roles[role] = counts.copy().since(before)
            out.rounds = max(out.rounds, ledger.total().rounds - first)

    with computing_on(STAND_IN), counting() as counts:
        run_roles(plan, watch)
    return out


def table(found: StepCounts, lines: int) -> list[str]:
    """Return the counts as text."""
    out = [f"rounds {found.rounds}"]
    for role, counts in found.roles.items():
        words = [f"{kind} {counts.total(role, kind)}" for kind in KINDS]
        moved = (counts.bytes(role, "up") + counts.bytes(role, "down")) / 1e6
        out.append(f"{role}: {', '.join(words)}; {moved:.2f} MB copied")
        for kind in KINDS:
            for at, times, size in counts.by_line(role, kind)[:lines]:
                out.append(f"  {kind:6} {times:7} {size / 1e6:9.3f} MB  {at}")
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="gpt2", help="a known shape")
    parser.add_argument("--channels", type=int, default=8, help="channels of a head")
    parser.add_argument("--layers", type=int, help="by default all")
    parser.add_argument("--cached", type=int, default=0, help="tokens in the cache before a token")
    parser.add_argument("--prefill", type=int, default=0, help="tokens of a prompt")
    parser.add_argument("--policy", default="full")
    parser.add_argument("--suite", default="masked")
    parser.add_argument("--parties", type=int, default=2)
    parser.add_argument("--lines", type=int, default=20, help="of each kind")
    asked = parser.parse_args(arguments)
    plan = BenchPlan(
        architecture=narrow(asked.model, asked.channels, asked.layers).to_json(),
        suite=asked.suite,
        policy=asked.policy,
        parties=asked.parties,
        cached=asked.cached,
        prefill=asked.prefill,
        repeat=1,
        preprocessing=False,
        device="cuda:0",
    )
    print("\n".join(table(counted(plan), asked.lines)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
