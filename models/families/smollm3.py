"""SmolLM3: LLaMA in which every few layers have no positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from models.architecture import Rotary
from models.families.layer_types import sliding_layers, windows
from models.families.llama import Llama
from models.families.rotary_config import RotaryRules, read_rotary


class SmolLm3(Llama):
    """Reads `SmolLM3ForCausalLM` checkpoints. Source: Hugging Face, "SmolLM3" (2025)."""

    tied_by_default = True
    computes = ("no_rope_layers",)
    keys: ClassVar[Mapping[str, str]] = {"head_channels": ""}
    defaults: ClassVar[Mapping[str, Any]] = {"num_key_value_heads": 4}

    def rotary(self, head: int) -> Rotary:
        """Return the positions of the layers that have some."""
        return read_rotary(self.config, RotaryRules(theta=2e6))

    def options(self) -> dict[str, Any]:
        """Return which layers turn, and windows of those that do not when `use_sliding_window`."""
        c, layers = self.config, self.config.integer("num_hidden_layers")
        every = c.integer("no_rope_layer_interval", 4)
        turning = c.values.get("no_rope_layers") or [int((n + 1) % every != 0) for n in range(layers)]
        if not isinstance(turning, list) or len(turning) < layers or not all(x in (0, 1) for x in turning):
            raise c.error("no_rope_layers", f"a list with 0 or 1 for each of {layers} layers is needed")
        rotated = tuple(bool(x) for x in turning[:layers])
        slides: list[bool] = []
        if c.flag("use_sliding_window", False) and c.present("sliding_window"):
            slides = sliding_layers(c, layers, [not turns for turns in rotated])
        return {"rotated": rotated, "windows": windows(c, slides)}
