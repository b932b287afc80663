"""Retaining heads: against their formula, on shares against plaintext, with weights that travel with the model."""

from __future__ import annotations

from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from launch.local.in_process import InProcessSuite
from launch.measure.generation import generate_on_shares
from models.cache import Batch, KVCache
from models.checkpoint import load_checkpoint, read_architecture
from models.costs.estimation import estimate
from models.costs.tracing import Setting
from models.generation import GenerationPlan, PlainModel, generate_plain
from models.learned import check_learned, with_learned
from models.observation import Observation, Seen
from models.policies import parse
from models.policy_file import write
from models.prefill import prefill
from models.shapes import SHAPES, with_layers, with_positions
from mpc.errors import CheckpointError, ConfigurationError
from protocols.plain.suite import tensor_of
from protocols.registry import SuiteSpec
from tests.models import random_checkpoints as checkpoints
from tests.models.policies.learned_weights import save_random
from tests.models.policies.policy_cases import grid, tiny
from tests.models.test_decoder import feed
from tests.protocols.suite_harness import run_plain, run_weighing

WIDTH = 3
TEXT = f"batches:tokens=16|locret:budget=0.5,width={WIDTH},last=2,stabilisers=4"


def order(x: np.ndarray, k: int) -> list[int]:
    """The k largest, ties to the earlier, in order of position."""
    return sorted(np.argsort(-x, kind="stable")[:k].tolist())


def by_hand(features: np.ndarray, first: np.ndarray, second: np.ndarray, ends: list[int]) -> list[list[int]]:
    """Tokens that each head keeps of 40: 16 between batches, the last 4 among them, and 20 in the end, with the last 2."""
    scores = (np.maximum(features @ first, 0) @ second).T
    kept: list[list[int]] = [[], []]
    for start, stop in pairwise(ends):
        count, always = (20, 2) if stop == ends[-1] else (16, 4)
        for head, there in enumerate(kept):
            there += range(start, stop)
            if len(there) > count:
                older = np.array(there[: len(there) - always])
                kept[head] = [*older[order(scores[head][older], count - always)].tolist(), *there[len(there) - always :]]
    return kept


@pytest.mark.covering(2)
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("suite", "parties"), [("plain", 1), ("crypten", 2), ("masked", 2), ("masked", 3)])
def test_each_head_keeps_what_its_scores_say(suite: str, parties: int, seed: int) -> None:
    """Rows that are exact in fixed point, with ties; the last seed has nothing but ties."""
    a = tiny(heads=4, groups=2).model_copy(update={"activation": "relu"})
    policy = parse(TEXT)
    policy.check(with_learned(a, policy.weight_shapes(a)), 40)
    g = torch.Generator().manual_seed(seed)
    k, v = (grid(2, 40, 4, span=6, step=0.25, generator=g) for _ in range(2))
    features = grid(40, 32, span=2, step=0.25, generator=g) * (seed < 4)
    first, second = grid(32, WIDTH, span=2, step=0.125, generator=g), grid(WIDTH, 2, span=2, step=0.125, generator=g)
    ends = list(accumulate(policy.prompt_batches(40), initial=0))

    async def program(s: Any, *values: Any) -> Any:
        k, v, features, first, second = values
        weights = {"policy.layers.0.retaining.first.weight": first, "policy.layers.0.retaining.second.weight": second}
        cache = KVCache(a, policy, weights)
        cache.prompt_tokens = 40
        for start, stop in pairwise(ends):
            await cache.append(s, 0, k[:, start:stop], v[:, start:stop])
            batch = Batch(40, start, stop - start)
            assert policy.observed_in(batch, 0) == Observation(features=True)
            await policy.after_batch(s, cache, 0, batch, Seen(features=features[start:stop], last=batch.last))
            await cache.settle()
            cache.seen = stop
        return cache.layers[0].keys_and_values()

    inputs, weights = [k, v, features], [first, second]
    plain = run_plain(program, [*inputs, *weights])
    found = plain if suite == "plain" else run_weighing(suite, parties, program, inputs, weights)
    kept = by_hand(features.numpy(), first.numpy(), second.numpy(), ends)
    for whole, value in zip((k, v), found, strict=True):
        wanted = torch.stack([whole[head, rows] for head, rows in enumerate(kept)])
        assert (value - wanted).abs().max() < 2.0**-12


LONG = "batches:tokens=30|locret:budget=0.4,width=8,stabilisers=6"


def learned_checkpoint(family: str, folder: Path, text: str = LONG, layers: int = 0) -> Any:
    checkpoints.save(family, folder, layers=layers)
    save_random(folder, text)
    return load_checkpoint(folder)


