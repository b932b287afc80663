"""Gemma with a residual stream as published models have it: gains in the thousands, held smaller by a power of two."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from models.calibration.choice import chosen, excesses
from models.calibration.extremes import measure
from models.checkpoint import load_checkpoint, read_architecture
from models.families.gemma2 import WIDEST
from models.families.gemma3 import WIDE
from models.generation import GenerationPlan, PlainModel
from models.weight_limits import check_size
from protocols.registry import SuiteSpec
from tests.models import random_checkpoints as checkpoints
from tests.tools.family_sweep import differs, expected, logits_after, on_shares

LARGEST_GAIN = 6000.0


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A model of published width whose post-norms write one channel of thousands and others of a hundred and more."""
    folder = tmp_path_factory.mktemp("gemma3")
    model_class, config_class, values = checkpoints.VARIANTS["gemma3"]
    torch.manual_seed(5)
    wide = values | {"hidden_size": WIDE + 8}
    model = model_class(config_class(**wide, bos_token_id=1, eos_token_id=None, attn_implementation="eager")).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.3 if parameter.dim() == 1 else 0.15))
            if "post_" in name:
                parameter.mul_(LARGEST_GAIN / 40)
                parameter[3] = LARGEST_GAIN
    model.save_pretrained(folder)
    return folder, model


def test_plaintext(published: tuple[Path, Any]) -> None:
    folder, model = published
    checkpoint = load_checkpoint(folder)
    ids = checkpoints.prompt(model, 9)
    exact = checkpoints.logits(copy.deepcopy(model).double(), ids)
    rounding = float((checkpoints.logits(model, ids) - exact).abs().max())  # how much depends on the processor
    assert rounding < 1e-3
    assert float((PlainModel(checkpoint).logits(ids) - exact).abs().max()) < max(4 * rounding, 1e-4)
    for name in ("layers.0.attention.out.gain", "layers.2.mlp.down.gain"):
        check_size(checkpoint.architecture, name, checkpoint.weights[name])
    epsilon = model.config.rms_norm_eps
    assert checkpoint.architecture.stream_norm.epsilon == epsilon / 4096
    assert checkpoint.architecture.norm.epsilon == epsilon


def test_the_widest_gemma_2(tmp_path: Path) -> None:
    """Of the width above which its stream is held 16 times smaller: that of the 27B reaches 157 696 (Chen et al.)."""
    model_class, config_class, values = checkpoints.VARIANTS["gemma2"]
    torch.manual_seed(6)
    wide = values | {"hidden_size": WIDEST + 4, "num_hidden_layers": 2}
    model = model_class(config_class(**wide, attn_implementation="eager")).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.3 if parameter.dim() == 1 else 0.05))
            if "post_" in name:
                parameter.mul_(LARGEST_GAIN / 80)
                parameter[3] = LARGEST_GAIN / 2
    model.save_pretrained(tmp_path)
    checkpoint, ids = load_checkpoint(tmp_path), checkpoints.prompt(model, 9)
    torch.testing.assert_close(PlainModel(checkpoint).logits(ids), checkpoints.logits(model, ids), atol=1e-4, rtol=1e-4)
    assert checkpoint.architecture.stream_norm.epsilon == model.config.rms_norm_eps / 256
    held = max(measure(checkpoint, [ids]).kinds["residual"])
    with torch.no_grad():
        stream = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    largest = max(float(one.abs().max()) for one in stream[:-1])
    assert largest > 4096
    assert 0.9 * largest / 16 < held < 2 * largest / 16


def test_small_models_are_held_as_they_are(tmp_path: Path) -> None:
    checkpoints.save("gemma3", tmp_path)
    architecture = read_architecture(tmp_path)
    assert architecture.stream_epsilon is None
    assert architecture.stream_norm == architecture.norm


@pytest.mark.parametrize(("suite", "parties"), [("masked", 2), ("masked", 3), ("crypten", 2)])
def test_on_shares(published: tuple[Path, Any], suite: str, parties: int) -> None:
    folder, model = published
    checkpoint, ids = load_checkpoint(folder), checkpoints.prompt(model, 7)
    wanted = expected(model, ids, 2)
    extremes = measure(checkpoint, [ids + wanted])
    assert max(extremes.kinds["residual"]) * 64 > 2.0**14  # as the checkpoint has it
    options = chosen(suite, extremes)
    assert excesses(suite, options, extremes) == []
    spec = SuiteSpec(suite, options=options)
    ((tokens, logits, flagged),) = on_shares(checkpoint, [ids], GenerationPlan(len(ids), 2), spec, parties)
    assert not differs(model, ids, tokens, wanted)
    assert not flagged
    assert float((logits - logits_after(model, ids, [])).abs().max()) < 0.02
