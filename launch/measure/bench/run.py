"""The parent's side of a benchmark: processes started, their reports put together, logits compared with float arithmetic."""

from __future__ import annotations

import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor

from launch.lab.lab import Lab
from launch.local.deployment import CERTIFICATE_DAYS
from launch.local.processes import Child, ProcessEnded, Processes
from launch.measure.bench.cell import LOCALHOST
from launch.measure.bench.inputs import BenchInputs
from launch.measure.bench.plan import DEALER, BenchPlan
from launch.measure.bench.sources import RealInputs, step_name
from launch.measure.bench.trace import Timelines, name_of
from launch.measure.bench.transport import CERTIFICATES
from launch.measure.bench.worker import Segmented
from launch.terminal.console import Settings
from mpc.errors import MpcacheError
from mpc.fixed_point import decode
from mpc.ledger import Cost, Ledger
from mpc.ring import reduce
from mpc.timeline import Span
from parties.identity.certificates import create_deployment
from protocols.plain.suite import PlainSuite, tensor_of

R = TypeVar("R")

COMMAND = "bench-process"
POLL_SECONDS = 0.05
GRACE_SECONDS = 5.0


class CountsDiffer(MpcacheError):
    """Two repetitions of a step, or two parties, exchanged different numbers of bytes: a protocol depends on data."""

    code = "counts-differ"


@dataclass(frozen=True)
class BenchResult:
    """What was measured. ledgers: of each party; seconds, dealer_seconds, prepare_seconds: of each measured step (its
    slowest party); stage_seconds: of each party, by ledger stage. prepared_bytes: the most that a party's preprocessing
    held. timelines: of the last step, where the plan asks for them."""

    plan: BenchPlan
    ledgers: list[Ledger]
    seconds: list[float]
    cpu_seconds: list[float]
    dealer_seconds: list[float]
    dealer_cpu_seconds: list[float]
    prepare_seconds: list[float]
    prepare_cpu_seconds: list[float]
    prepared_bytes: int
    peak_rss_bytes: int
    dealer_peak_rss_bytes: int
    logits: Tensor = field(repr=False)
    max_logit_error: float
    stage_seconds: list[dict[str, float]] = field(default_factory=list, repr=False)
    timelines: Timelines = field(default_factory=Timelines, repr=False)

    def step_cost(self, part: str = "") -> Cost:
        """Return the cost of one step: rounds and bytes of the party that sends most, offline bytes of the party that
        receives most."""
        prefix = f"{step_name(0)}/{part}"
        totals = [ledger.total(prefix) for ledger in self.ledgers]
        out = max(totals, key=lambda cost: cost.bytes_sent)
        out.offline_bytes = max(cost.offline_bytes for cost in totals)
        return out

    @property
    def layer(self) -> int:
        """Return the layer whose cost is reported as a layer's: the middle one."""
        return self.plan.shape.layers // 2

    def to_json(self, shape: str) -> dict[str, Any]:
        """Return one flat record. Bytes are payload bytes that one party sends to the others together, in one step."""
        plan, layer, total = self.plan, self.step_cost(f"layer {self.layer}/"), self.step_cost()
        return {
            "suite": plan.suite,
            "policy": plan.policy,
            "shape": shape,
            "layers": plan.shape.layers,
            "cached": plan.cached,
            "parties": plan.parties,
            "rounds_per_layer": layer.rounds,
            "bytes_sent_per_layer": layer.bytes_sent,
            "bytes_sent_total": total.bytes_sent,
            "rounds_total": total.rounds,
            "offline_bytes_total": total.offline_bytes,
            "seconds_median": statistics.median(self.seconds),
            "dealer_seconds": statistics.median(self.dealer_seconds),
            "prepare_seconds": statistics.median(self.prepare_seconds),
            "max_logit_error": self.max_logit_error,
            "peak_rss_bytes": self.peak_rss_bytes,
            "prefill": plan.prefill,
            "repeat": plan.repeat,
            "threads": plan.threads,
            "device": plan.device,
            "options": plan.options,
            "seconds": self.seconds,
            "cpu_seconds_median": statistics.median(self.cpu_seconds),
            "dealer_cpu_seconds": statistics.median(self.dealer_cpu_seconds),
            "prepare_cpu_seconds": statistics.median(self.prepare_cpu_seconds),
            "preprocessing": plan.preprocessing,
            "prepared_bytes": self.prepared_bytes,
            "dealer_peak_rss_bytes": self.dealer_peak_rss_bytes,
        }


def run_bench(plan: BenchPlan, network: str = LOCALHOST) -> BenchResult:
    """Run the plan's processes and read what they measured. network: on this machine as it is, or a name or numbers that
    network namespaces are shaped to. Raises `ProcessEnded` when one of them fails."""
    return with_processes(plan, _collected, network)


