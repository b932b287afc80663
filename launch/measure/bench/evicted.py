"""The parent's side of a measured eviction: stages put together, and what stayed compared with plaintext."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from launch.measure.bench.eviction import IMPORTANCE, EvictionProgram
from launch.measure.bench.inputs import BenchInputs
from launch.measure.bench.plan import BenchPlan
from launch.measure.bench.run import Reports, read_reports, with_processes
from launch.measure.bench.sources import RealInputs, step_name
from models.costs.program import NoInputs
from mpc.errors import MpcacheError
from mpc.ledger import Cost, Ledger
from mpc.tape import CountingTape
from protocols.plain.suite import PlainSuite, tensor_of


class RowsDiffer(MpcacheError):
    """A row that stayed is none of the rows that there were, or they changed their order: a protocol is wrong."""

    code = "rows-differ"


@dataclass(frozen=True)
class StageResult:
    """One stage of one layer's eviction, medians over the repetitions. seconds: of the slowest party, with its messages;
    prepare_seconds: of preprocessing, needing no input; dealer_seconds: of dealing. Bytes as in `BenchResult.step_cost`."""

    name: str
    rounds: int
    online_bytes: int
    offline_bytes: int
    seconds: float
    prepare_seconds: float
    dealer_seconds: float


@dataclass(frozen=True)
class EvictionResult:
    """stages: in order. kept: rows that stayed of plan.cached; same_as_plaintext: how many of them float arithmetic keeps
    too (rounding can decide between importances that are equal but for 2^-13); max_error: of a row that stayed."""

    plan: BenchPlan
    ledgers: list[Ledger]
    stages: list[StageResult]
    kept: int
    same_as_plaintext: int
    max_error: float
    peak_rss_bytes: int
    dealer_peak_rss_bytes: int

    @property
    def after_prompt(self) -> list[StageResult]:
        """Return what comes on top of the prompt's attention, in every layer."""
        return [s for s in self.stages if s.name != IMPORTANCE]

    def to_json(self, shape: str) -> dict[str, Any]:
        """Return one flat record, of one layer."""
        plan = self.plan
        totals = {
            field: sum(getattr(s, field) for s in self.after_prompt)
            for field in ("rounds", "online_bytes", "offline_bytes", "seconds", "prepare_seconds", "dealer_seconds")
        }
        return {
            "eviction": True,
            "suite": plan.suite,
            "policy": plan.policy,
            "shape": shape,
            "layers": plan.shape.layers,
            "cached": plan.cached,
            "kept": self.kept,
            "parties": plan.parties,
            "per_layer": totals,
            "stages": [asdict(s) for s in self.stages],
            "same_as_plaintext": self.same_as_plaintext,
            "max_error": self.max_error,
            "repeat": plan.repeat,
            "threads": plan.threads,
            "device": plan.device,
            "options": plan.options,
            "preprocessing": plan.preprocessing,
            "peak_rss_bytes": self.peak_rss_bytes,
            "dealer_peak_rss_bytes": self.dealer_peak_rss_bytes,
        }


def run_eviction(plan: BenchPlan) -> EvictionResult:
    """Run the plan's processes. Raises `ProcessEnded` when one of them fails."""
    return with_processes(plan, _collected)


def predict_eviction(plan: BenchPlan) -> Ledger:
    """Predict the same stages on tensors without content; costs under "step 0/STAGE"."""
    suite = plan.make_suite(CountingTape(), None)
    program = EvictionProgram(plan.model_copy(update={"repeat": 1}), suite, NoInputs())
    with torch.inference_mode():
        for _, work in program.segments():
            work()
    return suite.ledger


def _collected(plan: BenchPlan, folder: Path) -> EvictionResult:
    found = read_reports(plan, folder)
    kept = found.output
    before, expected = _plain(plan)
    rows = _rows(kept, before)
    plain_rows = _rows(expected, before)
    exact = before[:, rows]
    prefix = f"{step_name(0)}/"
    names = list(dict.fromkeys(n.removeprefix(prefix) for n in found.dealer["seconds"] if n.startswith(prefix)))
    return EvictionResult(
        plan=plan,
        ledgers=found.ledgers,
        stages=[_stage(plan, found, name) for name in names],
        kept=len(rows),
        same_as_plaintext=len(set(rows) & set(plain_rows)),
        max_error=float((kept - exact).abs().max()),
        peak_rss_bytes=max(r["peak_rss_bytes"] for r in found.parties),
        dealer_peak_rss_bytes=found.dealer["peak_rss_bytes"],
    )


def _stage(plan: BenchPlan, found: Reports, name: str) -> StageResult:
    where = [f"{step_name(n)}/{name}" for n in range(plan.repeat)]
    totals = [stage_cost(ledger, where[0]) for ledger in found.ledgers]
    most = max(totals, key=lambda cost: cost.bytes_sent)
    return StageResult(
        name=name,
        rounds=most.rounds,
        online_bytes=most.bytes_sent,
        offline_bytes=max(cost.offline_bytes for cost in totals),
        seconds=statistics.median(found.slowest("seconds", w) for w in where),
        prepare_seconds=statistics.median(found.slowest("prepare_seconds", w) for w in where),
        dealer_seconds=statistics.median(found.dealer["seconds"][w] for w in where),
    )


def stage_cost(ledger: Ledger, where: str) -> Cost:
    """Return the sums of one ledger stage."""
    out = Cost()
    for (stage, _), cost in ledger.costs.items():
        if stage == where:
            out.add(cost)
    return out


def _plain(plan: BenchPlan) -> tuple[Tensor, Tensor]:
    """Return (keys before, keys that stay) in float32, as float64 [G, S, C]."""
    source = RealInputs(BenchInputs(plan.shape, plan.seed, plan.parties))
    program = EvictionProgram(plan.model_copy(update={"repeat": 1}), PlainSuite(torch.float32), source)
    with torch.inference_mode():
        for _, work in program.segments():
            work()
    return tensor_of(program.keys).double(), tensor_of(program.kept).double()


def _rows(kept: Tensor, before: Tensor) -> list[int]:
    """Return which of the rows before, [G, S, C], each row that stayed is: the nearest one. Raises `RowsDiffer`.

    For policies that are `one_set_for_all_heads`.
    """
    flat, old = (x.permute(1, 0, 2).flatten(1) for x in (kept, before))
    distances = torch.cdist(flat, old, p=float("inf"))
    nearest = distances.argmin(1)
    if bool((nearest.diff() <= 0).any()) or bool((distances.min(1).values > 1e-2).any()):
        raise RowsDiffer("rows that stayed after the eviction are not rows from before it, in their order")
    return [int(n) for n in nearest]
