"""What a checkpoint directory can have wrong, and what a person then reads."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.checkpoint import load_checkpoint, read_architecture, read_description
from mpc.errors import CheckpointError
from tests.models import random_checkpoints as checkpoints
from tests.models import random_encoders as encoders


@pytest.fixture
def gpt2(tmp_path: Path) -> Path:
    checkpoints.save("gpt2", tmp_path)
    return tmp_path


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    checkpoints.save("llama-grouped", tmp_path)
    return tmp_path


def edit_config(directory: Path, **changes: Any) -> None:
    """Set keys of config.json; None removes one."""
    file = directory / "config.json"
    values = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in values.items() if k not in changes or v is not None}))


def edit_tensors(directory: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    file = directory / "model.safetensors"
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mamba"}, r"'model_type' = 'mamba': this architecture is not supported; supported: gpt2, llama"),
        ({"model_type": None}, r"'model_type' is missing"),
        (
            {"activation_function": "mish"},
            r"'activation_function' = 'mish': this activation is not supported; supported: g",
        ),
        ({"scale_attn_by_inverse_layer_idx": True}, r"'scale_attn_by_inverse_layer_idx' = True"),
        ({"scale_attn_weights": False}, r"'scale_attn_weights' = False"),
        ({"reorder_and_upcast_attn": True}, r"'reorder_and_upcast_attn' = True"),
        ({"add_cross_attention": True}, r"'add_cross_attention' = True: cross-attention is not supported"),
        ({"quantization_config": {"bits": 4}}, r"'quantization_config' = \{'bits': 4\}: quantised weights"),
        ({"n_head": 7}, r"'n_head' = 7: n_embd = 60 must be a multiple of it"),
        ({"n_layer": 0}, r"'n_layer' = 0: a positive integer is needed"),
        ({"n_layer": "2"}, r"'n_layer' = '2': a positive integer is needed"),
        ({"layer_norm_epsilon": -1}, r"'layer_norm_epsilon' = -1: a positive number is needed"),
        ({"vocab_size": None}, r"'vocab_size' is missing"),
        ({"eos_token_id": [1, "x"]}, r"'eos_token_id' = \[1, 'x'\]"),
        ({"tie_word_embeddings": "yes"}, r"'tie_word_embeddings' = 'yes': true or false is needed"),
    ],
)
def test_gpt2_options(gpt2: Path, changes: dict[str, Any], message: str) -> None:
    (gpt2 / "generation_config.json").unlink()
    edit_config(gpt2, **changes)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(gpt2)
    assert str(caught.value).startswith(f"{gpt2}/config.json: ")


@pytest.mark.parametrize(
    ("config", "generation", "ends"),
    [
        ({"bos_token_id": -1, "eos_token_id": -1}, None, ()),
        ({"bos_token_id": 9999, "eos_token_id": 9999}, None, ()),
        ({"bos_token_id": [1, 2], "eos_token_id": None}, {"eos_token_id": [3, 4]}, (3, 4)),
        ({"eos_token_id": 5}, {"eos_token_id": [3, 9999]}, (3,)),
        ({"eos_token_id": [5, 6]}, None, (5, 6)),
    ],
)
def test_ends_that_transformers_loads(
    gpt2: Path, config: dict[str, Any], generation: dict[str, Any] | None, ends: tuple[int, ...]
) -> None:
    """What no token is ends nothing; generation_config.json goes first, as in transformers."""
    (gpt2 / "generation_config.json").unlink()
    edit_config(gpt2, **config)
    if generation is not None:
        (gpt2 / "generation_config.json").write_text(json.dumps(generation))
    assert read_description(gpt2).eos == ends


ROPE = {"rope_type": "default", "rope_theta": 10000.0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_parameters": ROPE | {"rope_type": "su", "factor": 2.0}}, r"rope type 'su' is not supported"),
        ({"rope_parameters": None, "rope_scaling": {"type": "longrope"}}, r"'rope_scaling' = .*rope type 'longrope'"),
        ({"rope_parameters": ROPE | {"rope_type": "linear"}}, r"rope_parameters: 'factor' is missing"),
        ({"rope_parameters": ROPE | {"rope_type": "llama3", "factor": 8}}, r"rope_parameters: 'low_freq_factor' is missing"),
        ({"rope_parameters": ROPE | {"partial_rotary_factor": 0.5}}, r"'partial_rotary_factor' = 0\.5"),
        ({"rope_parameters": {"full_attention": ROPE}}, r"one set of rotary parameters for all layers"),
        ({"partial_rotary_factor": 0.25}, r"'partial_rotary_factor' = 0\.25"),
        ({"num_local_experts": 8}, r"'num_local_experts' = 8: mixture-of-experts"),
        ({"attn_logit_softcapping": 50.0}, r"'attn_logit_softcapping' = 50\.0: soft-capped"),
        ({"final_logit_softcapping": 30.0}, r"'final_logit_softcapping' = 30\.0"),
        ({"attention_sinks": 4}, r"'attention_sinks' = 4: learned attention sinks"),
        ({"sliding_window": 16}, r"'sliding_window' = 16: LLaMA has no sliding window"),
        ({"hidden_act": "laplace"}, r"'hidden_act' = 'laplace'"),
        ({"num_key_value_heads": 3}, r"'heads' = 10 must be a multiple of 'kv_heads' = 3"),
        ({"head_dim": 21}, r"'head_channels' = 21 must be even"),
    ],
)
def test_llama_options(llama: Path, changes: dict[str, Any], message: str) -> None:
    edit_config(llama, **changes)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(llama)
    assert str(llama / "config.json") in str(caught.value)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("mistral-window", {"layer_types": ["full_attention", "sliding_attention"]}, r"mixed full and sliding layers"),
        ("mistral-window", {"sliding_window": 0}, r"'sliding_window' = 0: a positive integer is needed"),
        ("qwen2", {"layer_types": ["full_attention", "chunked_attention"]}, r"supported: full_attention, sliding_attention"),
        ("qwen2", {"layer_types": ["full_attention"]}, r"one entry for each of 2 layers"),
        ("qwen2", {"layer_types": ["sliding_attention"] * 2}, r"need use_sliding_window = true"),
        ("qwen2-window-from-layer-1", {"max_window_layers": -1, "layer_types": None}, r"'max_window_layers' = -1"),
    ],
)
def test_window_options(tmp_path: Path, name: str, changes: dict[str, Any], message: str) -> None:
    checkpoints.save(name, tmp_path)
    edit_config(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=message):
        read_architecture(tmp_path)


def test_windows_without_layer_types(tmp_path: Path) -> None:
    checkpoints.save("qwen2-window-from-layer-1", tmp_path)
    edit_config(tmp_path, layer_types=None)
    assert read_architecture(tmp_path).windows == (None, 4)
    edit_config(tmp_path, use_sliding_window=False)
    assert read_architecture(tmp_path).windows is None


def test_missing_directory_and_config(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"/nowhere: no such directory; a Hugging Face checkpoint directory is needed"):
        load_checkpoint(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"config\.json: no such file"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(("text", "message"), [("{", "is not valid JSON"), ("[1]", "a JSON object is needed, found list")])
def test_broken_config(gpt2: Path, text: str, message: str) -> None:
    (gpt2 / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=rf"config\.json: {message}"):
        load_checkpoint(gpt2)
    (gpt2 / "config.json").write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError, match=r"config\.json: cannot be read \(UnicodeDecodeError\)"):
        load_checkpoint(gpt2)


def test_pickle_is_refused_with_the_reason(gpt2: Path) -> None:
    (gpt2 / "model.safetensors").rename(gpt2 / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: only safetensors .* a pickle, which runs code.*save_"):
        load_checkpoint(gpt2)


def test_no_weights(gpt2: Path) -> None:
    (gpt2 / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor model\.safetensors\.index\.json"):
        load_checkpoint(gpt2)


@pytest.mark.parametrize("keep", [0, 5, 200, -1])
def test_truncated_file(gpt2: Path, keep: int) -> None:
    file = gpt2 / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: truncated or not a safetensors file .*download it"):
        load_checkpoint(gpt2)


def test_git_lfs_pointer(gpt2: Path) -> None:
    (gpt2 / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: is a Git LFS pointer.*git lfs pull"):
        load_checkpoint(gpt2)


def test_missing_tensor(gpt2: Path, tmp_path: Path) -> None:
    edit_tensors(gpt2, lambda t: t.pop("transformer.h.1.mlp.c_fc.bias"))
    with pytest.raises(
        CheckpointError, match=r"tensor 'transformer\.h\.1\.mlp\.c_fc\.bias' is missing; use a complete checkpoint"
    ):
        load_checkpoint(gpt2)


def test_missing_head(llama: Path) -> None:
    edit_tensors(llama, lambda t: t.pop("lm_head.weight"))
    with pytest.raises(CheckpointError, match=r"tensor 'lm_head\.weight' is missing \(set tie_word_embeddings to true"):
        load_checkpoint(llama)
    edit_config(llama, tie_word_embeddings=True)
    load_checkpoint(llama)


def test_surplus_tensor(llama: Path) -> None:
    edit_tensors(llama, lambda t: t.update({"model.layers.0.self_attn.q_norm.weight": torch.ones(20)}))
    with pytest.raises(CheckpointError, match=r"tensor 'model\.layers\.0\.self_attn\.q_norm\.weight' is not part of a"):
        load_checkpoint(llama)


def test_wrong_shape(gpt2: Path) -> None:
    edit_config(gpt2, n_inner=70)
    with pytest.raises(CheckpointError, match=r"c_fc\.weight' has shape \[60, 240\], config\.json describes \[60, 70\]"):
        load_checkpoint(gpt2)


def test_wrong_dtype(gpt2: Path) -> None:
    edit_tensors(gpt2, lambda t: t.update({"transformer.wte.weight": t["transformer.wte.weight"].to(torch.int8)}))
    with pytest.raises(CheckpointError, match=r"'transformer\.wte\.weight' has dtype I8; supported: F32, F16, BF16"):
        load_checkpoint(gpt2)


def test_not_finite(gpt2: Path) -> None:
    edit_tensors(gpt2, lambda t: t["transformer.wpe.weight"].fill_(float("nan")))
    checkpoint = load_checkpoint(gpt2)
    with pytest.raises(CheckpointError, match=r"tensor 'transformer\.wpe\.weight' holds infinities or NaN"):
        checkpoint.weights["embedding.positions"]
    assert checkpoint.weights["embedding.tokens"].shape == (97, 60)


def test_tied_head_that_differs(gpt2: Path) -> None:
    edit_tensors(gpt2, lambda t: t.update({"lm_head.weight": t["transformer.wte.weight"].clone()}))
    load_checkpoint(gpt2)
    edit_tensors(gpt2, lambda t: t["lm_head.weight"].add_(1))
    with pytest.raises(CheckpointError, match=r"'lm_head\.weight' differs from the embedding.*tie_word_embeddings to false"):
        load_checkpoint(gpt2)


def sharded(directory: Path) -> tuple[Path, dict[str, Any]]:
    checkpoints.save("gpt2", directory, max_shard_size="60KB")
    index = directory / "model.safetensors.index.json"
    return index, json.loads(index.read_text())


def test_missing_shard(tmp_path: Path) -> None:
    _, values = sharded(tmp_path)
    name = values["weight_map"]["transformer.wte.weight"]
    (tmp_path / name).unlink()
    with pytest.raises(CheckpointError, match=rf"{name}: no such file, but model\.safetensors\.index\.json lists it"):
        load_checkpoint(tmp_path)


def test_index_names_a_file_elsewhere(tmp_path: Path) -> None:
    index, values = sharded(tmp_path)
    values["weight_map"]["transformer.wte.weight"] = "../../etc/model.safetensors"
    index.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"'transformer\.wte\.weight' is said to lie in '\.\./\.\./etc"):
        load_checkpoint(tmp_path)


def test_index_and_shard_disagree(tmp_path: Path) -> None:
    index, values = sharded(tmp_path)
    files = sorted(set(values["weight_map"].values()))
    values["weight_map"] = {k: files[0] if k == "transformer.ln_f.bias" else v for k, v in values["weight_map"].items()}
    index.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"tensor 'transformer\.ln_f\.bias' is missing, but .* lists it here"):
        load_checkpoint(tmp_path)


def test_empty_index(tmp_path: Path) -> None:
    index, _ = sharded(tmp_path)
    index.write_text("{}")
    with pytest.raises(CheckpointError, match=r"'weight_map' is missing or empty"):
        load_checkpoint(tmp_path)


def test_weights_are_canonical(llama: Path) -> None:
    checkpoint = load_checkpoint(llama)
    shapes = checkpoint.architecture.weight_shapes()
    assert list(checkpoint.weights) == list(shapes)
    assert len(checkpoint.weights) == len(shapes)
    for name, tensor in checkpoint.weights.items():
        assert tuple(tensor.shape) == shapes[name]
        assert tensor.dtype == torch.float32
        assert tensor.is_contiguous()
    assert load_checkpoint(llama, torch.float64).weights["head.weight"].dtype == torch.float64
    with pytest.raises(KeyError):
        checkpoint.weights["lm_head.weight"]


@pytest.mark.parametrize("gone", ["transformer.ln_f.bias", "transformer.wte.weight"])
@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_a_missing_tensor_has_the_name_of_the_files(gone: str, prefix: str, tmp_path: Path) -> None:
    """With the prefix that these files have, or without one."""
    checkpoints.save("gpt2", tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = {name.replace("transformer.", prefix): one for name, one in load_file(file).items() if name != gone}
    save_file(tensors, file)
    wanted = gone.replace("transformer.", prefix)
    with pytest.raises(CheckpointError, match=f"tensor '{re.escape(wanted)}' is missing"):
        load_checkpoint(tmp_path)


def test_a_missing_head_has_the_name_of_the_files(tmp_path: Path) -> None:
    """What stands behind an encoder has no prefix, what is inside it has one."""
    for gone in ("classifier.weight", "bert.pooler.dense.weight"):
        encoders.save("bert-classes", tmp_path)
        file = tmp_path / "model.safetensors"
        save_file({name: one for name, one in load_file(file).items() if name != gone}, file)
        with pytest.raises(CheckpointError, match=f"tensor '{re.escape(gone)}' is missing"):
            load_checkpoint(tmp_path)
