"""Options of well-known checkpoints, as their config.json has them: what is public about them, without weights.

Names are those that people say. Only options that a family reads are here; sources are the published files.
"""

from __future__ import annotations

from typing import Any


def _neox(width: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "gpt_neox",
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "vocab_size": 50304,
        "max_position_embeddings": 2048,
        "rotary_pct": 0.25,
    }


def _sizes(kind: str, sizes: tuple[int, int, int, int, int, int], vocabulary: int, **more: Any) -> dict[str, Any]:
    """Return options of a family with LLaMA's names. sizes: width, feed-forward width, layers, heads, key/value heads,
    positions."""
    width, forward, layers, heads, kv_heads, positions = sizes
    return {
        "model_type": kind,
        "hidden_size": width,
        "intermediate_size": forward,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": positions,
        "vocab_size": vocabulary,
        **more,
    }


def _opt(width: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "opt",
        "hidden_size": width,
        "ffn_dim": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": 2048,
        "vocab_size": 50272,
    }


_LLAMA32 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_PHI4 = {"rope_type": "longrope", "short_factor": [1.0] * 48}


def _t5(kind: str, sizes: tuple[int, int, int, int], vocabulary: int = 32128, **more: Any) -> dict[str, Any]:
    """Return options of T5. sizes: width, feed-forward width, layers of each side, heads of 64 channels."""
    width, forward, layers, heads = sizes
    return {
        "model_type": kind,
        "d_model": width,
        "d_ff": forward,
        "d_kv": 64,
        "num_layers": layers,
        "num_heads": heads,
        "vocab_size": vocabulary,
        "decoder_start_token_id": 0,
        "eos_token_id": 1,
        **more,
    }


def _bert(kind: str, end: str, vocabulary: int, **more: Any) -> dict[str, Any]:
    """Return options of an encoder of BERT's base size. end: of the class that was published."""
    return {
        "model_type": kind,
        "architectures": [end],
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 512,
        "vocab_size": vocabulary,
        **more,
    }


_ROBERTA = {"max_position_embeddings": 514, "type_vocab_size": 1, "pad_token_id": 1, "layer_norm_eps": 1e-5}

