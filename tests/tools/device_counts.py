"""What a step asks of a device: kernels, copies and waits of each role, by line of the project; on the stand-in device.

`python -m tests.tools.device_counts --cached 1024` for a token, `--prefill 128` for a prompt, of GPT-2's layers and heads
with fewer channels: the counts are those of the whole model but for what is cut into pieces by size.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
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
from tests.devices import STAND_IN, computing_on
from tests.tools.stand_in.counts import Counts, Kind, counting

KINDS: tuple[Kind, ...] = ("kernel", "up", "down", "wait")
ROLES = {"party 0": "first party", "party 1": "last party", "dealer": "dealer"}


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


def counted(plan: BenchPlan) -> StepCounts:
    """Run the plan's step on the stand-in device, all roles in this process, and count the last repetition."""
    inputs = BenchInputs(plan.shape, plan.seed, plan.parties)
    out = StepCounts()

    def run(program: Segmented, role: str, counts: Counts, rounds: Callable[[], int]) -> None:
        with torch.inference_mode():
            for name, work in program.segments():
                before, first = counts.copy(), rounds()
                work()
                if name == step_name(plan.repeat - 1):
                    out.roles[role] = counts.copy().since(before)
                    out.rounds = max(out.rounds, rounds() - first)

    with computing_on(STAND_IN), counting() as counts:

        def party(channel: Any, tape: Any) -> None:
            program = Segmented(plan, plan.make_suite(tape, channel), SharedInputs(inputs, channel.party))
            run(program, f"party {channel.party}", counts, lambda: channel.ledger.total().rounds)

        def dealer(tape: Any) -> None:
            run(Segmented(plan, plan.make_suite(tape, None), NoInputs()), "dealer", counts, lambda: 0)

        run_in_process(plan.parties, party, dealer)
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
