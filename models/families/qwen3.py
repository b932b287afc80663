"""Qwen3: Qwen2 with normalised queries and keys in place of their biases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from models.families.qwen2 import Qwen2
from models.families.standard import renamed


class Qwen3(Qwen2):
    """Reads `Qwen3ForCausalLM` checkpoints. Source: Yang et al., arXiv 2505.09388."""

    defaults: ClassVar[Mapping[str, Any]] = {"num_key_value_heads": 32, "sliding_window": 4096, "head_dim": 128}
    names: Mapping[str, str] = renamed({"q.norm": "self_attn.q_norm", "k.norm": "self_attn.k_norm"})

    def biases(self) -> tuple[bool, bool, bool]:
        """Return biases of the attention's layers where `attention_bias` says so."""
        attention = self.config.flag("attention_bias", False)
        return attention, attention, False

    def options(self) -> dict[str, Any]:
        """Return windows as in Qwen2, and the norms."""
        return super().options() | {"query_key_norm": "head"}
