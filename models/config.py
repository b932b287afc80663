"""Reading a Hugging Face config.json: typed look-ups whose errors name the file, the key, its value and the remedy."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Self

from mpc.errors import CheckpointError
from protocols.suite import Activation

ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
}

# Options that change what a model computes, of which a family names those that it reads. Value: why, or what to do instead.
UNSUPPORTED: dict[str, str] = {
    "quantization_config": "quantised weights are not read; use the checkpoint in F32, F16 or BF16",
    "compression_config": "compressed weights are not read; use the checkpoint in F32, F16 or BF16",
    "num_local_experts": "mixture-of-experts layers are not supported",
    "num_experts": "mixture-of-experts layers are not supported",
    "n_routed_experts": "mixture-of-experts layers are not supported",
    "attn_logit_softcapping": "soft-capped attention scores are not supported",
    "final_logit_softcapping": "soft-capped logits are not supported",
    "query_pre_attn_scalar": "another score scale than 1/sqrt(head size) is not supported",
    "attention_multiplier": "another score scale than 1/sqrt(head size) is not supported",
    "embedding_multiplier": "scaled embeddings are not supported",
    "residual_multiplier": "scaled residuals are not supported",
    "logits_scaling": "scaled logits are not supported",
    "logit_scale": "scaled logits are not supported",
    "attention_sinks": "learned attention sinks are not supported",
    "attn_sinks": "learned attention sinks are not supported",
    "use_attention_sinks": "learned attention sinks are not supported",
    "attention_chunk_size": "chunked attention is not supported",
    "use_qk_norm": "normalised queries and keys are not supported",
    "qk_norm": "normalised queries and keys are not supported",
    "qk_layernorm": "normalised queries and keys are not supported",
    "clip_qkv": "clipped queries, keys and values are not supported",
    "alibi": "ALiBi positions are not supported",
    "no_rope_layers": "layers without rotary positions are not supported",
    "is_encoder_decoder": "encoder-decoder models are not supported",
    "add_cross_attention": "cross-attention is not supported",
    "pruned_heads": "pruned heads are not supported",
    "per_layer_config": "layers of different sizes are not supported",
}


def brief(value: object) -> str:
    """Return a value for a message, cut to 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


class Config:
    """config.json as a mapping. `path` is named in errors."""

    def __init__(self, values: Mapping[str, Any], path: Path) -> None:
        self.values = values
        self.path = path

    def without(self, *keys: str) -> Self:
        """Return the same without some options."""
        return type(self)({key: value for key, value in self.values.items() if key not in keys}, self.path)

    def with_defaults(self, defaults: Mapping[str, Any]) -> Self:
        """Return the same with what options are that it leaves out."""
        return type(self)({**defaults, **self.values}, self.path)

    def error(self, key: str, why: str) -> CheckpointError:
        """Return an error about one key, with its value."""
        if key in self.values:
            return CheckpointError(f"{self.path}: '{key}' = {brief(self.values[key])}: {why}")
        return CheckpointError(f"{self.path}: '{key}' is missing: {why}")

    def present(self, key: str) -> bool:
        """Whether the key has a value other than null."""
        return self.values.get(key) is not None

    def integer(self, key: str, default: int | None = None) -> int:
        """Return a positive integer."""
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.error(key, "a positive integer is needed")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Return a positive finite number."""
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
            raise self.error(key, "a positive number is needed")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """Return a boolean; null is the default."""
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(key, "true or false is needed")
        return value

    def token_ids(self, key: str, vocabulary: int) -> tuple[int, ...]:
        """Return one id, a list of ids, or null. Ids outside the vocabulary, such as -1, are left out: no such token ever
        comes."""
        value = self.values.get(key)
        ids = [] if value is None else value if isinstance(value, list) else [value]
        if not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
            raise self.error(key, "a token id, a list of them or null is needed")
        return tuple(dict.fromkeys(i for i in ids if 0 <= i < vocabulary))

    def activation(self, key: str, default: str) -> Activation:
        """Return an activation by Hugging Face's name."""
        value = self.values.get(key, default)
        if not isinstance(value, str) or value not in ACTIVATIONS:
            raise self.error(key, f"this activation is not supported; supported: {', '.join(ACTIVATIONS)}")
        return ACTIVATIONS[value]

    def refuse(self, key: str, why: str, *allowed: Any) -> None:
        """Raise when the key holds anything but null or an allowed value."""
        if self.present(key) and not any(type(a) is type(self.values[key]) and a == self.values[key] for a in allowed):
            raise self.error(key, why)

    def refuse_unsupported(self, computes: Collection[str] = ()) -> None:
        """Raise for every option of `UNSUPPORTED` that is switched on, but those that the family computes."""
        for key, why in UNSUPPORTED.items():
            if key not in computes:
                self.refuse(key, why, False, 0, 1.0, {}, [])


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object from a file. Raises `CheckpointError` naming the file."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; a Hugging Face checkpoint directory is needed") from None
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{path}: cannot be read ({type(error).__name__}); check the file and its permissions"
        ) from None
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is not valid JSON ({error}); download the file again") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: a JSON object is needed, found {type(values).__name__}")
    return values
