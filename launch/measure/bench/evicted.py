"""The parent's side of a measured eviction: stages put together, and what stayed compared with plaintext."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from launch.measure.bench.eviction import IMPORTANCE, EvictionProgram, changes_rows
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
    bytes_sent: int
    offline_bytes: int
    seconds: float
    prepare_seconds: float
    dealer_seconds: float


@dataclass(frozen=True)
class EvictionResult:
    """stages: in order. kept: rows that stayed of plan.cached, whole or as codecs hold them; same_as_plaintext: how many of
    them float arithmetic keeps in every head (rounding can decide between importances that are equal but for 2^-13), None
    for policies that change rows; max_error: of a row that stayed, or of a token's attention to all of them."""

    plan: BenchPlan
    ledgers: list[Ledger]
    stages: list[StageResult]
    kept: int
    same_as_plaintext: int | None
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
            for field in ("rounds", "bytes_sent", "offline_bytes", "seconds", "prepare_seconds", "dealer_seconds")
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
    program = _plain(plan)
    rows, same, error = _compared(program, found.output)
    prefix = f"{step_name(0)}/"
    names = list(dict.fromkeys(n.removeprefix(prefix) for n in found.dealer["seconds"] if n.startswith(prefix)))
    return EvictionResult(
        plan=plan,
        ledgers=found.ledgers,
        stages=[_stage(plan, found, name) for name in names],
        kept=rows,
        same_as_plaintext=same,
        max_error=error,
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
        bytes_sent=most.bytes_sent,
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


def _plain(plan: BenchPlan) -> EvictionProgram:
    """Return the program, run in float32."""
    source = RealInputs(BenchInputs(plan.shape, plan.seed, plan.parties))
    program = EvictionProgram(plan.model_copy(update={"repeat": 1}), PlainSuite(torch.float32), source)
    with torch.inference_mode():
        for _, work in program.segments():
            work()
    return program


def _compared(program: EvictionProgram, found: Tensor) -> tuple[int, int | None, float]:
    """Return what `EvictionResult` says of `kept`, `same_as_plaintext` and `max_error`. program: run in plaintext; found:
    what the same program put out on shares."""
    with torch.inference_mode():
        expected = program.output().share.double()
    if changes_rows(program.policy):
        return sum(segment.length for segment in program.layer.segments), None, float((found - expected).abs().max())
    before = tensor_of(program.keys).double()
    rows, plain = (_rows(x, before) for x in (found, expected))
    same = min(len(set(one) & set(other)) for one, other in zip(rows.tolist(), plain.tolist(), strict=True))
    exact = before.gather(1, rows[..., None].expand(found.shape))
    return rows.shape[1], same, float((found - exact).abs().max())


def _rows(kept: Tensor, before: Tensor) -> Tensor:
    """Return which of the rows before, [G, S, C], each row that stayed is: the nearest one of its head, [G, S']. Raises
    `RowsDiffer`."""
    distances = torch.cdist(kept, before, p=float("inf"))
    nearest = distances.argmin(-1)
    if bool((nearest.diff() <= 0).any()) or bool((distances.amin(-1) > 1e-2).any()):
        raise RowsDiffer("rows that stayed after the eviction are not rows from before it, in their order")
    return nearest
