"""Options of config.json mean what they mean to transformers with the same folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, MistralConfig, Qwen2Config

from models.architecture import Rotary
from models.checkpoint import load_checkpoint, read_architecture
from models.generation import GenerationPlan, generate_plain, plain_logits
from mpc.errors import CheckpointError
from tests.models import random_checkpoints as checkpoints
from tests.models.policies.test_keeping_everything_on_shares import run as on_shares

PROMPT, NEW = 12, 14


def edit(directory: Path, **changes: Any) -> None:
    """Change keys of config.json; `...` removes one."""
    file = directory / "config.json"
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


def hugging_face(directory: Path) -> Any:
    """A fresh model: dynamic rotary positions remember what came before."""
    return AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager").eval()


def generated(model: Any, ids: list[int], count: int) -> list[int]:
    mask = torch.ones(1, len(ids))
    with torch.inference_mode():
        whole = model.generate(
            torch.tensor([ids]), attention_mask=mask, max_new_tokens=count, do_sample=False, pad_token_id=0
        )
    return whole[0, len(ids) :].tolist()


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small LLaMA trained for 16 positions, it says."""
    directory = tmp_path_factory.mktemp("llama")
    checkpoints.save("llama-grouped", directory)
    edit(directory, max_position_embeddings=16, eos_token_id=None)
    return directory


YARN = {"rope_type": "yarn", "factor": 4.0}
SCALED = {
    "linear": {"rope_type": "linear", "factor": 2.5},
    "llama3": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "dynamic": {"type": "dynamic", "factor": 3},
    "yarn": YARN,
    "yarn-rope_type-wins": YARN | {"type": "linear"},
    "yarn-no-truncation": YARN | {"truncate": False, "beta_fast": 3.0, "beta_slow": 0.25},
    "yarn-attention-factor": YARN | {"attention_factor": 0.5, "beta_fast": 0, "mscale": 3.0, "mscale_all_dim": 1.0},
    "yarn-mscale": YARN | {"factor": 40, "mscale": 2.0, "mscale_all_dim": 0.5, "original_max_position_embeddings": 8},
    "yarn-mscale-alone": YARN | {"mscale": 3.0},
    "yarn-no-factor": YARN | {"factor": None, "original_max_position_embeddings": 4},
}


def same_as_hugging_face(directory: Path) -> torch.Tensor:
    """Compares the logits of 26 tokens, then the tokens of a generation; returns the logits."""
    model, checkpoint = hugging_face(directory), load_checkpoint(directory)
    most = checkpoint.architecture.positions
    ids = checkpoints.prompt(model, min(PROMPT + NEW, most))
    wanted = checkpoints.logits(model, ids)
    torch.testing.assert_close(plain_logits(checkpoint, ids), wanted, atol=1e-4, rtol=0)
    count = min(NEW, most - PROMPT + 1)
    tokens = generated(model, ids[:PROMPT], count)  # dynamic positions of transformers start anew with a short prompt
    assert generate_plain(checkpoint, ids[:PROMPT], GenerationPlan(PROMPT, count)) == tokens
    return wanted


@pytest.fixture(scope="module")
def unscaled(llama: Path) -> torch.Tensor:
    """Logits without any scaling."""
    edit(llama, rope_parameters={"rope_theta": 300.0, "rope_type": "default"})
    model = hugging_face(llama)
    return checkpoints.logits(model, checkpoints.prompt(model, PROMPT + NEW))


@pytest.mark.parametrize("name", sorted(SCALED))
def test_scaled_rotary_positions(llama: Path, unscaled: torch.Tensor, name: str) -> None:
    edit(llama, rope_parameters={"rope_theta": 300.0, **SCALED[name]})
    found = same_as_hugging_face(llama)
    assert (found - unscaled[: len(found)]).abs().max() > 0.02  # the comparison could fail


