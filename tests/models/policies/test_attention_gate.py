"""Gates: against their formula in plaintext, on shares against plaintext, and trained by what they cost the answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import models.recall
from launch.fit.examples import Example
from launch.fit.gates import Gates
from launch.local.in_process import InProcessSuite
from launch.measure.generation import generate_on_shares
from launch.measure.quality.prefilled import PrefilledModel
from models.cache import Batch, KVCache
from models.checkpoint import load_checkpoint
from models.costs.estimation import estimate
from models.costs.tracing import Setting
from models.generation import GenerationPlan, generate_plain
from models.learned import with_learned
from models.observation import Seen
from models.policies import parse
from models.policies.axes.gate import READ, WRITE
from models.shapes import SHAPES, with_layers
from mpc.errors import ConfigurationError
from protocols.plain.suite import tensor_of
from protocols.registry import SuiteSpec
from tests.models import random_checkpoints as checkpoints
from tests.models.policies.learned_weights import save_random
from tests.models.policies.policy_cases import grid, tiny
from tests.protocols.suite_harness import run_plain, run_weighing

HEADS, CHANNELS, TOKENS = 2, 3, 24
TEXT = f"attention-gate:budget=0.5,heads={HEADS},channels={CHANNELS}"


def gate(x: np.ndarray, read: np.ndarray, write: np.ndarray) -> np.ndarray:
    """What gates say before the sigmoid, [G, T]: causal attention of x [T, F], the scale in the queries' weights."""
    q, k, v = (x @ part for part in np.split(read, 3, 1))
    found = []
    for head in range(HEADS):
        at = slice(head * CHANNELS, (head + 1) * CHANNELS)
        s = np.where(np.tril(np.ones((len(x), len(x)))) > 0, q[:, at] @ k[:, at].T, -np.inf)
        a = np.exp(s - s.max(-1, keepdims=True))
        found.append(a / a.sum(-1, keepdims=True) @ v[:, at])
    return np.asarray((np.concatenate(found, 1) @ write).T)


@pytest.mark.parametrize(("suite", "parties"), [("plain", 1), ("crypten", 2), ("masked", 2), ("masked", 3)])
def test_each_head_keeps_what_its_gate_opens_for(suite: str, parties: int) -> None:
    """The first token, the last one, and ten more, whose gates differ by more than fixed point can."""
    a, policy = tiny(heads=4, groups=2), parse(TEXT)
    policy.check(with_learned(a, policy.weight_shapes(a)), TOKENS)
    for seed in range(100):
        g = torch.Generator().manual_seed(seed)
        features = grid(TOKENS, 32, span=2, step=0.25, generator=g)
        read, write = grid(32, 18, span=2, step=0.125, generator=g), grid(6, 2, span=2, step=0.125, generator=g)
        said = gate(features.numpy(), read.numpy(), write.numpy())[:, 1:-1]
        order = -np.sort(-said, 1)
        if (order[:, 9] - order[:, 10]).min() > 0.02:
            break
    k, v = (grid(2, TOKENS, 4, span=6, step=0.25, generator=g) for _ in range(2))

    async def program(s: Any, *values: Any) -> Any:
        k, v, features, read, write = values
        weights = {f"policy.layers.0.{READ}.weight": read, f"policy.layers.0.{WRITE}.weight": write}
        cache = KVCache(a, policy, weights)
        cache.prompt_tokens = TOKENS
        await cache.append(s, 0, k, v)
        await policy.after_batch(s, cache, 0, Batch(TOKENS, 0, TOKENS), Seen(features=features))
        await cache.settle()
        return cache.layers[0].keys_and_values()

    inputs, weights = [k, v, features], [read, write]
    plain = suite == "plain"
    found = run_plain(program, inputs + weights) if plain else run_weighing(suite, parties, program, inputs, weights)
    best = [[0, *sorted(1 + np.argsort(-row, kind="stable")[:10]), TOKENS - 1] for row in said]
    for whole, value in zip((k, v), found, strict=True):
        wanted = torch.stack([whole[head, rows] for head, rows in enumerate(best)])
        assert (value - wanted).abs().max() < 2.0**-12


