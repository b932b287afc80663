"""What one cell of a matrix measures, as plain numbers for a result file."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from launch.measure.bench.cell import LOCALHOST, Cell
from launch.measure.bench.plan import BenchPlan, party_name
from launch.measure.bench.run import BenchResult, run_bench
from launch.measure.bench.sources import step_name
from launch.predict.networks import find_network
from launch.predict.planning import trace_token
from models.costs.estimation import estimate
from models.costs.tracing import STEP, Setting
from models.drafting import DraftPlan
from models.generation import check_verifiable
from models.learned import with_learned
from models.policies import parse
from models.shapes import find_shape, with_layers, with_positions
from mpc.ledger import Cost, Ledger
from mpc.tape import CountingTape

#: A party keeps a weight's masked form and its share of the mask, 8 bytes each, and reads both for every token.
WEIGHT_BYTES = 16
PARTS = {"embedding": "embedding", "attention": "attention", "mlp": "feed-forward", "head": "head", "choice": "choice"}


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Return the median, least, greatest, and all values in order."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "all": list(values)}


def bench_plan(cell: Cell) -> BenchPlan:
    """Return the plan of a "token" or "prompt" cell. Raises `ConfigurationError` for what cannot work, before a process
    starts."""
    architecture = find_shape(cell.model)
    architecture = architecture if cell.layers is None else with_layers(architecture, cell.layers)
    architecture = with_positions(architecture, cell.prompt + cell.new_tokens + cell.draft)
    policy = parse(cell.policy)
    architecture = with_learned(architecture, policy.weight_shapes(architecture))
    policy.check(architecture, cell.prompt)
    if cell.draft:
        check_verifiable("greedy", policy, DraftPlan(cell.draft))
    decode = cell.measure not in ("prompt", "estimate-prompt")
    plan = BenchPlan(
        architecture=architecture.to_json(),
        suite=cell.suite,
        policy=cell.policy,
        options=cell.options,
        parties=cell.parties,
        cached=cell.prompt if decode else 0,
        prefill=0 if decode else cell.prompt,
        draft=cell.draft,
        repeat=cell.repeat,
        threads=cell.threads,
        preprocessing=cell.preprocessing,
        device=cell.device,
        seed=cell.seed,
    )
    plan.make_suite(CountingTape(), None)
    return plan


def part_of(stage: str) -> str:
    """Return the model's part that a ledger's stage belongs to: "attention" of "step 0/layer 3/attention"."""
    return PARTS.get(stage.rpartition("/")[2], "other")


def by_part(ledger: Ledger, prefix: str) -> dict[str, dict[str, float]]:
    """Return the rounds and bytes of each part of the model, over all layers."""
    out: dict[str, dict[str, float]] = {}
    for (stage, _), cost in ledger.costs.items():
        if stage.startswith(prefix):
            entry = out.setdefault(part_of(stage), _zero())
            entry["rounds"] += cost.rounds
            entry["bytes_sent"] += cost.bytes_sent
            entry["offline_bytes"] += cost.offline_bytes
    return out


def part_seconds(stage_seconds: Mapping[str, float], repeat: int) -> dict[str, float]:
    """Return the median seconds of each part of the model over the repetitions of a step.

    >>> part_seconds({"step 0/layer 0/attention": 9.0, "step 1/layer 0/attention": 2.0, "step 2/layer 0/attention": 3.0}, 3)
    {'attention': 3.0}
    """
    found: dict[str, list[float]] = {}
    for number in range(repeat):
        sums: dict[str, float] = {}
        for stage, value in stage_seconds.items():
            if stage.startswith(f"{step_name(number)}/"):
                sums[part_of(stage)] = sums.get(part_of(stage), 0.0) + value
        for part, value in sums.items():
            found.setdefault(part, []).append(value)
    return {part: statistics.median(values) for part, values in found.items()}


def _zero() -> dict[str, float]:
    return {"rounds": 0, "bytes_sent": 0, "offline_bytes": 0, "seconds": 0.0}


def by_operation(ledger: Ledger, prefix: str) -> dict[str, dict[str, int]]:
    """Return the rounds and bytes of each operation."""
    return {
        name: {"rounds": cost.rounds, "bytes_sent": cost.bytes_sent, "offline_bytes": cost.offline_bytes}
        for name, cost in ledger.by_operation(prefix).items()
    }


def measure_step(cell: Cell, memory_bytes_per_second: float) -> dict[str, Any]:
    """Measure a "token" or "prompt" cell, in real processes. Raises what `run_bench` raises."""
    return step_record(cell, run_bench(bench_plan(cell), cell.network), memory_bytes_per_second)


def measure_estimate(cell: Cell) -> dict[str, Any]:
    """Predict one decode step of an "estimate" cell, or the mean of several: the session's program on tensors without
    content. No seconds."""
    plan = bench_plan(cell)
    setting = Setting(cell.suite, cell.parties, cell.policy, cell.options)
    ledger = trace_token(plan.shape, setting, cell.prompt, cell.new_tokens)
    prefix = f"{STEP}/"
    total, layers = ledger.total(prefix), ledger.total(f"{prefix}layer ")

    def mean(count: float) -> float:
        exact, rest = divmod(count, cell.new_tokens)
        return count / cell.new_tokens if rest else exact

    def means(costs: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
        return {name: {what: mean(value) for what, value in cost.items()} for name, cost in costs.items()}

    count = plan.shape.layers * cell.new_tokens
    return {
        "predicted": True,
        "rounds": mean(total.rounds),
        "bytes_sent": {"party0": mean(total.bytes_sent)},
        "offline_bytes": {"party0": mean(total.offline_bytes)},
        "per_layer": {"rounds": layers.rounds / count, "bytes_sent": layers.bytes_sent / count},
        "parts": means(by_part(ledger, prefix)),
        "operations": means(by_operation(ledger, prefix)),
    }


def measure_prompt_estimate(cell: Cell) -> dict[str, Any]:
    """Predict the prompt of an "estimate-prompt" cell up to its first token, as `mpcache estimate` does. No seconds."""
    plan = bench_plan(cell)
    found = estimate(plan.shape, Setting(cell.suite, cell.parties, cell.policy, cell.options), cell.prompt, 1)
    parts: dict[str, dict[str, float]] = {}
    operations: dict[str, dict[str, float]] = {}
    for (where, operation, what), value in found.first.items():
        if what in ("rounds", "bytes_sent", "offline_bytes"):
            for table, name in ((parts, PARTS.get(where, "other")), (operations, operation)):
                entry = table.setdefault(name, {"rounds": 0, "bytes_sent": 0, "offline_bytes": 0})
                entry[what] += value
    rounds, sent, dealt = (found.first.total(name) for name in ("rounds", "bytes_sent", "offline_bytes"))
    layers = [parts[name] for name in ("attention", "feed-forward")]
    count = plan.shape.layers
    return {
        "predicted": True,
        "rounds": rounds,
        "bytes_sent": {"party0": sent},
        "offline_bytes": {"party0": dealt},
        "per_layer": {name: sum(part[name] for part in layers) / count for name in ("rounds", "bytes_sent")},
        "parts": parts,
        "operations": operations,
    }


def step_record(cell: Cell, result: BenchResult, memory_bytes_per_second: float) -> dict[str, Any]:
    """Return the result of a step as plain numbers. Bytes of a party are those of one step."""
    prefix = f"{step_name(0)}/"
    totals = [ledger.total(prefix) for ledger in result.ledgers]
    heavy = max(range(len(totals)), key=lambda n: totals[n].bytes_sent)
    offline, ledger = max(range(len(totals)), key=lambda n: totals[n].offline_bytes), result.ledgers[heavy]
    parts, operations = by_part(ledger, prefix), by_operation(ledger, prefix)
    for part, cost in by_part(result.ledgers[offline], prefix).items():
        parts[part]["offline_bytes"] = cost["offline_bytes"]
    for part, value in part_seconds(result.stage_seconds[heavy], result.plan.repeat).items():
        if part in parts:
            parts[part]["seconds"] = value
    for name, count in by_operation(result.ledgers[offline], prefix).items():
        operations[name]["offline_bytes"] = count["offline_bytes"]
    seconds = statistics.median(result.seconds)
    weights = WEIGHT_BYTES * result.plan.shape.parameters()
    names = [party_name(n) for n in range(len(totals))]
    return {
        "rounds": totals[0].rounds,
        "bytes_sent": dict(zip(names, (t.bytes_sent for t in totals), strict=True)),
        "bytes_received": dict(zip(names, (t.bytes_received for t in totals), strict=True)),
        "offline_bytes": dict(zip(names, (t.offline_bytes for t in totals), strict=True)),
        "per_layer": _per_layer(result, prefix),
        "seconds": spread(result.seconds),
        "cpu_seconds": spread(result.cpu_seconds),
        "prepare_seconds": spread(result.prepare_seconds),
        "dealer_seconds": spread(result.dealer_seconds),
        "dealer_cpu_seconds": spread(result.dealer_cpu_seconds),
        "tokens_per_second": 1 / seconds,
        "peak_memory_bytes": {"party": result.peak_rss_bytes, "dealer": result.dealer_peak_rss_bytes},
        "memory_bandwidth": bandwidth(weights, seconds, memory_bytes_per_second),
        "network_bandwidth": network_share(cell, totals[heavy], seconds),
        "parts": parts,
        "operations": operations,
        "max_logit_error": result.max_logit_error,
    }


def _per_layer(result: BenchResult, prefix: str) -> dict[str, float]:
    """Return the mean over the layers of one party's rounds and bytes, of the party that sends most."""
    layers = result.plan.shape.layers
    sums = [ledger.total(f"{prefix}layer ") for ledger in result.ledgers]
    most = max(sums, key=lambda cost: cost.bytes_sent)
    return {"rounds": most.rounds / layers, "bytes_sent": most.bytes_sent / layers}


def bandwidth(read: float, seconds: float, most: float) -> dict[str, float]:
    """Return the bytes of weights that a party must read for the step, and the share of this machine's memory bandwidth (one
    thread) that this alone amounts to."""
    return {"weight_bytes": read, "share": read / seconds / most}


def network_share(cell: Cell, cost: Cost, seconds: float) -> dict[str, Any]:
    """Return what one party sends, in bits a second, and as a share of the network's rate where that is known."""
    rate = cost.bytes_sent * 8 / seconds
    known = None if cell.network == LOCALHOST else rate / find_network(cell.network).bandwidth
    return {"bits_per_second": rate, "share": known}