def test_rope_scaling_takes_the_place_of_rope_parameters(llama: Path) -> None:
    edit(
        llama,
        rope_parameters={"rope_type": "linear", "rope_theta": 7.0, "factor": 9.0},
        rope_scaling={"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 3},
        original_max_position_embeddings=8,
        rope_theta=300.0,
    )
    rotary = read_architecture(llama).rotary
    assert rotary is not None
    assert (rotary.theta, rotary.scaling, rotary.factor, rotary.original_positions) == (300.0, "yarn", 4.0, 8)
    same_as_hugging_face(llama)
    edit(llama, rope_theta=..., original_max_position_embeddings=..., rope_scaling={})
    assert read_architecture(llama).rotary == Rotary(theta=7.0, scaling="linear", factor=9.0)
    same_as_hugging_face(llama)
    edit(llama, rope_scaling=..., rope_parameters=...)


def test_dynamic_positions_cross_the_original_ones(llama: Path) -> None:
    """Also where the prompt itself is longer, and comes in two batches."""
    edit(llama, rope_scaling=SCALED["dynamic"])
    checkpoint = load_checkpoint(llama)
    assert checkpoint.architecture.positions == 48
    ids = checkpoints.prompt(hugging_face(llama), 20)
    wanted = generated(hugging_face(llama), ids, 20)
    assert generate_plain(checkpoint, ids, GenerationPlan(20, 20)) == wanted
    assert generate_plain(checkpoint, ids, GenerationPlan(20, 20, policy="chunked:tokens=7|full")) == wanted
    edit(llama, rope_scaling=...)


def test_on_shares(llama: Path) -> None:
    """The cosines of a sequence that has grown beyond the original positions."""
    edit(llama, max_position_embeddings=7, rope_scaling={"type": "dynamic", "factor": 8.0, "rope_theta": 300.0})
    checkpoint = load_checkpoint(llama)
    ids = checkpoints.prompt(hugging_face(llama), 7)
    tokens, logits, _ = on_shares(checkpoint, ids, "full", "masked")
    wanted = checkpoints.logits(hugging_face(llama), ids)[-1]
    assert tokens[0] == wanted.argmax()
    grown = hugging_face(llama)
    mask = torch.ones(1, 7)
    with torch.inference_mode():
        cache = grown(torch.tensor([ids]), attention_mask=mask, use_cache=True).past_key_values
        wanted = grown(torch.tensor([tokens[:1]]), past_key_values=cache).logits[0, -1]
    torch.testing.assert_close(logits[-1][0].float(), wanted, atol=0.02, rtol=0)
    edit(llama, max_position_embeddings=16, rope_scaling=...)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            {"type": "longrope", "factor": 2.0},
            r"rope type 'longrope' is not supported; supported: default, linear, llama3, d",
        ),
        ({"rope_type": None}, r"rope type None is not supported"),
        ({"type": "dynamic"}, r"rope_scaling: 'factor' is missing"),
        ({"type": "linear", "factor": None}, r"rope_scaling: 'factor' = None"),
        (
            {"type": "linear", "factor": 2, "partial_rotary_factor": 0.5},
            r"'partial_rotary_factor' = 0\.5: rotary positions on",
        ),
        ({"type": "yarn", "factor": 2.0, "attention_factor": 0.0}, r"'attention_factor' = 0\.0: a positive number"),
        ({"type": "yarn", "factor": 2.0, "truncate": "no"}, r"'truncate' = 'no': true or false"),
        (
            {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": None},
            r"'original_max_position_embeddings' = N",
        ),
        ({"type": "yarn", "factor": 2.0, "rope_theta": 1.0}, r"'theta' = 1\.0 must be larger than 1 for yarn"),
    ],
)
def test_what_is_refused(llama: Path, entry: dict[str, Any], message: str) -> None:
    edit(llama, rope_scaling=entry)
    with pytest.raises(CheckpointError, match=message):
        read_architecture(llama)
    edit(llama, rope_scaling=...)


