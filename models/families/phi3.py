"""Phi-3 and Phi-4: LLaMA with fused matrices, rotary positions on a part of the channels, longrope's short factors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from models.architecture import Rotary
from models.families.rotary_config import RotaryRules, read_rotary
from models.families.standard import Standard, renamed


class Phi3(Standard):
    """Reads `Phi3ForCausalLM` checkpoints. Source: Abdin et al., arXiv 2404.14219 and 2412.08905."""

    prefix = "model."
    epsilon = 1e-5
    names: Mapping[str, str] = renamed(
        {"qkv": "self_attn.qkv_proj", "gate_up": "mlp.gate_up_proj"}, without=("q", "k", "v", "gate", "up")
    )
    keys: ClassVar[Mapping[str, str]] = {"head_channels": ""}
    defaults: ClassVar[Mapping[str, Any]] = {"original_max_position_embeddings": 4096}

    def rotary(self, head: int) -> Rotary:
        """Return positions on `partial_rotary_factor` of the channels."""
        return read_rotary(self.config, RotaryRules(head, kinds=("default", "longrope")))

    def options(self) -> dict[str, Any]:
        """Return `sliding_window` in every layer, where it is not null."""
        c = self.config
        window = c.integer("sliding_window") if c.present("sliding_window") else None
        return {} if window is None else {"windows": (window,) * c.integer("num_hidden_layers")}
