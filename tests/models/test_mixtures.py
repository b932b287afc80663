"""Mixtures of experts: stored layouts, options, capacity in plaintext and on shares, the choice of a way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from launch.local.in_process import InProcessSuite
from launch.measure.generation import generate_on_shares
from models.architecture import Experts
from models.checkpoint import load_checkpoint, read_architecture
from models.costs.expert_ways import CAPACITY, ways, with_way
from models.generation import GenerationPlan, PlainModel, plain_logits, token_indices
from models.shapes import SHAPES
from mpc.errors import CheckpointError, ConfigurationError
from protocols.expert_ways import ExpertsWay
from protocols.registry import SuiteSpec
from tests.models import random_checkpoints as checkpoints

TOKENS = 20


def changed(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize("name", ["mixtral-tied-window-3-of-7", "qwen3-moe-renormalised-tied-3-of-8"])
def test_fused_experts_are_read_as_well(name: str, tmp_path: Path) -> None:
    """As transformers holds them: gate and up of all experts in one tensor."""
    model = checkpoints.save(name, tmp_path)
    ids = checkpoints.prompt(model, TOKENS)
    wanted = plain_logits(load_checkpoint(tmp_path), ids)
    file = tmp_path / "model.safetensors"
    rest = {key: value for key, value in load_file(file).items() if ".experts." not in key and ".block_sparse" not in key}
    held = {key: value for key, value in model.state_dict().items() if ".mlp." in key}
    save_file(rest | {key: value.contiguous() for key, value in held.items()}, file)
    assert torch.equal(plain_logits(load_checkpoint(tmp_path), ids), wanted)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_experts_per_tok": 9}, "'chosen' = 9 must be at most 'count' = 6"),
        ({"num_experts": 7}, "'num_experts' = 7: 'num_local_experts' = 6 says otherwise"),
        ({"mlp_only_layers": "all"}, "'mlp_only_layers' = 'all': a list of layer numbers"),
        ({"decoder_sparse_step": 0}, "'decoder_sparse_step' = 0: a positive integer"),
        ({"norm_topk_prob": 1}, "'norm_topk_prob' = 1: true or false"),
    ],
)
def test_bad_options(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    checkpoints.save("qwen3-moe", tmp_path)
    changed(tmp_path, **change)
    with pytest.raises(CheckpointError, match=message):
        read_architecture(tmp_path)


def test_which_layers_have_experts(tmp_path: Path) -> None:
    checkpoints.save("qwen3-moe", tmp_path)
    for change, layers in (({"mlp_only_layers": [0]}, (1,)), ({"decoder_sparse_step": 2}, (1,)), ({}, None)):
        changed(tmp_path, mlp_only_layers=[], decoder_sparse_step=1)
        changed(tmp_path, **change)
        found = read_architecture(tmp_path)
        assert found.experts == Experts(count=6, chosen=2, feed_forward=28, renormalised=False, layers=layers)
        assert (found.mixture(0) is None) == (layers is not None)
    changed(tmp_path, mlp_only_layers=[0, 1])
    assert read_architecture(tmp_path).experts is None


def dispatched(checkpoint: Any, ids: list[int], way: str, last: bool = False) -> tuple[torch.Tensor, int | None]:
    """Return plaintext logits [T, V] with so many places, or those after the last token alone, as a prompt is computed, and
    how many choices found none."""
    plain = PlainModel(checkpoint, torch.float64)
    plain.suite.experts = ExpertsWay.parse(way)
    decoder = plain.decoder()
    cache = decoder.new_cache()
    vocabulary = plain.architecture.vocabulary
    prompt = plain.suite.indices(len(ids), token_indices(ids, vocabulary), vocabulary)
    value = plain.suite.run(decoder.forward(prompt, cache, last))
    dropped = None if cache.dropped is None else int(plain.suite.output(cache.dropped).share)
    return plain.suite.output(value).share, dropped


def test_capacity_is_exact_until_it_drops(tmp_path: Path) -> None:
    model = checkpoints.save("mixtral", tmp_path)
    checkpoint = load_checkpoint(tmp_path, torch.float64)
    ids = checkpoints.prompt(model, TOKENS)
    wanted = plain_logits(checkpoint, ids, torch.float64)
    counts = []
    for factor in (2.3, 1.5, 1, 0.5):
        logits, dropped = dispatched(checkpoint, ids, f"capacity:{factor}")
        assert dropped is not None
        counts.append(dropped)
        assert torch.allclose(logits, wanted, atol=1e-9, rtol=0) == (dropped == 0)
    assert counts == sorted(counts)
    assert counts[0] == 0 < counts[-1]
    assert dispatched(checkpoint, ids, "capacity:2.4")[1] is None  # as many places as tokens: dense


@pytest.mark.parametrize(
    ("name", "suite", "parties", "way"),
    [
        ("mixtral", "masked", 2, "dense"),
        ("mixtral-tied-window-3-of-7", "masked", 3, "capacity:1"),
        ("mixtral", "crypten", 2, "capacity:1.5"),
    ],
)
def test_on_shares(name: str, suite: str, parties: int, way: str, tmp_path: Path) -> None:
    """The first token's logits as plaintext's, and the same choices dropped; all variants: `tests.tools.mixture_sweep`."""
    model = checkpoints.save(name, tmp_path)
    checkpoint, ids = load_checkpoint(tmp_path, torch.float64), checkpoints.prompt(model, TOKENS)
    wanted, dropped = dispatched(checkpoint, ids, way, last=True)
    roles = InProcessSuite(SuiteSpec(suite, options={"experts": way}), parties)
    found = generate_on_shares(checkpoint, ids, GenerationPlan(TOKENS, 1), roles, ["logits"])
    assert found.logits is not None
    torch.testing.assert_close(found.logits[0], wanted[-1], atol=0.01, rtol=0)
    assert (found.checked(), found.dropped_choices) == ([int(wanted[-1].argmax())], dropped)


@pytest.mark.parametrize("way", ["sparse", "capacity", "capacity:0", "capacity:65", "capacity:-1", "capacity:nan", 2, True])
def test_ways_that_there_are_not(way: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"experts = {way!r} must be 'dense', 'auto' or 'capacity:F'"):
        SuiteSpec("masked", options={"experts": way})


def test_the_way_is_chosen_by_what_it_costs() -> None:
    """With `auto`, written down as an option: few tokens densely, many by places; both cost what is predicted. By default
    the exact way."""
    a = SHAPES["mixtral-8x7b"]
    assert with_way(SuiteSpec("masked"), a, 128, "full", 2) == SuiteSpec("masked")
    spec = SuiteSpec("masked", options={"experts": "auto"})
    assert with_way(spec, a, 1, "full", 2).options == {"experts": "dense"}
    assert with_way(spec, a, 128, "full", 2).options == {"experts": CAPACITY}
    said = SuiteSpec("masked", options={"experts": "capacity:1.25"})
    assert with_way(said, a, 128, "full", 2) == said
    assert with_way(spec, SHAPES["gpt2"], 128, "full", 2) == spec
    dense, places = ways(a.to_json(), "masked", (), 2, 128)
    assert dense.rounds < places.rounds
    assert dense.work > 1.9 * places.work
