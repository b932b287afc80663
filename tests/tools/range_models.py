"""Small random models with one planted excursion each: what real checkpoints have and what left rings silently.

Every builder takes a seed and returns a transformers model in evaluation mode, width 64.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

WIDTH, VOCABULARY, CHANNEL = 64, 61, 5
OUTLIER_TOKEN = 7  # the first token of every prompt
FAMILIES: dict[str, tuple[Any, Any]] = {
    "llama": (LlamaForCausalLM, LlamaConfig),
    "mistral": (MistralForCausalLM, MistralConfig),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config),
}


def _drawn(model: Any, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    model = model.eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            gain = parameter.dim() == 1 and key.endswith("weight")
            deviation = 0.1 if parameter.dim() == 1 else 0.15
            drawn = torch.randn(parameter.shape, generator=generator) * deviation
            parameter.copy_(drawn + (1.0 if gain else 0.0))
    return model


def gpt2(seed: int, layers: int = 2) -> Any:
    """GPT-2 with tied embeddings."""
    config = GPT2Config(vocab_size=VOCABULARY, n_positions=64, n_embd=WIDTH, n_layer=layers, n_head=4, bos_token_id=1,
                        eos_token_id=None, attn_implementation="eager")  # fmt: skip
    return _drawn(GPT2LMHeadModel(config), seed)


def gated(family: str, seed: int, layers: int = 2, **values: Any) -> Any:
    """LLaMA, Mistral or Qwen2 with 4 heads of 16 channels, 2 of keys and values, an untied head."""
    model, config = FAMILIES[family]
    return _drawn(
        model(
            config(
                vocab_size=VOCABULARY,
                hidden_size=WIDTH,
                intermediate_size=96,
                num_hidden_layers=layers,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=128,
                bos_token_id=1,
                eos_token_id=None,
                attn_implementation="eager",
                tie_word_embeddings=False,
                **values,
            )
        ),
        seed,
    )


@torch.no_grad()
def low_logits(seed: int) -> Any:
    """GPT-2 whose logits all lie near -300: the last norm's offset of one channel is -300, the table holds 1 there."""
    model = gpt2(seed)
    model.transformer.ln_f.bias[CHANNEL] = -300.0
    model.transformer.wte.weight[:, CHANNEL] = 1.0
    return model


@torch.no_grad()
def outlier(seed: int, family: str, size: float) -> Any:
    """One entry of the token table of `size`; the norms' gains of that channel are 0.1, as trained models have them."""
    model = gated(family, seed)
    model.model.embed_tokens.weight[OUTLIER_TOKEN, CHANNEL] = size
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            parameter[CHANNEL] = 0.1
    return model


@torch.no_grad()
def large_scores(seed: int, size: float, keys: float = 200.0, layers: int = 2) -> Any:
    """Qwen2 with key biases of `keys` in a channel of every head, and query biases that make scores of `size`."""
    model = gated("qwen2", seed, layers)
    channel = 3  # its rotary frequency spreads scores of 1 800 by about 110 over 11 tokens
    for layer in model.model.layers:
        for projection, bias in ((layer.self_attn.k_proj, keys), (layer.self_attn.q_proj, size * 4 / keys)):
            projection.bias.view(-1, 16)[:, channel] = bias
    return model


@torch.no_grad()
def large_values(seed: int, size: float) -> Any:
    """Qwen2 with value biases of `size` in every fourth channel."""
    model = gated("qwen2", seed)
    for layer in model.model.layers:
        layer.self_attn.v_proj.bias[::4] = size
    return model


@torch.no_grad()
def large_gates(seed: int, size: float) -> Any:
    """LLaMA with gate biases of `size` in every eighth channel."""
    model = gated("llama", seed, mlp_bias=True)
    for layer in model.model.layers:
        layer.mlp.gate_proj.bias[::8] = size
    return model


@torch.no_grad()
def small_table(seed: int, deviation: float) -> Any:
    """LLaMA with a token table of that deviation and an epsilon of 1e-6."""
    model = gated("llama", seed, rms_norm_eps=1e-6)
    model.model.embed_tokens.weight *= deviation / 0.15
    return model