@pytest.mark.parametrize("family", ["gpt2", "llama-grouped"])
@pytest.mark.parametrize("text", [LONG, "chunked:tokens=25|locret:budget=0.4,width=8"])
def test_scores_are_those_of_rows_before_they_turn(family: str, text: str, tmp_path: Path) -> None:
    """Of a whole model in plaintext: learned positions, and rotary ones with grouped queries."""
    checkpoint = learned_checkpoint(family, tmp_path)
    a, ids = checkpoint.architecture, torch.randint(0, 97, (60,), generator=torch.Generator().manual_seed(1)).tolist()
    rows: list[torch.Tensor] = []
    plain = PlainModel(checkpoint, torch.float64)
    policy = parse(text)
    decoder = plain.decoder(policy=policy)
    attention = decoder._attention
    leaving = attention.leaving

    async def watched(entered: Any, cache: KVCache, layer: int, *rest: Any) -> Any:
        if layer == 0:
            rows.append(tensor_of(entered[0]))
        return await leaving(entered, cache, layer, *rest)

    attention.leaving = watched  # type: ignore[method-assign]
    cache = decoder.new_cache()
    plain.suite.run(prefill(decoder, cache, feed(plain, ids)))
    x = torch.cat(rows).numpy()
    first, second = (checkpoint.weights[f"policy.layers.0.retaining.{part}.weight"].double().numpy() for part in PARTS)
    hidden = x @ first
    active = hidden / (1 + np.exp(-hidden)) if a.activation == "silu" else gelu(hidden)
    scores = (active @ second).T
    ends = list(accumulate(policy.prompt_batches(60), initial=0)) if "chunked" not in text else [0, 60]
    values = x[:, -a.kv_heads * a.head_channels :].reshape(60, a.kv_heads, -1)
    _, left = cache.layers[0].keys_and_values()
    for head in range(a.kv_heads):
        there: list[int] = []
        for start, stop in pairwise(ends):
            there += range(start, stop)
            kept, always = 24, 4 if stop == 60 else 6
            if len(there) > kept:
                older = np.array(there[: len(there) - always])
                there = [*older[order(scores[head][older], kept - always)].tolist(), *there[len(there) - always :]]
        assert np.abs(tensor_of(left)[head].numpy() - values[there, head]).max() < 1e-5


PARTS = ("first", "second")


def gelu(x: np.ndarray) -> np.ndarray:
    return np.asarray(0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))))


@pytest.mark.covering(1)
@pytest.mark.parametrize(("suite", "parties"), [("crypten", 2), ("masked", 2), ("masked", 3)])
@pytest.mark.parametrize("family", ["gpt2", "llama-grouped"])
def test_a_generation_on_shares(family: str, suite: str, parties: int, tmp_path: Path) -> None:
    """The weights are the owner's, shared like all others."""
    checkpoint = learned_checkpoint(family, tmp_path, layers=1)
    ids = torch.randint(0, 97, (50,), generator=torch.Generator().manual_seed(2)).tolist()
    plan = GenerationPlan(50, 3, policy=LONG)
    roles = InProcessSuite(SuiteSpec(suite), parties)
    measured = generate_on_shares(checkpoint, ids, plan, roles).checked()
    assert measured == generate_plain(checkpoint, ids, plan, dtype=torch.float64)


def test_a_long_prompt_deals_two_fifths() -> None:
    """A middle layer of GPT-2, 4 096 tokens in batches of 128 with 256 kept, against the whole prompt: a fifth of what
    attention is dealt, beside what costs by token and the evictions."""
    text, middle = "batches:tokens=128,keep=256|locret:budget=0.0625", {}
    for policy in ("full", text):
        of = [
            estimate(with_layers(with_positions(SHAPES["gpt2"], 4200), n), Setting("masked", policy=policy), 4096, 1)
            for n in (1, 2)
        ]
        middle[policy] = of[1].first.total("offline_bytes") - of[0].first.total("offline_bytes")
    assert middle[text] < 0.42 * middle["full"]


# ---- bad input -----------------------------------------------------------------------------------------------------
def test_a_model_without_the_weights_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"policy locret needs weights.*mpcache fit --policy locret"):
        GenerationPlan(40, 2, policy="locret:budget=0.5").check(tiny())


def test_weights_of_another_width_are_refused(tmp_path: Path) -> None:
    checkpoint = learned_checkpoint("gpt2", tmp_path)
    with pytest.raises(ConfigurationError, match=r"'retaining.first.weight' \[\d+, 16\], the model has"):
        GenerationPlan(40, 2, policy="locret:budget=0.5,width=16").check(checkpoint.architecture)
    check_learned("full", parse("full").weight_shapes(checkpoint.architecture), checkpoint.architecture)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    checkpoints.save("gpt2", tmp_path / "one")
    checkpoints.save("gpt2", tmp_path / "other", seed=3)
    save_random(tmp_path / "one", LONG)
    (tmp_path / "one" / "policy.safetensors").rename(tmp_path / "other" / "policy.safetensors")
    with pytest.raises(CheckpointError, match="learned of another model"):
        load_checkpoint(tmp_path / "other")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"policy.layers.0.x.weight": torch.ones(2, 3)}, "'x.weight' is there for 1 layers, the model has 2"),
        ({"layers.0.x.weight": torch.ones(2)}, "not named policy.layers.N.PART"),
        (
            {"policy.layers.0.x.weight": torch.ones(2), "policy.layers.1.x.weight": torch.ones(3)},
            "different shapes in different layers",
        ),
        ({f"policy.layers.{n}.x.weight": torch.ones(2, 2, 2) for n in range(2)}, "shape"),
    ],
)
def test_a_file_that_is_none(tensors: dict[str, torch.Tensor], message: str, tmp_path: Path) -> None:
    checkpoints.save("gpt2", tmp_path)
    write(tmp_path, tensors, tmp_path)
    with pytest.raises(CheckpointError, match=message):
        read_architecture(tmp_path)


def test_a_file_without_a_digest_or_with_infinities(tmp_path: Path) -> None:
    checkpoints.save("gpt2", tmp_path)
    write(tmp_path, {f"policy.layers.{n}.x.bias": torch.tensor([float("inf")]) for n in range(2)}, tmp_path)
    with pytest.raises(CheckpointError, match="infinities"):
        load_checkpoint(tmp_path).weights["policy.layers.0.x.bias"]
    (tmp_path / "policy.safetensors").write_bytes(b"no")
    with pytest.raises(CheckpointError, match="truncated or not a safetensors file"):
        load_checkpoint(tmp_path)
