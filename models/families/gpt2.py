"""GPT-2: learned positions, LayerNorm, fused queries, keys and values, a GELU feed-forward layer, biases throughout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from models.families.standard import Standard, renamed


class Gpt2(Standard):
    """Reads `GPT2LMHeadModel` checkpoints. Source: Radford et al. 2019. Its matrices are stored [in, out]."""

    prefix = "transformer."
    buffers = (r"h\.\d+\.attn\.(bias|masked_bias)",)
    tied_by_default = layer_norm = stored_transposed = True
    activation = "gelu_new"
    epsilon = 1e-5
    defaults: ClassVar[Mapping[str, Any]] = {"n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024}
    names: Mapping[str, str] = renamed(
        {
            "tokens": "wte",
            "positions": "wpe",
            "norm": "ln_f",
            "layer": "h",
            "attention.norm": "ln_1",
            "mlp.norm": "ln_2",
            "qkv": "attn.c_attn",
            "out": "attn.c_proj",
            "up": "mlp.c_fc",
            "down": "mlp.c_proj",
        },
        without=("q", "k", "v", "gate"),
    )
    keys: ClassVar[Mapping[str, str]] = {
        "layers": "n_layer",
        "width": "n_embd",
        "heads": "n_head",
        "kv_heads": "",
        "head_channels": "",
        "feed_forward": "n_inner",
        "positions": "n_positions",
        "epsilon": "layer_norm_epsilon",
        "activation": "activation_function",
    }

    def rotary(self, head: int) -> None:
        """Return none: positions are learned."""

    def biases(self) -> tuple[bool, bool, bool]:
        """Return that all are there."""
        return True, True, True

    def options(self) -> dict[str, Any]:
        """Refuse other ways to scale scores."""
        c = self.config
        c.refuse("scale_attn_by_inverse_layer_idx", "scores divided by the layer's number are not supported", False)
        c.refuse("reorder_and_upcast_attn", "reordered attention is not supported; set it to false", False)
        c.refuse("scale_attn_weights", "attention without the 1/sqrt(head size) scale is not supported", True)
        return {}
