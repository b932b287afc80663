"""GPT-NeoX, and Pythia: attention and feed-forward beside each other, rotary positions on a part of the channels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from models.architecture import Rotary
from models.families.rotary_config import RotaryRules, read_rotary
from models.families.standard import Standard, renamed


class GptNeoX(Standard):
    """Reads `GPTNeoXForCausalLM` checkpoints. Source: Black et al., arXiv 2204.06745; Biderman et al., arXiv 2304.01373."""

    prefix = "gpt_neox."
    buffers = (r"layers\.\d+\.attention\.(bias|masked_bias)",)
    layer_norm = True
    activation = "gelu"
    epsilon = 1e-5
    names: Mapping[str, str] = renamed(
        {
            "tokens": "embed_in",
            "norm": "final_layer_norm",
            "head": "embed_out",
            "qkv": "attention.query_key_value",
            "out": "attention.dense",
            "up": "mlp.dense_h_to_4h",
            "down": "mlp.dense_4h_to_h",
        },
        without=("q", "k", "v", "gate"),
    )
    keys: ClassVar[Mapping[str, str]] = {"kv_heads": "", "head_channels": "", "epsilon": "layer_norm_eps"}

    def biases(self) -> tuple[bool, bool, bool]:
        """Return biases of the attention's layers as `attention_bias` says, and of the feed-forward's."""
        attention = self.config.flag("attention_bias", True)
        return attention, attention, True

    def rotary(self, head: int) -> Rotary:
        """Return positions on `rotary_pct` of the channels."""
        return read_rotary(self.config, RotaryRules(head, 0.25, "rotary_pct", theta_key="rotary_emb_base"))

    def fused_rows(self) -> Tensor:
        """Return the order of rows that are stored as query, key and value of each head."""
        a = self.architecture
        return torch.arange(3 * a.width).reshape(a.heads, 3, -1).transpose(0, 1).reshape(-1)

    def options(self) -> dict[str, Any]:
        """Return whether both parts read the same stream."""
        return {"parallel": self.config.flag("use_parallel_residual", True)}
