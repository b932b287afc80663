"""Memory that a layer takes on a device beside its weights and its cache: the most at once of each role, and by what.

`python -m tests.tools.device_memory --cached 1024` for a token, `--prefill 128` for a prompt, of a layer of LLaMA-2-7B. All
roles run on the stand-in device without data (`tests.tools.stand_in.patches.shapes_alone`): of any model, in seconds.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from unittest import mock

import torch
from torch import Tensor

from launch.measure.bench.inputs import BenchInputs
from launch.measure.bench.plan import BenchPlan
from launch.measure.bench.sources import step_name
from models.shapes import find_shape, with_positions
from mpc.ledger import Ledger
from tests.devices import STAND_IN, computing_on
from tests.tools.device_counts import run_roles
from tests.tools.stand_in.memory import Held, watching
from tests.tools.stand_in.patches import shapes_alone


def _share(self: BenchInputs, name: str, value: Tensor | None, shape: Sequence[int], *_: int) -> Tensor:
    return torch.zeros(1, dtype=torch.int64).expand(tuple(shape))


def _nothing(self: BenchInputs, *_: object) -> None:
    return None


def measured(plan: BenchPlan) -> dict[str, Held]:
    """Return what each role's memory was in the plan's last step."""
    out: dict[str, Held] = {}

    @contextmanager
    def watch(role: str, name: str, ledger: Ledger) -> Iterator[None]:
        if name == step_name(plan.repeat - 1):
            memory.begin()
        yield
        if name == step_name(plan.repeat - 1):
            out[role] = memory.role().copy()

    nothing = {name: _nothing for name in ("weight", "cached", "tokens")}
    with (
        mock.patch.multiple(BenchInputs, share=_share, **nothing),
        computing_on(STAND_IN),
        shapes_alone(),
        watching() as memory,
    ):
        run_roles(plan, watch)
    return out


def table(found: dict[str, Held], lines: int) -> list[str]:
    """Return the bytes as text."""
    out = []
    for role, held in found.items():
        out.append(f"{role}: {held.before / 1e6:.1f} MB before, {held.more / 1e6:.2f} MB more at the most")
        for what, size in held.by_line()[:lines]:
            out.append(f"  {size / 1e6:9.3f} MB  {what}")
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="llama-2-7b", help="a known shape")
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--vocabulary", type=int, default=256, help="entries of the token table")
    parser.add_argument("--cached", type=int, default=0, help="tokens in the cache before a token")
    parser.add_argument("--prefill", type=int, default=0, help="tokens of a prompt")
    parser.add_argument("--policy", default="full")
    parser.add_argument("--suite", default="masked")
    parser.add_argument("--parties", type=int, default=2)
    parser.add_argument("--lines", type=int, default=10)
    asked = parser.parse_args(arguments)
    changes = {"layers": asked.layers, "vocabulary": asked.vocabulary}
    plan = BenchPlan(
        architecture=with_positions(find_shape(asked.model).model_copy(update=changes), 4096).to_json(),
        suite=asked.suite,
        policy=asked.policy,
        parties=asked.parties,
        cached=asked.cached,
        prefill=asked.prefill,
        repeat=1,
        preprocessing=False,
        device="cuda:0",
    )
    print("\n".join(table(measured(plan), asked.lines)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
