"""Options drawn at random for a variant of `random_checkpoints`: what config.json may say of a family beside sizes.

Not all that is drawn fits together: transformers refuses some, this project others by name.
"""

from __future__ import annotations

import random
from typing import Any

BOTH = (True, False)
GATED = ("silu", "gelu", "gelu_pytorch_tanh", "relu")
SLIDING = {"use_sliding_window": BOTH, "sliding_window": (None, 4), "max_window_layers": (0, 1, 2)}
EVERYWHERE: dict[str, tuple[Any, ...]] = {"tie_word_embeddings": BOTH}
GEMMA = {"attention_bias": BOTH, "hidden_activation": GATED, "query_pre_attn_scalar": (7, 20, 256)}
MIXTURE = {"num_experts_per_tok": (1, 2, 4), "hidden_act": GATED}

CHOICES: dict[str, dict[str, tuple[Any, ...]]] = {
    "gpt2": {"activation_function": ("gelu_new", "gelu", "silu"), "scale_attn_by_inverse_layer_idx": BOTH},
    "llama": {"attention_bias": BOTH, "mlp_bias": BOTH, "hidden_act": GATED, "pretraining_tp": (1, 2)},
    "mistral": {"sliding_window": (None, 3), "hidden_act": GATED},
    "mixtral": {"sliding_window": (None, 3), **MIXTURE},
    "qwen2": SLIDING,
    "qwen3": {"attention_bias": BOTH, "hidden_act": GATED, **SLIDING},
    "qwen3_moe": {
        "norm_topk_prob": BOTH,
        "mlp_only_layers": ([], [0], [1]),
        "decoder_sparse_step": (1, 2),
        "attention_bias": BOTH,
        **MIXTURE,
        **SLIDING,
    },
    "gemma": {"attention_bias": BOTH, "hidden_act": GATED},
    "gemma2": {"attn_logit_softcapping": (None, 5.0), "final_logit_softcapping": (None, 3.0), **GEMMA},
    "gemma3_text": {"final_logit_softcapping": (None, 3.0), **GEMMA},
    "phi3": {"sliding_window": (None, 5), "hidden_act": GATED},
    "opt": {
        "enable_bias": BOTH,
        "layer_norm_elementwise_affine": BOTH,
        "do_layer_norm_before": BOTH,
        "activation_function": ("relu", "gelu"),
    },
    "gpt_neox": {
        "use_parallel_residual": BOTH,
        "attention_bias": BOTH,
        "hidden_act": ("gelu", "gelu_fast", "relu", "silu", "gelu_new"),
    },
    "gptj": {"rotary_dim": (6, 10, 4), "activation_function": ("gelu_new", "relu"), "n_inner": (None, 44)},
    "falcon": {
        "multi_query": BOTH,
        "parallel_attn": BOTH,
        "new_decoder_architecture": BOTH,
        "bias": BOTH,
        "num_ln_in_parallel_attn": (None, 1, 2),
        "num_kv_heads": (None, 1, 2),
        "activation": ("gelu", "relu"),
        "ffn_hidden_size": (None, 44),
    },
    "stablelm": {"use_qkv_bias": BOTH, "qk_layernorm": BOTH, "use_parallel_residual": BOTH, "layer_norm_eps": (1e-3, 1e-5)},
    "starcoder2": {"use_bias": BOTH, "sliding_window": (None, 5), "hidden_act": ("gelu_pytorch_tanh", "gelu")},
    "olmo2": {"attention_bias": BOTH, "hidden_act": GATED},
    "smollm3": {
        "attention_bias": BOTH,
        "mlp_bias": BOTH,
        "use_sliding_window": BOTH,
        "no_rope_layer_interval": (1, 2, 3),
        "no_rope_layers": (None, [1, 0, 1], [0, 0, 0]),
    },
    "granite": {
        "attention_bias": BOTH,
        "mlp_bias": BOTH,
        "residual_multiplier": (1.0, 0.3),
        "logits_scaling": (1.0, 4.0),
    },
}
"""model_type -> option -> values that it may have."""


def options(kind: str, seed: int) -> dict[str, Any]:
    """Return options of a family, some of those that there are; the same ones for the same seed.

    >>> options("qwen2", 3)
    {'use_sliding_window': True, 'max_window_layers': 0}
    """
    draw = random.Random(f"{kind} {seed}")
    choices = CHOICES[kind] | EVERYWHERE
    return {name: draw.choice(values) for name, values in choices.items() if draw.random() < 0.6}