@pytest.mark.covering(1)
@pytest.mark.parametrize(("suite", "parties"), [("crypten", 2), ("masked", 2), ("masked", 3)])
def test_a_generation_on_shares(suite: str, parties: int, tmp_path: Path) -> None:
    """Of a model with rotary positions and grouped queries, also within the prompt; costs are those predicted."""
    text = f"batches:tokens=20|{TEXT}"
    checkpoints.save("llama-grouped", tmp_path, layers=1)
    save_random(tmp_path, text, scale=0.1)
    checkpoint = load_checkpoint(tmp_path)
    ids = torch.randint(0, 97, (40,), generator=torch.Generator().manual_seed(3)).tolist()
    plan = GenerationPlan(40, 3, policy=text)
    measured = generate_on_shares(checkpoint, ids, plan, InProcessSuite(SuiteSpec(suite), parties)).checked()
    assert measured == generate_plain(checkpoint, ids, plan, dtype=torch.float64)


def test_a_gate_is_dearer_than_a_retaining_head() -> None:
    """Its attention of two narrow heads costs what a retaining head does not have."""
    a, costs = with_layers(SHAPES["gpt2"], 1), []
    for text in ("full", "locret:budget=0.4", "attention-gate:budget=0.4"):
        costs.append(estimate(a, Setting("masked", policy=text), 512, 1).first.total("offline_bytes"))
    assert costs[0] < costs[1] < costs[2]


def test_a_model_without_gates_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"'gate.read.weight' is not shared with it"):
        parse(TEXT).check(tiny(), TOKENS)


# ---- training --------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def gates() -> Gates:
    model = PrefilledModel(load_checkpoint(Path(models.recall.__file__).parent / "gpt2_questions"))
    return Gates(model, HEADS, CHANNELS, 0.3)


def test_open_gates_lose_nothing_and_closed_ones_the_answer(gates: Gates) -> None:
    """With all flags 1 the answer's loss is that of the full cache, token by token; with none it is far above."""
    from tests.launch.test_fit import examples

    example = examples(1)[0]
    prompt = gates.model.prefill(example.prompt)
    losses = [token.loss for token in gates.model.fed(prompt, ["full"], example.answer)[0][1:]]
    ones = [torch.ones(prompt.tokens, 4) for _ in prompt.keys]
    found = float(gates._answer_loss(example, prompt, ones))
    assert abs(found - sum(losses) / len(losses)) < 1e-3
    assert float(gates._answer_loss(example, prompt, [0 * one for one in ones])) > found + 1


def test_gradients_reach_every_gate(gates: Gates) -> None:
    from tests.launch.test_fit import examples

    example = examples(1)[0]
    trained, stays = gates.fresh(example, 0)
    for tensor in trained.values():
        tensor.requires_grad_()
    gates.loss({**trained, **stays}, example).backward()  # type: ignore[no-untyped-call]
    assert all(tensor.grad is not None and tensor.grad.abs().max() > 0 for tensor in trained.values())


def test_exported_gates_say_the_same(gates: Gates) -> None:
    """Up to a factor of each head, in the policy's own words."""
    example = Example(tuple(range(3, 90)), (5, 6))
    trained, stays = gates.fresh(example, 0)
    state = {**trained, **stays}
    weights = gates.exported(state, [example])
    prompt = gates.model.prefill(example.prompt)
    said = gates._gates(state, prompt)
    for layer, features in enumerate(prompt.features):
        read, write = (weights[f"policy.layers.{layer}.{part}.weight"].numpy() for part in (READ, WRITE))
        found = gate(tensor_of(gates.suite.public(features)).numpy(), read, write).T
        factor = found / said[layer].numpy()
        assert np.abs(factor - factor[:1]).max() < 1e-2 * np.abs(factor).max()
        assert np.abs(found).max() <= 1 + 1e-4
