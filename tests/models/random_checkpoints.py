"""Random Hugging Face models of odd shapes, saved to a directory: the oracle of the model tests. Nothing is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import (
    FalconConfig,
    FalconForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTJConfig,
    GPTJForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
    StableLmConfig,
    StableLmForCausalLM,
    Starcoder2Config,
    Starcoder2ForCausalLM,
)

from tests.models.random_sizes import drawn

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
QWEN3_MOE_SMALL: dict[str, Any] = LLAMA_SMALL | {
    "moe_intermediate_size": 28,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "experts_implementation": "eager",
}
# heads of width / heads channels, in families that have no head_dim
EVEN: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 60,
    "intermediate_size": 52,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "max_position_embeddings": 64,
}
NEOX: dict[str, Any] = {key: value for key, value in EVEN.items() if key != "num_key_value_heads"}
GEMMA: dict[str, Any] = LLAMA_SMALL | {"query_pre_attn_scalar": 30, "sliding_window": 5, "num_hidden_layers": 3}
LONG = {"rope_type": "longrope", "short_factor": [1.0, 1.5, 2.0, 2.5], "long_factor": [4.0, 4.0, 4.0, 4.0]}
FALCON: dict[str, Any] = {"vocab_size": 101, "hidden_size": 60, "num_hidden_layers": 2, "num_attention_heads": 6}

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
    "qwen3-moe": (Qwen3MoeForCausalLM, Qwen3MoeConfig, QWEN3_MOE_SMALL),
    "qwen3-moe-renormalised-tied-3-of-8": (
        Qwen3MoeForCausalLM,
        Qwen3MoeConfig,
        QWEN3_MOE_SMALL
        | {"num_experts": 8, "num_experts_per_tok": 3, "norm_topk_prob": True, "tie_word_embeddings": True}
        | {"mlp_only_layers": [0], "attention_bias": True},
    ),
    "qwen3-moe-every-second-window": (
        Qwen3MoeForCausalLM,
        Qwen3MoeConfig,
        QWEN3_MOE_SMALL
        | {"decoder_sparse_step": 2, "num_experts_per_tok": 1, "use_sliding_window": True, "sliding_window": 5},
    ),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, LLAMA_SMALL | {"tie_word_embeddings": True}),
    "qwen2-window-from-layer-1": (
        Qwen2ForCausalLM,
        Qwen2Config,
        LLAMA_SMALL | {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    ),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, LLAMA_SMALL | {"attention_bias": True, "tie_word_embeddings": True}),
    "gpt-neox": (GPTNeoXForCausalLM, GPTNeoXConfig, NEOX | {"rotary_pct": 0.4}),
    "gpt-neox-in-sequence": (
        GPTNeoXForCausalLM,
        GPTNeoXConfig,
        NEOX | {"use_parallel_residual": False, "attention_bias": False, "rotary_pct": 1.0, "num_attention_heads": 3},
    ),
    "phi3": (Phi3ForCausalLM, Phi3Config, EVEN | {"sliding_window": 5, "pad_token_id": 0}),
    "phi3-longrope-partial": (
        Phi3ForCausalLM,
        Phi3Config,
        EVEN
        | {"rope_parameters": LONG, "partial_rotary_factor": 0.8, "pad_token_id": 0}
        | {"original_max_position_embeddings": 32, "tie_word_embeddings": True},
    ),
    "gemma": (GemmaForCausalLM, GemmaConfig, LLAMA_SMALL | {"hidden_act": "gelu", "num_key_value_heads": 1}),
    "gemma2": (
        Gemma2ForCausalLM,
        Gemma2Config,
        GEMMA | {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0},
    ),
    "gemma3": (
        Gemma3ForCausalLM,
        Gemma3TextConfig,
        GEMMA
        | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "attention_bias": True}
        | {
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
                "full_attention": {"rope_type": "linear", "factor": 3.0, "rope_theta": 3000.0},
            }
        },
    ),
    "opt": (
        OPTForCausalLM,
        OPTConfig,
        {key: EVEN[key] for key in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")}
        | {"ffn_dim": 52, "max_position_embeddings": 64, "pad_token_id": 0},
    ),
    "falcon-7b": (FalconForCausalLM, FalconConfig, FALCON),
    "falcon-40b": (
        FalconForCausalLM,
        FalconConfig,
        FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2, "ffn_hidden_size": 52, "bias": True},
    ),
    "falcon-in-sequence": (
        FalconForCausalLM,
        FalconConfig,
        FALCON | {"multi_query": False, "parallel_attn": False, "tie_word_embeddings": False},
    ),
    "starcoder2": (Starcoder2ForCausalLM, Starcoder2Config, EVEN | {"sliding_window": 6}),
    "olmo2": (Olmo2ForCausalLM, Olmo2Config, EVEN | {"pad_token_id": 0}),
    "stablelm": (StableLmForCausalLM, StableLmConfig, EVEN | {"use_qkv_bias": True, "partial_rotary_factor": 0.4}),
    "stablelm-parallel-norms": (
        StableLmForCausalLM,
        StableLmConfig,
        EVEN | {"qk_layernorm": True, "use_parallel_residual": True, "partial_rotary_factor": 0.6},
    ),
    "smollm3": (
        SmolLM3ForCausalLM,
        SmolLM3Config,
        EVEN
        | {"no_rope_layer_interval": 2, "use_sliding_window": True, "sliding_window": 6, "num_hidden_layers": 3}
        | {"pad_token_id": 0},
    ),
    "granite": (
        GraniteForCausalLM,
        GraniteConfig,
        EVEN
        | {"attention_multiplier": 0.2, "embedding_multiplier": 3.0, "residual_multiplier": 0.4, "logits_scaling": 2.0}
        | {"attention_bias": True},
    ),
    "gptj": (
        GPTJForCausalLM,
        GPTJConfig,
        {"vocab_size": 101, "n_positions": 64, "n_embd": 60, "n_layer": 2, "n_head": 6, "n_inner": 52, "rotary_dim": 6},
    ),
}


def build(name: str, seed: int = 0, sizes: int = 0, layers: int = 0) -> Any:
    """A model in evaluation mode whose every parameter, gains and offsets included, is far from its neutral value.
    sizes: above 0, the seed of sizes of its own (`random_sizes`). layers: above 0, so many."""
    torch.manual_seed(seed)
    model_class, config_class, values = VARIANTS[name]
    values = drawn(values, sizes) if sizes else values
    if layers:
        values = values | {("num_hidden_layers" if "num_hidden_layers" in values else "n_layer"): layers}
    config = config_class(**values, bos_token_id=1, eos_token_id=None, attn_implementation="eager")
    model = model_class(config).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            gain = parameter.dim() == 1 and key.endswith("weight") and "gemma" not in name
            deviation = 0.3 if parameter.dim() == 1 else 0.15
            parameter.copy_(torch.randn_like(parameter) * deviation + (1.0 if gain else 0.0))
    return model


def save(name: str, directory: Path, seed: int = 0, sizes: int = 0, layers: int = 0, **options: Any) -> Any:
    """Build and save; returns the model."""
    model = build(name, seed, sizes, layers)
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