def with_processes(plan: BenchPlan, collect: Callable[[BenchPlan, Path], R], network: str = LOCALHOST) -> R:
    """Run the plan's processes, then collect(plan, folder) from their reports. Raises `ProcessEnded`."""
    folder = Path(tempfile.mkdtemp(prefix="mpcache-bench-"))
    try:
        create_deployment(folder / CERTIFICATES, {**dict.fromkeys(plan.names, "party"), DEALER: "dealer"}, CERTIFICATE_DAYS)
        names = [DEALER, *plan.names]
        with nullcontext() if network == LOCALHOST else Lab(network, names) as lab:
            plan = plan if lab is None else plan.model_copy(update={"hosts": lab.addresses})
            plan.write(folder)
            _run_processes(plan, folder, lab)
        return collect(plan, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run_processes(plan: BenchPlan, folder: Path, lab: Lab | None) -> None:
    threads = str(plan.threads)
    flags = ["--debug"] if Settings.debug else []
    with Processes(folder, {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}) as processes:
        started = [
            processes.start(
                name,
                [*flags, COMMAND, "--folder", str(folder), "--name", name],
                [] if lab is None else lab.command(name, []),
            )
            for name in [DEALER, *plan.names]
        ]
        while None in (codes := [child.exit_code() for child in started]) and not any(codes):
            time.sleep(POLL_SECONDS)
        if any(codes):
            limit = time.monotonic() + GRACE_SECONDS  # whoever lost a peer reports that; the peer's own error says more
            while None in [child.exit_code() for child in started] and time.monotonic() < limit:
                time.sleep(POLL_SECONDS)
            raise _first_failure(started)


def _first_failure(children: list[Child]) -> ProcessEnded:
    """Return the failure that explains the others."""
    failures = [error for child in children if (error := child.ended()) is not None and error.exit_code != 0]
    return min(failures, key=lambda error: error.last_error.startswith("error [peer"))


@dataclass(frozen=True)
class Reports:
    """What processes left: each party's report, the dealer's, ledgers, and the program's output put together."""

    parties: list[dict[str, Any]]
    dealer: dict[str, Any]
    ledgers: list[Ledger]
    output: Tensor

    def slowest(self, kind: str, name: str) -> float:
        """Return the seconds of a segment at its slowest party; 0 where it has none of this kind."""
        return float(max(report[kind].get(name, 0.0) for report in self.parties))


def read_reports(plan: BenchPlan, folder: Path) -> Reports:
    """Read them, and check that repetitions and parties exchanged the same."""
    reports = [json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in plan.names]
    dealer = json.loads((folder / f"{DEALER}.json").read_text(encoding="utf-8"))
    ledgers = [
        Ledger({(where, op): Cost(**cost) for where, op, cost in report["ledger"]}, report["seconds"]) for report in reports
    ]
    _check_counts(plan, ledgers)
    shares = [load_file(folder / f"{name}.safetensors")["logits"] for name in plan.names]
    bits, fraction_bits = reports[0]["bits"], reports[0]["fraction_bits"]
    output = decode(reduce(torch.stack(shares).sum(0), bits), fraction_bits, bits)
    return Reports(reports, dealer, ledgers, output)


def _collected(plan: BenchPlan, folder: Path) -> BenchResult:
    found = read_reports(plan, folder)
    names = [step_name(n) for n in range(plan.repeat)]
    return BenchResult(
        plan=plan,
        ledgers=found.ledgers,
        stage_seconds=[report["stage_seconds"] for report in found.parties],
        seconds=[found.slowest("seconds", name) for name in names],
        cpu_seconds=[found.slowest("cpu_seconds", name) for name in names],
        dealer_seconds=[found.dealer["seconds"][name] for name in names],
        dealer_cpu_seconds=[found.dealer["cpu_seconds"][name] for name in names],
        prepare_seconds=[found.slowest("prepare_seconds", name) for name in names],
        prepare_cpu_seconds=[found.slowest("prepare_cpu_seconds", name) for name in names],
        prepared_bytes=max(r["prepared_bytes"] for r in found.parties),
        peak_rss_bytes=max(r["peak_rss_bytes"] for r in found.parties),
        dealer_peak_rss_bytes=found.dealer["peak_rss_bytes"],
        logits=found.output,
        max_logit_error=float((found.output - plain_logits(plan)).abs().max()),
        timelines=_timelines(found),
    )


def _timelines(found: Reports) -> Timelines:
    def spans(report: dict[str, Any], phase: str) -> list[Span]:
        return [Span(*span) for span in report["spans"].get(phase, [])]

    most = max(found.ledgers, key=lambda ledger: ledger.total(f"{step_name(0)}/").offline_bytes)
    dealt: dict[str, int] = {}
    for (where, op), (_, _, offline) in counts(most, f"{step_name(0)}/").items():
        dealt[name_of(where, op)] = dealt.get(name_of(where, op), 0) + offline
    before, online = ([spans(report, phase) for report in found.parties] for phase in ("before", "online"))
    return Timelines(spans(found.dealer, "dealer"), before, online, dealt)


def _check_counts(plan: BenchPlan, ledgers: list[Ledger]) -> None:
    """Check that a step costs the same whatever its data and randomness are."""
    for name, ledger in zip(plan.names, ledgers, strict=True):
        first = counts(ledger, f"{step_name(0)}/")
        for n in range(1, plan.repeat):
            if counts(ledger, f"{step_name(n)}/") != first:
                raise CountsDiffer(f"{name} counted other rounds or bytes in repetition {n} than in repetition 0")


def counts(ledger: Ledger, prefix: str) -> dict[tuple[str, str], tuple[int, int, int]]:
    """Return (part, operation) -> (rounds, bytes sent, offline bytes) of the stages that start with `prefix`."""
    out = {}
    for (where, op), cost in ledger.costs.items():
        if where.startswith(prefix):
            out[where.removeprefix(prefix), op] = (cost.rounds, cost.bytes_sent, cost.offline_bytes)
    return out


def plain_logits(plan: BenchPlan) -> Tensor:
    """Return the logits of the same step in float32, float64 [1, V]."""
    suite = PlainSuite(torch.float32)
    program = Segmented(
        plan.model_copy(update={"repeat": 0}), suite, RealInputs(BenchInputs(plan.shape, plan.seed, plan.parties))
    )
    with torch.inference_mode():
        for _, work in program.segments():
            work()
    return tensor_of(program.logits).to(torch.float64)
