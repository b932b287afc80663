"""A GGUF file's metadata as the values of a Hugging Face config.json.

Keys of the architecture are read or refused by name, none is skipped: each says how the model computes. transformers' own
reading (`modeling_gguf_pytorch_utils`) skips what it does not know, scaled rotary positions and GPT-2's sizes among it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from models.gguf.header import GgufHeader, MetadataValue
from models.gguf.weights import read_array
from mpc.errors import CheckpointError

ROPE_FACTORS = "rope_freqs.weight"
FACTOR_TOLERANCE = 1e-4

# GGUF key without the architecture -> key of config.json
_ROTARY_KEYS = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
_GPT2_KEYS = {
    "context_length": "n_positions",
    "block_count": "n_layer",
    "embedding_length": "n_embd",
    "feed_forward_length": "n_inner",
    "attention.head_count": "n_head",
    "attention.layer_norm_epsilon": "layer_norm_epsilon",
}
# Read below, in a place of their own.
_OTHERS = {
    "vocab_size",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.sliding_window",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
}
# Values at which a key changes nothing.
_NEUTRAL: dict[str, tuple[MetadataValue, ...]] = {
    "tensor_data_layout": ("Meta AI original pth",),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "attention.causal": (True,),
    "attention.max_alibi_bias": (0.0,),
    "attention.clamp_kqv": (0.0,),
    "logit_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "embedding_scale": (0.0, 1.0),
    "attention.scale": (0.0,),
    "pooling_type": (0,),
    "rope.scaling.attn_factor": (1.0,),
    "rope.scaling.yarn_log_multiplier": (0.0,),
}
_WHY = {
    "expert_count": "mixture-of-experts layers are not supported",
    "expert_used_count": "mixture-of-experts layers are not supported",
    "attention.causal": "only decoders are supported",
}
_SENTENCEPIECE = {"bos": 1, "eos": 2, "unk": 0}
_CLASSES = {
    "gpt2": "GPT2LMHeadModel",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
}


def config_values(header: GgufHeader) -> dict[str, Any]:
    """Return config.json of the model in the file, as `models.config.Config` reads it.

    Raises `CheckpointError` naming the architecture, key or tensor that is not supported or missing.
    """
    architecture = _architecture(header)
    _refuse_unknown(header, architecture)
    keys = _GPT2_KEYS if architecture == "gpt2" else _ROTARY_KEYS
    values: dict[str, Any] = {}
    for gguf_key, key in keys.items():
        number = header.number if key.endswith(("eps", "epsilon")) else header.integer
        found = number(f"{architecture}.{gguf_key}")
        if found is None:
            raise header.error(f"'{architecture}.{gguf_key}' is missing; use a complete file")
        values[key] = found
    values["vocab_size"] = _vocabulary(header, architecture)
    values["tie_word_embeddings"] = "output.weight" not in header.tensors
    kind = architecture
    if architecture == "gpt2":
        values["activation_function"] = "gelu_new"
    else:
        kind = _rotary_values(header, architecture, values)
    values |= {f"{role}_token_id": special_id(header, role) for role in ("bos", "eos", "pad")}
    return {"model_type": kind, "architectures": [_CLASSES[kind]], "dtype": "float32", **values}


def _architecture(header: GgufHeader) -> str:
    """Return the file's architecture, where it is one model of a supported family."""
    kind = header.text("general.type", "model")
    if kind != "model":
        raise header.error(f"'general.type' = '{kind}' is not a model; the file of the model itself is needed")
    pieces = header.integer("split.count", 1) or 1
    if pieces > 1:
        raise header.error(f"is one of {pieces} pieces of a model; join them first: llama-gguf-split --merge FIRST OUT.gguf")
    architecture = header.text("general.architecture")
    supported = [name for name in _CLASSES if name != "mistral"]
    if architecture not in supported:
        said = "is missing" if architecture is None else f"= '{architecture}' is not supported"
        raise header.error(f"'general.architecture' {said}; supported: {', '.join(supported)} (Mistral's files say llama)")
    return architecture


def _refuse_unknown(header: GgufHeader, architecture: str) -> None:
    known = {"vocab_size", *_GPT2_KEYS} if architecture == "gpt2" else _OTHERS | set(_ROTARY_KEYS)
    for key, value in header.metadata.items():
        prefix, _, name = key.partition(".")
        if prefix != architecture or name in known or value in _NEUTRAL.get(name, ()):
            continue
        raise header.error(f"'{key}' = {str(value)[:80]}: {_WHY.get(name, 'what it asks for is not supported')}")


def _vocabulary(header: GgufHeader, architecture: str) -> int:
    table = header.tensors.get("token_embd.weight")
    if table is None or len(table.shape) != 2:
        raise header.error("tensor 'token_embd.weight' is missing; use a complete file")
    stated = header.integer(f"{architecture}.vocab_size", table.shape[0])
    if stated != table.shape[0]:
        raise header.error(f"'{architecture}.vocab_size' = {stated}, but 'token_embd.weight' has {table.shape[0]} rows")
    return table.shape[0]


