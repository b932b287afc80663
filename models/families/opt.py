"""OPT: learned positions from row 2 on, LayerNorm, ReLU, biases throughout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from models.families.standard import Standard, renamed


class Opt(Standard):
    """Reads `OPTForCausalLM` checkpoints. Source: Zhang et al., arXiv 2205.01068."""

    prefix = "model.decoder."
    tied_by_default = True
    layer_norm = True
    activation = "relu"
    epsilon = 1e-5
    first_position = 2
    names: Mapping[str, str] = renamed(
        {
            "positions": "embed_positions",
            "norm": "final_layer_norm",
            "attention.norm": "self_attn_layer_norm",
            "mlp.norm": "final_layer_norm",
            "out": "self_attn.out_proj",
            "up": "fc1",
            "down": "fc2",
        },
        without=("gate",),
    )
    keys: ClassVar[Mapping[str, str]] = {
        "kv_heads": "",
        "head_channels": "",
        "epsilon": "",
        "feed_forward": "ffn_dim",
        "activation": "activation_function",
    }

    def rotary(self, head: int) -> None:
        """Return none: positions are learned."""

    def biases(self) -> tuple[bool, bool, bool]:
        """Return biases as `enable_bias` says."""
        biased = self.config.flag("enable_bias", True)
        return biased, biased, biased

    def options(self) -> dict[str, Any]:
        """Refuse norms behind a part (OPT-350m) and embeddings of another width."""
        c = self.config
        c.refuse("do_layer_norm_before", "norms of the stream itself (OPT-350m) are not supported; use another size", True)
        c.refuse("_remove_final_layer_norm", "a head without a norm is not supported; use another checkpoint", False)
        c.refuse("layer_norm_elementwise_affine", "norms without gains are not supported; store gains of 1", True)
        c.refuse(
            "word_embed_proj_dim",
            "embeddings of another width than hidden_size are not supported; use another size",
            c.integer("hidden_size"),
        )
        return {}