KNOWN: dict[str, dict[str, Any]] = {
    "llama-3-8b": _sizes(
        "llama", (4096, 14336, 32, 32, 8, 8192), 128256, rope_theta=5e5, rms_norm_eps=1e-5, tie_word_embeddings=False
    ),
    "llama-3.2-1b": _sizes(
        "llama",
        (2048, 8192, 16, 32, 8, 131072),
        128256,
        head_dim=64,
        rope_theta=5e5,
        rope_scaling=_LLAMA32,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
    ),
    "llama-3.2-3b": _sizes(
        "llama",
        (3072, 8192, 28, 24, 8, 131072),
        128256,
        head_dim=128,
        rope_theta=5e5,
        rope_scaling=_LLAMA32,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
    ),
    "tinyllama-1.1b": _sizes("llama", (2048, 5632, 22, 32, 4, 2048), 32000, rms_norm_eps=1e-5, tie_word_embeddings=False),
    "smollm2-360m": _sizes(
        "llama", (960, 2560, 32, 15, 5, 8192), 49152, rope_theta=1e5, rms_norm_eps=1e-5, tie_word_embeddings=True
    ),
    "smollm2-1.7b": _sizes(
        "llama", (2048, 8192, 24, 32, 32, 8192), 49152, rope_theta=1.3e5, rms_norm_eps=1e-5, tie_word_embeddings=True
    ),
    "smollm2-135m": _sizes(
        "llama", (576, 1536, 30, 9, 3, 8192), 49152, rope_theta=1e5, rms_norm_eps=1e-5, tie_word_embeddings=True
    ),
    "mistral-7b": _sizes("mistral", (4096, 14336, 32, 32, 8, 32768), 32000, sliding_window=4096, rms_norm_eps=1e-5),
    "mixtral-8x7b": _sizes(
        "mixtral",
        (4096, 14336, 32, 32, 8, 32768),
        32000,
        num_local_experts=8,
        num_experts_per_tok=2,
        rope_theta=1e6,
        rms_norm_eps=1e-5,
    ),
    "qwen3-30b-a3b": _sizes(
        "qwen3_moe",
        (2048, 6144, 48, 32, 4, 40960),
        151936,
        head_dim=128,
        moe_intermediate_size=768,
        num_experts=128,
        num_experts_per_tok=8,
        norm_topk_prob=True,
        rope_theta=1e6,
    ),
    "qwen2.5-0.5b": _sizes("qwen2", (896, 4864, 24, 14, 2, 32768), 151936, rope_theta=1e6, tie_word_embeddings=True),
    "qwen2.5-1.5b": _sizes("qwen2", (1536, 8960, 28, 12, 2, 32768), 151936, rope_theta=1e6, tie_word_embeddings=True),
    "qwen2.5-7b": _sizes("qwen2", (3584, 18944, 28, 28, 4, 32768), 152064, rope_theta=1e6, tie_word_embeddings=False),
    "qwen3-0.6b": _sizes(
        "qwen3", (1024, 3072, 28, 16, 8, 40960), 151936, head_dim=128, rope_theta=1e6, tie_word_embeddings=True
    ),
    "qwen3-1.7b": _sizes(
        "qwen3", (2048, 6144, 28, 16, 8, 40960), 151936, head_dim=128, rope_theta=1e6, tie_word_embeddings=True
    ),
    "qwen3-8b": _sizes(
        "qwen3", (4096, 12288, 36, 32, 8, 40960), 151936, head_dim=128, rope_theta=1e6, tie_word_embeddings=False
    ),
    "gemma-2b": _sizes("gemma", (2048, 16384, 18, 8, 1, 8192), 256000, head_dim=256, hidden_act="gelu"),
    "gemma-2-2b": _sizes("gemma2", (2304, 9216, 26, 8, 4, 8192), 256000, head_dim=256),
    "gemma-3-1b": _sizes(
        "gemma3_text", (1152, 6912, 26, 4, 1, 32768), 262144, head_dim=256, rope_theta=1e6, sliding_window=512
    ),
    "gemma-3-270m": _sizes(
        "gemma3_text", (640, 2048, 18, 4, 1, 32768), 262144, head_dim=256, rope_theta=1e6, sliding_window=512
    ),
    "phi-3-mini": _sizes("phi3", (3072, 8192, 32, 32, 32, 4096), 32064, sliding_window=2047),
    "phi-4-mini": _sizes(
        "phi3",
        (3072, 8192, 32, 24, 8, 131072),
        200064,
        original_max_position_embeddings=4096,
        partial_rotary_factor=0.75,
        rope_scaling=_PHI4,
        tie_word_embeddings=True,
    ),
    "opt-125m": _opt(768, 12, 12),
    "opt-2.7b": _opt(2560, 32, 32),
    "opt-1.3b": _opt(2048, 24, 32),
    "pythia-160m": _neox(768, 12, 12),
    "pythia-70m": _neox(512, 6, 8),
    "pythia-410m": _neox(1024, 24, 16),
    "pythia-1b": _neox(2048, 16, 8),
    "pythia-1.4b": _neox(2048, 24, 16),
    "gpt-j-6b": {
        "model_type": "gptj",
        "n_embd": 4096,
        "n_layer": 28,
        "n_head": 16,
        "n_positions": 2048,
        "rotary_dim": 64,
        "vocab_size": 50400,
    },
    "falcon-7b": {
        "model_type": "falcon",
        "hidden_size": 4544,
        "num_hidden_layers": 32,
        "num_attention_heads": 71,
        "vocab_size": 65024,
        "multi_query": True,
        "parallel_attn": True,
    },
    "stablelm-2-1.6b": _sizes("stablelm", (2048, 5632, 24, 32, 32, 4096), 100352, use_qkv_bias=True),
    "starcoder2-3b": _sizes(
        "starcoder2", (3072, 12288, 30, 24, 2, 16384), 49152, sliding_window=4096, rope_theta=999999.4420358813
    ),
    "olmo-2-1b": _sizes("olmo2", (2048, 8192, 16, 16, 16, 4096), 100352, rope_theta=5e5, rms_norm_eps=1e-6),
    "smollm3-3b": _sizes("smollm3", (2048, 11008, 36, 16, 4, 65536), 128256, rope_theta=5e6),
    "granite-3.1-2b": _sizes(
        "granite",
        (2048, 8192, 40, 32, 8, 131072),
        49155,
        attention_multiplier=0.015625,
        embedding_multiplier=12.0,
        residual_multiplier=0.22,
        logits_scaling=8.0,
        rope_theta=5e6,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
    ),
    "t5-small": _t5("t5", (512, 2048, 6, 8)),
    "t5-base": _t5("t5", (768, 3072, 12, 12)),
    "flan-t5-small": _t5("t5", (512, 1024, 8, 6), feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "flan-t5-base": _t5("t5", (768, 2048, 12, 12), feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "mt5-small": _t5("mt5", (512, 1024, 8, 6), vocabulary=250112, tie_word_embeddings=False),
}
"""Name -> options."""
KNOWN_ENCODERS: dict[str, dict[str, Any]] = {
    "bert-base-uncased": _bert("bert", "BertForMaskedLM", 30522),
    "roberta-base": _bert("roberta", "RobertaForMaskedLM", 50265, **_ROBERTA),
    "xlm-roberta-base": _bert("xlm-roberta", "XLMRobertaForMaskedLM", 250002, **_ROBERTA),
    "camembert-base": _bert("camembert", "CamembertForMaskedLM", 32005, **_ROBERTA),
    "distilbert-base-uncased": {
        "model_type": "distilbert",
        "architectures": ["DistilBertForMaskedLM"],
        "dim": 768,
        "hidden_dim": 3072,
        "n_layers": 6,
        "n_heads": 12,
        "max_position_embeddings": 512,
        "vocab_size": 30522,
    },
}
"""Likewise, of encoders; as they were published, with a head for masked words."""
