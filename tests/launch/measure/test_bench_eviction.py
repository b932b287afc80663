"""A measured eviction: its stages are the policy's own, cost what was predicted, and keep the right rows in their order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from launch.local.in_process import run_in_process
from launch.measure.bench import evicted as module
from launch.measure.bench.evicted import EvictionResult, RowsDiffer, predict_eviction, run_eviction, stage_cost
from launch.measure.bench.eviction import EvictionProgram
from launch.measure.bench.inputs import BenchInputs
from launch.measure.bench.plan import BenchPlan
from launch.measure.bench.sources import RealInputs, SharedInputs
from models.architecture import Architecture
from models.attention import observe
from models.cache import KVCache
from models.costs.program import NoInputs, Source
from models.costs.tracing import Setting
from models.policies import parse
from models.shapes import SHAPES, with_layers
from mpc.fixed_point import decode
from mpc.ledger import Cost, Ledger
from mpc.ring import reduce
from protocols.plain.suite import PlainSuite, tensor_of
from protocols.suite import OutputShare, Suite
from tests.launch.conftest import Command

POLICY = "mpcache:preset=clusters,static=0.5,dynamic=0.3,fine=4,coarse=8,sinks=4,window=4,sharing=1"
STAGES = ["importance", "keep-set", "compaction", "masking again", "clusters"]
TOKENS, KEPT = 64, 32


def plan(**changes: Any) -> BenchPlan:
    """One layer of two, 64 cached tokens."""
    shape = with_layers(SHAPES["tiny"], 2).to_json()
    given = {"architecture": shape, "suite": "masked", "policy": POLICY, "cached": TOKENS, "eviction": True, "repeat": 2}
    return BenchPlan(**{**given, **changes})


def exchanged(cost: Cost) -> tuple[int, int]:
    return cost.rounds, cost.bytes_sent


def check(made: BenchPlan, ledgers: list[Ledger]) -> None:
    """Every stage at every party in every repetition, and dealt bytes at the party that receives corrections."""
    predicted = predict_eviction(made)
    for name in STAGES:
        wanted = stage_cost(predicted, f"step 0/{name}")
        assert wanted.offline_bytes > 0
        for repetition in range(made.repeat):
            found = [stage_cost(ledger, f"step {repetition}/{name}") for ledger in ledgers]
            assert all(cost.rounds == wanted.rounds for cost in found)
            assert max(cost.bytes_sent for cost in found) == wanted.bytes_sent
            assert found[-1].offline_bytes == wanted.offline_bytes


def by_hand(made: BenchPlan) -> tuple[Tensor, list[int]]:
    """(keys before [G, S, C], tokens that stay), with plain tensors, and no policy."""
    a, inputs = made.shape, BenchInputs(made.shape, made.seed, made.parties)
    keys = inputs.cached("keys", (a.kv_heads, TOKENS, a.head_channels)).double()
    observed = round(0.2 * TOKENS)
    q = inputs.cached("queries", (a.kv_heads, a.group * observed, a.head_channels)).double()
    q = q.reshape(a.kv_heads, a.group, observed, a.head_channels)
    total = torch.zeros(TOKENS, dtype=torch.float64)
    for group in range(a.kv_heads):
        for head in range(a.group):
            for row in range(observed):
                seen = TOKENS - observed + row + 1
                total[:seen] += torch.softmax(keys[group, :seen] @ q[group, head, row], 0)
    inner = total[4 : TOKENS - 4]
    best = (inner.argsort(descending=True, stable=True)[: KEPT - 8] + 4).tolist()
    return keys, [*range(4), *sorted(best), *range(TOKENS - 4, TOKENS)]


def test_in_processes_over_grpc(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    results: list[EvictionResult] = []
    monkeypatch.setattr(module, "run_eviction", lambda made: results.append(run_eviction(made)) or results[-1])
    arguments = ("--shape", "tiny", "--layers", 2, "--cached", TOKENS, "--eviction", "--policy", POLICY, "--repeat", 2)
    done = command("bench", *arguments)
    assert done.code == 0, done.err
    (result,) = results
    check(result.plan, result.ledgers)
    line = json.loads(done.out.splitlines()[-1])
    assert [s["name"] for s in line["stages"]] == STAGES
    assert (line["eviction"], line["layers"], line["cached"], line["kept"]) == (True, 2, TOKENS, KEPT)
    assert line["max_error"] < 1e-3
    assert line["same_as_plaintext"] >= KEPT - 1
    for field in ("rounds", "bytes_sent", "offline_bytes"):
        assert line["per_layer"][field] == sum(s[field] for s in line["stages"][1:])
    assert all(s["seconds"] > 0 and s["dealer_seconds"] > 0 for s in line["stages"])
    assert "which all cost the same: 32 of 64 tokens stay" in " ".join(done.out.split())


@pytest.mark.parametrize(("suite", "parties"), [("crypten", 2), ("masked", 3)])
def test_threads_of_one_process(suite: str, parties: int) -> None:
    made = plan(suite=suite, parties=parties)
    inputs = BenchInputs(made.shape, made.seed, parties)

    def run(program: EvictionProgram) -> OutputShare:
        with torch.inference_mode():
            *_, output = (work() for _, work in program.segments())
        assert isinstance(output, OutputShare)
        return output

    def party(channel: Any, tape: Any) -> tuple[OutputShare, Ledger]:
        own = made.make_suite(tape, channel)
        return run(EvictionProgram(made, own, SharedInputs(inputs, channel.party))), channel.ledger

    found, _ = run_in_process(
        parties, party, lambda tape: run(EvictionProgram(made, made.make_suite(tape, None), NoInputs()))
    )
    check(made, [ledger for _, ledger in found])
    shares = [output for output, _ in found]
    total = reduce(torch.stack([s.share for s in shares]).sum(0), shares[0].bits)
    kept = decode(total, shares[0].fraction_bits, shares[0].bits)
    keys, stay = by_hand(made)
    assert module._rows(kept, keys).tolist() == [stay] * keys.shape[0]
    assert (kept - keys[:, stay]).abs().max() < 1e-3


def compared(made: BenchPlan) -> tuple[int, int | None, float]:
    """What parties in threads are left with, against plaintext."""
    inputs = BenchInputs(made.shape, made.seed, made.parties)

    def run(suite: Suite, source: Source) -> OutputShare:
        with torch.inference_mode():
            *_, output = (work() for _, work in EvictionProgram(made, suite, source).segments())
        assert isinstance(output, OutputShare)
        return output

    def party(channel: Any, tape: Any) -> OutputShare:
        return run(made.make_suite(tape, channel), SharedInputs(inputs, channel.party))

    found, _ = run_in_process(made.parties, party, lambda tape: run(made.make_suite(tape, None), NoInputs()))
    total = reduce(torch.stack([s.share for s in found]).sum(0), found[0].bits)
    return module._compared(module._plain(made), decode(total, found[0].fraction_bits, found[0].bits))


@pytest.mark.parametrize(
    ("policy", "kept", "same"),
    [
        ("think:keep=0.5,window=8|full", 64, None),
        ("think:keep=0.5,window=8|snapkv:budget=0.5,window=8", 32, None),
        ("mikv:budget=0.25,fraction_bits=4", 64, None),
        ("merge|snapkv:budget=0.5,window=8", 32, None),
        ("snapkv:budget=0.5,window=8", 32, 32),
    ],
)
def test_what_other_policies_leave(policy: str, kept: int, same: int | None) -> None:
    """Rows of each head, or where they were changed the attention to them."""
    rows, found, error = compared(plan(policy=policy, repeat=1))
    assert (rows, found) == (kept, same)
    assert error < 2e-2
    names = {name.removeprefix("step 0/") for name, _ in predict_eviction(plan(policy=policy)).costs if "step 0" in name}
    assert ("holding" in names) == policy.startswith("think")


def test_plaintext_keeps_what_the_definition_says() -> None:
    made = plan(repeat=1)
    program = EvictionProgram(made, PlainSuite(torch.float64), RealInputs(BenchInputs(made.shape, made.seed, 2)))
    for _, work in program.segments():
        work()
    keys, stay = by_hand(made)
    assert torch.equal(tensor_of(program.layer.keys_and_values()[0]), keys[:, stay])


def _layer(a: Architecture, setting: Setting, prompt: int, observed: int) -> Cost:
    """Return the costs of the policy's own stages in a layer."""
    policy, (suite, _) = parse(setting.policy), setting.make()

    async def program() -> None:
        cache = KVCache(a, policy)
        cache.prompt_tokens = prompt
        entry, shape = cache.layers[0], (a.kv_heads, prompt, a.head_channels)
        entry.k, entry.v = [await suite.mask_for_cache(suite.input(shape, None, suite.fraction_bits)) for _ in range(2)]
        q = await suite.mask_queries(suite.input((a.kv_heads, a.group * observed, shape[2]), None, suite.fraction_bits))
        seen = await observe(suite, a, entry, q, policy.observation(prompt, 0))
        suite.ledger.costs.clear()
        suite.at(0)
        await policy.after_prefill(suite, cache, 0, seen)

    suite.run(program())
    return suite.ledger.total()


