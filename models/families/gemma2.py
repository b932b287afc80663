"""Gemma 2: Gemma with norms before and after each part, soft caps of scores and logits, windows in every other layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from models.families.gemma import Gemma
from models.families.layer_types import sliding_layers, windows
from models.families.standard import renamed

WIDEST = 4096  # channels of models whose residual stream is held as it is

NAMES = renamed(
    {
        "out.norm": "post_attention_layernorm",
        "mlp.norm": "pre_feedforward_layernorm",
        "down.norm": "post_feedforward_layernorm",
    }
)


class Gemma2(Gemma):
    """Reads `Gemma2ForCausalLM` checkpoints. Source: Riviere et al., arXiv 2408.00118."""

    names: Mapping[str, str] = NAMES
    computes: ClassVar[tuple[str, ...]] = ("attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar")
    keys: ClassVar[Mapping[str, str]] = {"activation": "hidden_activation"}
    defaults: ClassVar[Mapping[str, Any]] = {
        "num_key_value_heads": 4,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    }

    def stream_scale(self) -> float:
        """Return 1/16 for the widest of the published models, the 27B: it writes 157 696 to its stream, the others 3 152."""
        return 2.0**-4 if self.config.integer("hidden_size") > WIDEST else 1.0

    def score_scale(self) -> float:
        """Return 1 / sqrt(query_pre_attn_scalar)."""
        return float(self.config.number("query_pre_attn_scalar") ** -0.5)

    def sliding(self, layers: int) -> list[bool]:
        """Return which layers slide where `layer_types` is missing: every other one, the first one on."""
        return [n % 2 == 0 for n in range(layers)]

    def options(self) -> dict[str, Any]:
        """Return windows, norms, and soft caps where they are not null."""
        self.refuse_both_ways()
        c, layers = self.config, self.config.integer("num_hidden_layers")
        caps = {"score_cap": "attn_logit_softcapping", "logit_cap": "final_logit_softcapping"}
        found = {name: c.number(key) for name, key in caps.items() if c.present(key)}
        slides = sliding_layers(c, layers, self.sliding(layers)) if c.present("sliding_window") else []
        return found | {"norms": "both", "windows": windows(c, slides)}