def _rotary_values(header: GgufHeader, architecture: str, values: dict[str, Any]) -> str:
    """Adds what models with rotary positions have. Returns config.json's model_type."""
    heads = values["num_attention_heads"]
    values["num_key_value_heads"] = header.integer(f"{architecture}.attention.head_count_kv", heads)
    values["hidden_act"] = "silu"
    rotated = header.integer(f"{architecture}.rope.dimension_count")
    size = header.integer(f"{architecture}.attention.key_length", rotated)
    if size is None and heads and values["hidden_size"] % heads == 0:
        size = values["hidden_size"] // heads
    if header.integer(f"{architecture}.attention.value_length", size) != size:
        raise header.error(f"'{architecture}.attention.value_length' differs from the keys'; this is not supported")
    if rotated not in (None, size):
        raise header.error(f"'{architecture}.rope.dimension_count' = {rotated} of {size} channels is not supported")
    values["head_dim"] = size
    values["rope_parameters"] = _rope(header, architecture, values)
    window = header.integer(f"{architecture}.attention.sliding_window")
    if window and architecture == "qwen2":
        raise header.error("'qwen2.attention.sliding_window' is set, but not which layers it is for; this is not supported")
    if architecture == "llama":
        values["attention_bias"] = "blk.0.attn_q.bias" in header.tensors
        values["mlp_bias"] = "blk.0.ffn_down.bias" in header.tensors
        if window:
            values["sliding_window"] = window
            return "mistral"
    return architecture


def _rope(header: GgufHeader, architecture: str, values: dict[str, Any]) -> dict[str, Any]:
    """Return `rope_parameters` of config.json: default, linear, yarn, or llama3 from the factors stored as a tensor."""
    at = f"{architecture}.rope"
    theta = header.number(f"{at}.freq_base", 10_000.0)
    kind = header.text(f"{at}.scaling.type", "none")
    factor = header.number(f"{at}.scaling.factor", header.number(f"{at}.scale_linear", 1.0))
    if f"{at}.scaling.type" not in header.metadata and factor not in (0.0, 1.0):
        kind = "linear"
    if ROPE_FACTORS in header.tensors:
        if kind not in ("none", "linear") or factor not in (0.0, 1.0):
            raise header.error(f"has '{ROPE_FACTORS}' beside '{at}.scaling.*'; this is not supported")
        return _llama3(header, float(theta or 0), int(values["head_dim"] or 0))
    if kind in ("none", "linear") and factor in (0.0, 1.0):
        return {"rope_type": "default", "rope_theta": theta}
    original = header.integer(f"{at}.scaling.original_context_length")
    if kind == "linear":
        return {"rope_type": "linear", "rope_theta": theta, "factor": factor}
    if kind == "yarn" and original:
        return {
            "rope_type": "yarn",
            "rope_theta": theta,
            "factor": factor,
            "original_max_position_embeddings": original,
        }
    raise header.error(f"'{at}.scaling.type' = '{kind}' is not supported; supported: none, linear, yarn with its length")


def _llama3(header: GgufHeader, theta: float, channels: int) -> dict[str, Any]:
    """Return LLaMA 3's parameters, found again from the factors of its frequencies.

    The file has the factors alone. All published models use the low and high frequency factors 1 and 4 and 8 192 original
    positions; factors that these do not give are refused.
    """
    stored = header.tensors[ROPE_FACTORS]
    if stored.shape != (channels // 2,) or theta <= 0:
        raise header.error(f"'{ROPE_FACTORS}' has sizes {list(stored.shape)}, [{channels // 2}] is needed")
    found = read_array(header, stored).astype(np.float64)
    parameters: dict[str, Any] = {
        "rope_type": "llama3",
        "rope_theta": theta,
        "factor": float(found.max()),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    waves = 2 * math.pi * theta ** (np.arange(0, channels, 2) / channels)
    smooth = np.clip((parameters["original_max_position_embeddings"] / waves - 1.0) / (4.0 - 1.0), 0.0, 1.0)
    wanted = 1.0 / ((1.0 - smooth) / parameters["factor"] + smooth)
    if not np.allclose(found, wanted, rtol=FACTOR_TOLERANCE, atol=0.0):
        raise header.error(f"'{ROPE_FACTORS}' holds factors that are not LLaMA 3's; this scaling is not supported")
    return parameters


def special_id(header: GgufHeader, role: str) -> int | None:
    """Return the token of a role ("bos", "eos", "unk", "pad", "eot", "eom"); None where the file names none of its tokens.

    Sentencepiece files that leave bos, eos and unk out mean 1, 2 and 0, as llama.cpp reads them.
    """
    key = {"unk": "unknown", "pad": "padding"}.get(role, role)
    default = _SENTENCEPIECE.get(role) if header.text("tokenizer.ggml.model") == "llama" else None
    found = header.integer(f"tokenizer.ggml.{key}_token_id", default)
    table = header.tensors.get("token_embd.weight")
    return found if found is not None and table is not None and found < table.shape[0] else None


def unexpected(header: GgufHeader, used: set[str]) -> CheckpointError | None:
    """Return the error for the first tensor that is not part of the model, None where there is none."""
    for name in header.tensors:
        if name not in used and name != ROPE_FACTORS:
            return header.error(f"tensor '{name}' is not part of the model that its metadata describes; not supported")
    return None