def test_the_stages_are_what_a_session_does_after_a_prompt() -> None:
    """Without the attention, all layers cost what is predicted for a session."""
    made = plan()
    own = _layer(made.shape, Setting("masked", 2, POLICY), TOKENS, round(0.2 * TOKENS))
    stages = predict_eviction(made)
    layer = [stage_cost(stages, f"step 0/{name}") for name in STAGES[1:]]
    for field in ("rounds", "bytes_sent", "offline_bytes"):
        assert getattr(own, field) == sum(getattr(cost, field) for cost in layer)


def test_rows_that_changed_or_moved_are_noticed(tmp_path: Path) -> None:
    before = torch.randn(2, 9, 4, dtype=torch.float64)
    assert module._rows(before[:, [0, 3, 8]], before).tolist() == [[0, 3, 8]] * 2
    assert module._rows(torch.stack([before[0, [0, 3]], before[1, [1, 8]]]), before).tolist() == [[0, 3], [1, 8]]
    for wrong in (before[:, [3, 0, 8]], before[:, [0, 0, 8]], before[:, [0, 3, 8]] + 0.1):
        with pytest.raises(RowsDiffer, match="are not rows from before it, in their order"):
            module._rows(wrong, before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--prefill", 9, "--policy", "mpcache"), "--eviction needs --cached N"),
        (("--cached", 9), "--eviction measures what a policy does once after a prompt, without"),
        (("--cached", 90, "--policy", "locret"), "weights that it has learned, and 'locret' is none of these"),
        (("--cached", 25, "--policy", "mpcache"), "static = 0.4 keeps 10 of 25 tokens, which does not hold sinks = 4"),
    ],
)
def test_wrong_arguments(command: Command, arguments: tuple[Any, ...], message: str) -> None:
    done = command("bench", "--eviction", *arguments)
    assert done.code == 2
    assert message in " ".join(done.err.split())
    assert done.out == ""
