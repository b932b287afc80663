"""Weights that the rings have no room for: how large each kind may be, and what is said of one that is larger."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models.checkpoint import load_checkpoint
from models.weight_limits import check_size, largest_weight
from mpc.errors import RangeError
from tests.models import random_checkpoints, random_encoders


@pytest.mark.parametrize("name", sorted(random_checkpoints.VARIANTS))
def test_all_weights_of_usual_models_pass(name: str, tmp_path: Path) -> None:
    random_checkpoints.build(name).save_pretrained(tmp_path)
    checkpoint = load_checkpoint(tmp_path)
    for weight in checkpoint.description.weight_shapes():
        check_size(checkpoint.description, weight, checkpoint.weights[weight])


@pytest.mark.parametrize(
    ("model", "name", "limit"),
    [
        ("olmo2", "layers.0.mlp.down.weight", 64.0),
        ("olmo2", "layers.0.mlp.down.gain", 256.0),
        ("olmo2", "layers.1.attention.queries.gain", 256.0),
        ("gpt2", "layers.0.mlp.up.weight", 64.0),
        ("bert", "layers.0.mlp.gain", 64.0),
    ],
)
def test_larger_ones_are_refused_by_name(model: str, name: str, limit: float, tmp_path: Path) -> None:
    if model == "bert":
        random_encoders.save(model, tmp_path)
    else:
        random_checkpoints.build(model).save_pretrained(tmp_path)
    checkpoint = load_checkpoint(tmp_path)
    values = checkpoint.weights[name].clone()
    values.view(-1)[-1] = -0.99 * limit
    check_size(checkpoint.description, name, values)
    values.view(-1)[-1] = -limit
    with pytest.raises(RangeError, match=rf"weight '{name}' reaches {limit:g}, .* below {limit:g}: scale it down"):
        check_size(checkpoint.description, name, values)


def test_tables_and_biases_have_no_limit_of_their_own(tmp_path: Path) -> None:
    random_checkpoints.build("gpt2").save_pretrained(tmp_path)
    description = load_checkpoint(tmp_path).description
    for name in ("embedding.tokens", "embedding.positions", "layers.0.mlp.up.bias", "head.weight"):
        assert largest_weight(description, name) == float("inf")
        check_size(description, name, torch.tensor([1e4]))
