"""Falcon: attention with one or few keys and values beside a feed-forward layer, queries, keys and values fused by group."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from models.families.standard import Standard, renamed

NAMES = renamed(
    {
        "tokens": "word_embeddings",
        "norm": "ln_f",
        "layer": "h",
        "qkv": "self_attention.query_key_value",
        "out": "self_attention.dense",
        "up": "mlp.dense_h_to_4h",
        "down": "mlp.dense_4h_to_h",
    },
    without=("q", "k", "v", "gate"),
)
KEYS = {"kv_heads": "num_kv_heads", "head_channels": "", "feed_forward": "ffn_hidden_size", "activation": "activation"}
KEYS |= {"epsilon": "layer_norm_epsilon"}


class Falcon(Standard):
    """Reads `FalconForCausalLM` checkpoints. Source: Almazrouei et al., arXiv 2311.16867."""

    prefix = "transformer."
    tied_by_default = layer_norm = True
    activation = "gelu"
    epsilon = 1e-5
    names = NAMES
    keys: ClassVar[Mapping[str, str]] = KEYS
    defaults: ClassVar[Mapping[str, Any]] = {"max_position_embeddings": 2048}

    def biases(self) -> tuple[bool, bool, bool]:
        """Return biases as `bias` says."""
        return (self.config.flag("bias", False),) * 3

    def fused_rows(self) -> Tensor:
        """Return the order of rows that are stored by group: its queries, its key, its value."""
        a = self.architecture
        rows = torch.arange((a.heads + 2 * a.kv_heads) * a.head_channels).reshape(a.kv_heads, a.group + 2, -1)
        return torch.cat([rows[:, : a.group].reshape(-1), rows[:, a.group].reshape(-1), rows[:, -1].reshape(-1)])

    def options(self) -> dict[str, Any]:
        """Return heads and parallel parts by generation; which norms there are is read with them."""
        c, recent = self.config, self.config.flag("new_decoder_architecture", False)
        beside = recent or c.flag("parallel_attn", True)
        if recent and c.integer("num_ln_in_parallel_attn", 2) == 2:
            self.names = NAMES | {"attention.norm": "ln_attn", "mlp.norm": "ln_mlp"}
        elif beside:
            self.names = NAMES | {"mlp.norm": "input_layernorm"}
        one = {"kv_heads": 1} if c.flag("multi_query", True) else {"kv_heads": c.integer("num_attention_heads")}
        return {"parallel": beside} | ({} if recent else one)
