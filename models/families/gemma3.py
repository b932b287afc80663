"""Gemma 3, its text models: Gemma 2 without caps, with normalised queries and keys, and rotary positions of their own in
layers with a window."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from models.architecture import Rotary
from models.families.gemma2 import NAMES, Gemma2
from models.families.rotary_config import RotaryRules, read_rotary
from models.families.standard import renamed

WIDE = 512  # channels


class Gemma3(Gemma2):
    """Reads `Gemma3ForCausalLM` checkpoints (model_type gemma3_text). Source: Kamath et al., arXiv 2503.19786."""

    names: Mapping[str, str] = renamed({"q.norm": "self_attn.q_norm", "k.norm": "self_attn.k_norm"}, base=NAMES)
    computes: ClassVar[tuple[str, ...]] = (
        "final_logit_softcapping",
        "query_pre_attn_scalar",
    )  # scores are not capped, whatever the file says
    defaults: ClassVar[Mapping[str, Any]] = {
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "max_position_embeddings": 131072,
        "vocab_size": 262208,
    }

    def stream_scale(self) -> float:
        """Return 1/64: published models, of 640 channels and more, write 500 and more to their stream in the first layer; 1
        for small ones, which tests make and which do nothing of the kind."""
        return 2.0**-6 if self.config.integer("hidden_size") >= WIDE else 1.0

    def rotary(self, head: int) -> Rotary:
        """Return the positions of layers without a window."""
        return read_rotary(self.config, RotaryRules(theta=1e6, entry="full_attention"))

    def sliding(self, layers: int) -> list[bool]:
        """Return which layers slide where `layer_types` is missing: all but each `sliding_window_pattern`th."""
        every = self.config.integer("sliding_window_pattern", 6)
        return [bool((n + 1) % every) for n in range(layers)]

    def options(self) -> dict[str, Any]:
        """Return what Gemma 2 has, normalised queries and keys, and the positions of layers with a window."""
        rules = RotaryRules(theta=1e4, theta_key="rope_local_base_freq", entry="sliding_attention")
        local = read_rotary(self.config.without("rope_scaling", "rope_theta"), rules)
        return super().options() | {"query_key_norm": "head", "sliding_rotary": local}