@pytest.mark.parametrize(("name", "kind"), [("mistral-window", MistralConfig), ("qwen2-window-from-layer-1", Qwen2Config)])
def test_options_that_are_left_out(tmp_path: Path, name: str, kind: Any) -> None:
    heads = kind().num_key_value_heads
    checkpoints.save(name, tmp_path)
    edit(tmp_path, num_attention_heads=64, sliding_window=..., num_key_value_heads=..., rms_norm_eps=..., layer_types=...)
    found = read_architecture(tmp_path)
    assert (found.kv_heads, found.norm.epsilon) == (heads, kind().rms_norm_eps)
    assert found.windows == ((4096, 4096) if kind is MistralConfig else (None, 4096))
    edit(tmp_path, sliding_window=None)
    assert read_architecture(tmp_path).windows is None


def test_token_ids_that_never_come(tmp_path: Path) -> None:
    model = checkpoints.save("llama-grouped", tmp_path)
    (tmp_path / "generation_config.json").unlink()
    ids = checkpoints.prompt(model, 7)
    free = generated(model, ids, 8)
    for bos, eos, known in (
        (-1, -1, ()),
        (101, 5000, ()),
        (None, [5000, free[4], -1, free[4]], (free[4],)),
        (2, [], ()),
    ):
        edit(tmp_path, bos_token_id=bos, eos_token_id=eos)
        checkpoint = load_checkpoint(tmp_path)
        assert (checkpoint.architecture.bos, checkpoint.architecture.eos) == (2 if bos == 2 else None, known)
        assert generate_plain(checkpoint, ids, GenerationPlan(7, 8)) == generated(hugging_face(tmp_path), ids, 8)
    for ends in ([5000, free[2]], free[2]):
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
        assert load_checkpoint(tmp_path).architecture.eos == (free[2],)
        assert generated(hugging_face(tmp_path), ids, 8) == free[: free.index(free[2]) + 1]


@pytest.mark.parametrize(
    ("name", "key"), [("gemma", "hidden_act"), ("gemma2", "hidden_activation"), ("gemma3", "hidden_activation")]
)
def test_gelu_is_its_tanh_form_in_the_first_gemma_alone(name: str, key: str, tmp_path: Path) -> None:
    checkpoints.save(name, tmp_path)
    edit(tmp_path, **{key: "gelu"})
    model = hugging_face(tmp_path)
    ids = checkpoints.prompt(model, PROMPT)
    torch.testing.assert_close(
        plain_logits(load_checkpoint(tmp_path), ids), checkpoints.logits(model, ids), atol=1e-4, rtol=0
    )
    assert (read_architecture(tmp_path).activation == "gelu") == (name != "gemma")


def test_a_tied_head_with_a_bias(tmp_path: Path) -> None:
    """GPT-J keeps the head's bias where its matrix is the embedding."""
    kind, config, values = checkpoints.VARIANTS["gptj"]
    torch.manual_seed(0)
    model = kind(config(**values, tie_word_embeddings=True, attn_implementation="eager")).eval()
    with torch.no_grad():
        model.lm_head.bias.normal_()
    model.save_pretrained(tmp_path)
    ids = checkpoints.prompt(model, PROMPT)
    torch.testing.assert_close(
        plain_logits(load_checkpoint(tmp_path), ids), checkpoints.logits(model, ids), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("stablelm", "model.layers.0.self_attn.rotary_emb.inv_freq"),
        ("llama-grouped", "model.layers.1.self_attn.rotary_emb.inv_freq"),
        ("gpt-neox", "gpt_neox.layers.0.attention.rotary_emb.inv_freq"),
    ],
)
def test_frequencies_that_earlier_files_hold_are_passed_over(name: str, stored: str, tmp_path: Path) -> None:
    """They follow from config.json, and transformers does not read them either."""
    model = checkpoints.save(name, tmp_path)
    file = tmp_path / "model.safetensors"
    save_file(load_file(file) | {stored: torch.ones(2)}, file, metadata={"format": "pt"})
    ids = checkpoints.prompt(model, PROMPT)
    torch.testing.assert_close(
        plain_logits(load_checkpoint(tmp_path), ids), checkpoints.logits(model, ids), atol=1e-4, rtol=0
    )
