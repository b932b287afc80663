"""No role imports torch's compiler, which takes seconds: shapes are computed on shape tensors and not on meta tensors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys
import torch
from launch.measure.bench.inputs import BenchInputs
from launch.measure.bench.plan import BenchPlan
from launch.measure.bench.sources import SharedInputs
from models.costs.program import NoInputs
from launch.measure.bench.worker import Segmented
from models.costs.tracing import Setting, trace_step
from models.shapes import SHAPES, with_layers
from launch.local.in_process import run_in_process

for suite, cached, prefill in (("masked", 5, 0), ("masked", 0, 5), ("crypten", 5, 0), ("crypten", 0, 5)):
    plan = BenchPlan(
        architecture=with_layers(SHAPES["tiny"], 1).to_json(), suite=suite, cached=cached, prefill=prefill, repeat=1
    )
    inputs = BenchInputs(plan.shape, plan.seed, plan.parties)

    def run(suite, source):
        with torch.inference_mode():
            for _, work in Segmented(plan, suite, source).segments():
                work()

    run_in_process(
        plan.parties,
        lambda channel, tape: run(plan.make_suite(tape, channel), SharedInputs(inputs, channel.party)),
        lambda tape: run(plan.make_suite(tape, None), NoInputs()),
    )
    trace_step(plan.shape, Setting(suite), cached, plan.tokens)
    print("torch._dynamo" in sys.modules)
"""


def test_parties_dealer_and_estimate() -> None:
    """A whole run in a fresh interpreter: both parties, the dealer, and the estimate of the same step."""
    found = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.split() == ["False"] * 4
