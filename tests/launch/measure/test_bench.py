"""Benchmarks: what is counted on the wire is what was predicted, logits are right, and the line of JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from launch.local.in_process import run_in_process
from launch.local.processes import ProcessEnded
from launch.measure.bench import run as bench_run
from launch.measure.bench.inputs import BenchInputs
from launch.measure.bench.plan import BenchPlan
from launch.measure.bench.run import BenchResult, CountsDiffer, counts, plain_logits, run_bench
from launch.measure.bench.sources import RealInputs, SharedInputs
from launch.measure.bench.worker import Segmented
from models.costs.program import NoInputs
from models.costs.tracing import STEP, Setting, trace_step
from models.shapes import SHAPES, with_layers
from mpc.fixed_point import decode
from mpc.ledger import Cost, Ledger
from mpc.ring import reduce
from protocols.plain.suite import PlainSuite, tensor_of
from protocols.suite import OutputShare
from tests.launch.conftest import Command

KEYS = (
    "suite policy shape layers cached parties rounds_per_layer bytes_sent_per_layer bytes_sent_total rounds_total "
    "offline_bytes_total seconds_median dealer_seconds max_logit_error peak_rss_bytes"
)
POLICIES = (
    "mpcache:preset=clusters,static=0.5,dynamic=0.3,fine=4,coarse=8,sinks=4,window=4,sharing=1",
    "shared:layers=2,apart=0|quest:budget=0.3,page=4,skip=0",
    "h2o:budget=0.3",
    "tova:budget=0.3",
    "snapkv:budget=0.5,window=6",
    "dynamic-top-k:budget=0.3",
)
SUITES = ("masked", "crypten", "crypten", "masked", "crypten", "masked")
TWO_LAYERS = with_layers(SHAPES["tiny"], 2)


def plan(**changes: Any) -> BenchPlan:
    """Two layers, 9 cached tokens, one repetition."""
    return BenchPlan(**{"architecture": TWO_LAYERS.to_json(), "suite": "masked", "cached": 9, "repeat": 1, **changes})


def predicted(made: BenchPlan) -> dict[tuple[str, str], tuple[int, int, int]]:
    """(part, operation) -> rounds, bytes sent, offline bytes of the party that receives corrections."""
    setting = Setting(made.suite, made.parties, made.policy, made.options)
    trace = trace_step(made.shape, setting, made.cached, made.tokens, drafted=made.draft > 0)
    return counts(trace.ledger, f"{STEP}/")


def check(result: BenchResult) -> None:
    """Every part and operation costs what was predicted, at every party and in every repetition."""
    wanted = predicted(result.plan)
    online = {key: (rounds, sent) for key, (rounds, sent, _) in wanted.items() if rounds or sent}
    for party, ledger in enumerate(result.ledgers):
        for repetition in range(result.plan.repeat):
            counted = counts(ledger, f"step {repetition}/")
            assert {key: (rounds, sent) for key, (rounds, sent, _) in counted.items() if rounds or sent} == online
            if party == result.plan.parties - 1:
                assert {key: cost[2] for key, cost in counted.items()} == {key: cost[2] for key, cost in wanted.items()}
    total = result.step_cost()
    assert total.rounds == sum(cost[0] for cost in wanted.values())
    assert total.bytes_sent == sum(cost[1] for cost in wanted.values())
    assert total.offline_bytes == sum(cost[2] for cost in wanted.values())
    assert result.max_logit_error < 0.02


def test_two_parties_over_grpc(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    results: list[BenchResult] = []
    monkeypatch.setattr(bench_run, "run_bench", lambda made: results.append(run_bench(made)) or results[-1])
    done = command("bench", "--shape", "tiny", "--layers", 2, "--cached", 9, "--repeat", 2, "--json")
    assert done.code == 0, done.err
    (result,) = results
    check(result)
    line = json.loads(done.out)
    assert set(KEYS.split()) <= set(line)
    wanted = predicted(result.plan)
    layer = [cost for (part, _), cost in wanted.items() if part.startswith("layer 1/")]
    assert line["suite"] == "masked"
    assert (line["policy"], line["shape"], line["layers"], line["cached"], line["parties"]) == ("full", "tiny", 2, 9, 2)
    assert line["rounds_per_layer"] == sum(cost[0] for cost in layer)
    assert line["bytes_sent_per_layer"] == sum(cost[1] for cost in layer)
    assert line["rounds_total"] == sum(cost[0] for cost in wanted.values())
    assert line["bytes_sent_total"] == sum(cost[1] for cost in wanted.values())
    assert line["offline_bytes_total"] == sum(cost[2] for cost in wanted.values())
    assert 0 < line["seconds_median"] < 600
    assert 0 < line["dealer_seconds"] < 600
    assert 1e8 < line["peak_rss_bytes"] < 4e9
    assert len(line["seconds"]) == line["repeat"] == 2


def test_three_parties_over_grpc() -> None:
    check(run_bench(plan(parties=3)))


@pytest.mark.parametrize(
    "changes",
    [
        {"suite": "crypten"},
        {"suite": "crypten", "parties": 3, "cached": 0, "prefill": 5},
        {"cached": 0, "prefill": 5},
        {"parties": 3, "cached": 40, "repeat": 2, "options": {"fraction_bits": 12}},
        *({"cached": 40, "policy": text, "suite": suite} for text, suite in zip(POLICIES, SUITES, strict=True)),
        {"cached": 40, "policy": POLICIES[0], "parties": 3},
        {"cached": 40, "draft": 2, "repeat": 2},
        {"cached": 40, "draft": 3, "policy": POLICIES[0], "suite": "crypten"},
    ],
)
def test_threads_of_one_process(changes: dict[str, Any]) -> None:
    """The same program without processes: other suites, prompts, numbers of parties."""
    made = plan(**changes)
    inputs = BenchInputs(made.shape, made.seed, made.parties)

    def run(program: Segmented) -> OutputShare:
        with torch.inference_mode():
            *_, output = (work() for _, work in program.segments())
        assert isinstance(output, OutputShare)
        return output

    def party(channel: Any, tape: Any) -> tuple[OutputShare, Ledger]:
        suite = made.make_suite(tape, channel)
        return run(Segmented(made, suite, SharedInputs(inputs, channel.party))), channel.ledger

    def dealer(tape: Any) -> None:
        run(Segmented(made, made.make_suite(tape, None), NoInputs()))

    found, _ = run_in_process(made.parties, party, dealer)
    shares = [output for output, _ in found]
    bits, fraction_bits = shares[0].bits, shares[0].fraction_bits
    logits = decode(reduce(torch.stack([s.share for s in shares]).sum(0), bits), fraction_bits, bits)
    error = float((logits - plain_logits(made)).abs().max())
    ledgers = [ledger for _, ledger in found]
    check(BenchResult(made, ledgers, [1.0], [1.0], [1.0], [1.0], [0.0], [0.0], 0, 1, 1, logits, error))


@pytest.mark.parametrize("parties", [2, 3])
def test_shares_add_up(parties: int) -> None:
    inputs = BenchInputs(TWO_LAYERS, 3, parties)
    value = inputs.weight("layers.0.attention.qkv.weight", (32, 96))
    shares = [inputs.share("w", value if p == parties - 1 else None, (32, 96), 16, p) for p in range(parties)]
    assert (decode(torch.stack(shares).sum(0), 16) - value).abs().max() <= 2.0**-17
    assert value[:, 32:].std() == pytest.approx(0.02, rel=0.1)
    assert value[:, :32].std() == pytest.approx(0.02 / 16**0.5, rel=0.1)
    assert inputs.cached("k", (2, 50, 16)).std() == pytest.approx(0.02 * 32**0.5, rel=0.1)
    assert torch.equal(value, BenchInputs(TWO_LAYERS, 3, parties).weight("layers.0.attention.qkv.weight", (32, 96)))
    assert not torch.equal(value, BenchInputs(TWO_LAYERS, 4, parties).weight("layers.0.attention.qkv.weight", (32, 96)))
    rows, indices = inputs.tokens(5, True), inputs.tokens(5, False)
    assert rows.shape == (5, 97)
    assert torch.equal(rows.argmax(-1), indices)
    assert torch.equal(rows.sum(-1), torch.ones(5, dtype=torch.int64))


def test_another_count_in_a_repetition_is_an_error() -> None:
    made = plan(repeat=2)
    ledger = Ledger({(f"step {n}/head", "linear"): Cost(bytes_sent=8 + n, rounds=1) for n in range(2)})
    with pytest.raises(CountsDiffer, match="party0 counted other rounds or bytes in repetition 1"):
        bench_run._check_counts(made, [ledger, ledger])


def test_a_process_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_run, "COMMAND", "no-such-command")
    with pytest.raises(ProcessEnded, match="ended with exit code 2"):
        run_bench(plan())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give either --cached N (one decode step) or --prefill N (one prompt)"),
        (("--cached", 3, "--prefill", 3), "give either --cached N"),
        (("--cached", 3, "--shape", "gpt9"), "model 'gpt9' is neither a file"),
        (("--cached", 3, "--layers", 13), "layers = 13: the shape has 12 layers"),
        (("--cached", 3, "--policy", "lucky"), "unknown cache policy 'lucky'; known: full"),
        (("--cached", 3, "--suite", "plain"), "suite 'plain' keeps nothing secret"),
        (("--cached", 3, "--suite-option", "speed=7"), "suite 'masked' has no option 'speed'"),
        (("--cached", 3, "--device", "abacus"), "device 'abacus' is unknown"),
    ],
)
def test_wrong_arguments(command: Command, arguments: tuple[Any, ...], message: str) -> None:
    done = command("bench", *arguments)
    assert done.code == 2
    assert message in " ".join(done.err.split())
    assert done.out == ""


def test_a_cache_that_slides_is_copied() -> None:
    """Where a step drops old tokens, each repetition still starts from the same cache."""
    sliding = TWO_LAYERS.model_copy(update={"windows": (6, None)})
    made = plan(architecture=sliding.to_json(), repeat=2)
    program = Segmented(made, PlainSuite(torch.float64), RealInputs(BenchInputs(sliding, made.seed, 2)))
    seen = []
    for name, work in program.segments():
        work()
        if name == "warm-up" or name.startswith("step"):
            seen.append(tensor_of(program.logits))
    assert len(seen) == 3
    assert all(torch.equal(logits, seen[0]) for logits in seen)
    trace = trace_step(sliding, Setting("masked"), 9).ledger
    full = trace_step(TWO_LAYERS, Setting("masked"), 9).ledger
    assert trace.total(f"{STEP}/layer 0/").bytes_sent < full.total(f"{STEP}/layer 0/").bytes_sent
    assert trace.total(f"{STEP}/layer 1/").bytes_sent == full.total(f"{STEP}/layer 1/").bytes_sent
