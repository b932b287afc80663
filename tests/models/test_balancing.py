"""Balancing changes no result, only where factors lie; ranges become smaller and nothing loses precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models.balancing import Balance, provable_bounds
from models.checkpoint import CanonicalWeights, Checkpoint, TensorFiles, _family, load_checkpoint
from models.generation import PlainModel, plain_logits
from tests.models import random_checkpoints as checkpoints


def skewed(name: str, directory: Path) -> Any:
    """A random model whose key biases, values and feed-forward channels are far from balance; saved."""
    model = checkpoints.build(name)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith(("k_proj.bias", "k_proj.weight")):
                spread = torch.exp2(torch.randint(0, 7, (parameter.shape[0],), generator=generator))
                parameter *= spread.reshape(-1, *[1] * (parameter.dim() - 1))
            if key.endswith(("v_proj.weight", "up_proj.weight")):
                parameter *= 8.0
            if key.endswith(("q_proj.weight", "q_proj.bias", "o_proj.weight", "down_proj.weight")):
                parameter *= 0.1
    model.save_pretrained(directory)
    return model


def weights_of(directory: Path, balanced: bool) -> CanonicalWeights:
    family = _family(directory)
    return CanonicalWeights(family, TensorFiles(directory), torch.float64, balanced)


def cached(checkpoint: Checkpoint, ids: list[int]) -> tuple[float, float]:
    """The largest cached |key| and |value|."""
    model = PlainModel(checkpoint, torch.float64)
    decoder = model.decoder()
    cache = decoder.new_cache()
    rows = torch.nn.functional.one_hot(torch.tensor(ids), model.architecture.vocabulary)
    model.suite.run(decoder.forward(model.suite.input(tuple(rows.shape), rows, 0), cache))
    pairs = [layer.keys_and_values() for layer in cache.layers]
    largest = [[float(model.suite.output(x).share.abs().max()) for x in pair] for pair in pairs]
    return max(k for k, _ in largest), max(v for _, v in largest)


@pytest.mark.parametrize("name", ["gpt2", "llama-grouped", "llama-tied-biases-3-heads", "qwen2"])
def test_results_are_the_same(name: str, tmp_path: Path) -> None:
    """Powers of two are exact: folded and unfolded differ by the order of float64 additions only."""
    model = skewed(name, tmp_path)
    ids = checkpoints.prompt(model, 13)
    found = plain_logits(load_checkpoint(tmp_path, torch.float64), ids, torch.float64)
    unbalanced = Checkpoint(tmp_path, _family(tmp_path).architecture, weights_of(tmp_path, False))
    plain = plain_logits(unbalanced, ids, torch.float64)
    assert plain.std() > 0.3
    torch.testing.assert_close(found, plain, atol=1e-11, rtol=1e-11)
    torch.testing.assert_close(
        plain_logits(load_checkpoint(tmp_path), ids), checkpoints.logits(model, ids), atol=1e-4, rtol=0
    )


def test_factors_are_powers_of_two_and_pairs_keep_together(tmp_path: Path) -> None:
    skewed("qwen2", tmp_path)
    a = _family(tmp_path).architecture
    name = "layers.0.attention.qkv.weight"
    ratio = weights_of(tmp_path, True)[name][0] / weights_of(tmp_path, False)[name][0]
    assert torch.equal(torch.frexp(ratio).mantissa, torch.full_like(ratio, 0.5))
    queries = ratio[: a.heads * a.head_channels].reshape(a.kv_heads, a.group, a.head_channels)
    keys = ratio[a.heads * a.head_channels :][: a.kv_heads * a.head_channels].reshape(a.kv_heads, a.head_channels)
    half = a.head_channels // 2
    assert torch.equal(keys[:, :half], keys[:, half:])
    assert torch.unique(keys).numel() > 2
    assert torch.equal(queries * keys[:, None], torch.ones_like(queries))


def test_key_biases_and_values_become_small(tmp_path: Path) -> None:
    model = skewed("qwen2", tmp_path)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.k_proj.bias[3] = 210.0
    model.save_pretrained(tmp_path)
    ids = checkpoints.prompt(model, 13)
    before = cached(Checkpoint(tmp_path, _family(tmp_path).architecture, weights_of(tmp_path, False)), ids)
    after = cached(load_checkpoint(tmp_path, torch.float64), ids)
    assert before[0] > 200
    assert after[0] < before[0] / 4
    assert before[1] > 2 * after[1]


def test_a_layer_is_read_a_weight_at_a_time_and_vectors_are_kept(tmp_path: Path) -> None:
    skewed("llama-grouped", tmp_path)
    plain = weights_of(tmp_path, False)
    read: list[str] = []

    def reading(name: str) -> Tensor:
        read.append(name)
        return plain[name].clone()

    balance = Balance(_family(tmp_path).architecture, reading)
    for name in plain:
        balance(name, plain[name].clone())
    assert sorted(read) == sorted(n for n in plain if n.startswith("layers."))  # each once, for its vectors


def test_provable_bounds_hold_and_are_reached() -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(12, 5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    bound = provable_bounds(weight, bias)
    x = torch.randn(1000, 12, dtype=torch.float64)
    x = x / x.square().mean(-1, keepdim=True).sqrt()
    assert bool(((x @ weight + bias).abs() <= bound).all())
    along = weight[:, 0] / weight[:, 0].norm() * 12**0.5 * bias[0].sign()
    torch.testing.assert_close((along @ weight + bias)[0].abs(), bound[0])
