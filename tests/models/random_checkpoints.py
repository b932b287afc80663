"""Random Hugging Face models of odd shapes, saved to a directory: the oracle of the model tests. Nothing is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

GPT2_SMALL: dict[str, Any] = {"vocab_size": 97, "n_positions": 64, "n_embd": 60, "n_layer": 2, "n_head": 3}
LLAMA_SMALL: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 60,
    "intermediate_size": 52,
    "num_hidden_layers": 2,
    "num_attention_heads": 10,
    "num_key_value_heads": 5,
    "head_dim": 20,
    "max_position_embeddings": 128,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}

MIXTRAL_SMALL: dict[str, Any] = LLAMA_SMALL | {
    "intermediate_size": 28,
    "num_local_experts": 5,
    "num_experts_per_tok": 2,
    "experts_implementation": "eager",
}

# name -> (model class, config class, config values)
VARIANTS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "gpt2": (GPT2LMHeadModel, GPT2Config, GPT2_SMALL),
    "gpt2-erf-untied-inner": (
        GPT2LMHeadModel,
        GPT2Config,
        GPT2_SMALL
        | {"activation_function": "gelu", "tie_word_embeddings": False, "n_inner": 70, "layer_norm_epsilon": 1e-3},
    ),
    "gpt2-relu-one-head": (GPT2LMHeadModel, GPT2Config, GPT2_SMALL | {"activation_function": "relu", "n_head": 1}),
    "llama-grouped": (LlamaForCausalLM, LlamaConfig, LLAMA_SMALL),
    "llama-tied-biases-3-heads": (
        LlamaForCausalLM,
        LlamaConfig,
        LLAMA_SMALL
        | {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True, "rms_norm_eps": 1e-3}
        | {"num_attention_heads": 3, "num_key_value_heads": 3},
    ),
    "llama-rope-llama3": (LlamaForCausalLM, LlamaConfig, LLAMA_SMALL | {"rope_parameters": LLAMA3_ROPE}),
    "llama-rope-linear-gelu": (
        LlamaForCausalLM,
        LlamaConfig,
        LLAMA_SMALL
        | {
            "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.5},
            "hidden_act": "gelu_pytorch_tanh",
        },
    ),
    "mistral-window": (MistralForCausalLM, MistralConfig, LLAMA_SMALL | {"sliding_window": 5}),
    "mistral-no-window": (MistralForCausalLM, MistralConfig, LLAMA_SMALL | {"sliding_window": None}),
    "mixtral": (MixtralForCausalLM, MixtralConfig, MIXTRAL_SMALL),
    "mixtral-tied-window-3-of-7": (
        MixtralForCausalLM,
        MixtralConfig,
        MIXTRAL_SMALL | {"num_local_experts": 7, "num_experts_per_tok": 3, "tie_word_embeddings": True, "sliding_window": 5},
    ),
    "mixtral-1-of-4": (
        MixtralForCausalLM,
        MixtralConfig,
        MIXTRAL_SMALL | {"num_local_experts": 4, "num_experts_per_tok": 1},
    ),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, LLAMA_SMALL | {"tie_word_embeddings": True}),
    "qwen2-window-from-layer-1": (
        Qwen2ForCausalLM,
        Qwen2Config,
        LLAMA_SMALL | {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    ),
}


def build(name: str, seed: int = 0) -> Any:
    """A model in evaluation mode whose every parameter, gains and offsets included, is far from its neutral value."""
    torch.manual_seed(seed)
    model_class, config_class, values = VARIANTS[name]
    config = config_class(**values, bos_token_id=1, eos_token_id=None, attn_implementation="eager")
    model = model_class(config).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            gain = parameter.dim() == 1 and key.endswith("weight")
            deviation = 0.3 if parameter.dim() == 1 else 0.15
            parameter.copy_(torch.randn_like(parameter) * deviation + (1.0 if gain else 0.0))
    return model


def save(name: str, directory: Path, seed: int = 0, **options: Any) -> Any:
    """Build and save; returns the model."""
    model = build(name, seed)
    model.save_pretrained(directory, **options)
    return model


def prompt(model: Any, length: int, seed: int = 1) -> list[int]:
    """Random token ids."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, model.config.vocab_size, (length,), generator=generator).tolist()


def logits(model: Any, ids: list[int]) -> Tensor:
    """Hugging Face's logits [T, V]."""
    with torch.inference_mode():
        found: Tensor = model(torch.tensor([ids])).logits[0]
    return found


def byte_tokenizer(directory: Path) -> Tokenizer:
    """A byte-level tokenizer with one token a byte, saved as tokenizer.json."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(directory / "tokenizer.json"))
    return tokenizer
