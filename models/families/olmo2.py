"""OLMo 2: LLaMA with norms after each part in place of those before it, queries and keys normalised over all heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from models.families.llama import Llama
from models.families.standard import renamed


class Olmo2(Llama):
    """Reads `Olmo2ForCausalLM` checkpoints. Source: Walsh et al., arXiv 2501.00656."""

    epsilon = 1e-5
    keys: ClassVar[Mapping[str, str]] = {"head_channels": ""}
    names: Mapping[str, str] = renamed(
        {
            "out.norm": "post_attention_layernorm",
            "down.norm": "post_feedforward_layernorm",
            "q.norm": "self_attn.q_norm",
            "k.norm": "self_attn.k_norm",
        },
        without=("attention.norm", "mlp.norm"),
    )

    def biases(self) -> tuple[bool, bool, bool]:
        """Return biases of the attention's layers where `attention_bias` says so."""
        attention = self.config.flag("attention_bias", False)
        return attention, attention, False

    def options(self) -> dict[str, Any]:
        """Return where norms stand."""
        return super().options() | {"norms": "after", "query_key_norm": "all"}
