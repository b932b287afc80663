"""Random encoder-decoders of odd shapes, saved to a directory: the oracle of their tests. Nothing is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import MT5Config, MT5ForConditionalGeneration, T5Config, T5ForConditionalGeneration

from tests.models.random_sizes import drawn

START = 3
# heads whose channels are not width / heads, halves of buckets that do not divide, another depth on each side
SMALL: dict[str, Any] = {
    "vocab_size": 101,
    "d_model": 60,
    "d_kv": 14,
    "d_ff": 52,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 5,
    "relative_attention_num_buckets": 11,
    "relative_attention_max_distance": 13,
    "decoder_start_token_id": START,
}
# name -> (model class, config class, config values, whether the head is a table of its own)
VARIANTS: dict[str, tuple[Any, Any, dict[str, Any], bool]] = {
    "t5": (T5ForConditionalGeneration, T5Config, SMALL, False),
    "t5-gated-untied": (
        T5ForConditionalGeneration,
        T5Config,
        SMALL | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "layer_norm_epsilon": 1e-3},
        True,
    ),
    "t5-silu-one-head-usual-buckets": (
        T5ForConditionalGeneration,
        T5Config,
        SMALL
        | {"feed_forward_proj": "gated-silu", "num_heads": 1, "num_decoder_layers": None}
        | {"relative_attention_num_buckets": 32, "relative_attention_max_distance": 128},
        False,
    ),
    "t5-one-layer-each": (
        T5ForConditionalGeneration,
        T5Config,
        SMALL | {"feed_forward_proj": "gated-gelu", "num_layers": 1, "num_decoder_layers": 1},
        False,
    ),
    "mt5": (MT5ForConditionalGeneration, MT5Config, SMALL | {"relative_attention_num_buckets": 6}, True),
}


def build(name: str, seed: int = 0, sizes: int = 0) -> Any:
    """A model in evaluation mode whose every parameter is far from its neutral value. sizes: as in
    `random_checkpoints`."""
    torch.manual_seed(seed)
    model_class, config_class, values, own_head = VARIANTS[name]
    values = drawn(values, sizes) if sizes else values
    config = config_class(**values, pad_token_id=0, eos_token_id=None)
    model = model_class(config).eval()
    if own_head:
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            deviation = (
                1.0 if "relative" in key else 0.5 if key == "shared.weight" else 0.3 if parameter.dim() == 1 else 0.15
            )
            parameter.copy_(torch.randn_like(parameter) * deviation + (1.0 if parameter.dim() == 1 else 0.0))
    return model


def save(name: str, directory: Path, seed: int = 0, sizes: int = 0) -> Any:
    """Build and save; returns the model as transformers reads it."""
    build(name, seed, sizes).save_pretrained(directory)
    return VARIANTS[name][0].from_pretrained(directory, attn_implementation="eager").eval()


def logits(model: Any, ids: list[int], answer: list[int]) -> Tensor:
    """Hugging Face's logits [1 + answer, V] after the token that an answer begins behind, and after each of its tokens."""
    with torch.inference_mode():
        found: Tensor = model(
            input_ids=torch.tensor([ids]), decoder_input_ids=torch.tensor([[START, *answer]]), use_cache=False
        ).logits[0]
    return found


def generated(model: Any, ids: list[int], count: int) -> list[int]:
    """Hugging Face's greedy tokens; without its cache, which has layers of the encoder's number."""
    options = {"max_new_tokens": count, "do_sample": False, "use_cache": False}
    with torch.inference_mode():
        whole = model.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), **options)
    tokens: list[int] = whole[0, 1:].tolist()
    return tokens
