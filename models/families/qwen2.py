"""Qwen2: LLaMA with biases on queries, keys and values, and sliding windows in some layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from models.families.layer_types import sliding_layers, windows
from models.families.llama import Llama


class Qwen2(Llama):
    """Reads `Qwen2ForCausalLM` checkpoints (Qwen2 and Qwen2.5). Source: Yang et al., arXiv 2407.10671."""

    defaults: ClassVar[Mapping[str, Any]] = {"num_key_value_heads": 32, "sliding_window": 4096}

    def biases(self) -> tuple[bool, bool, bool]:
        """Return biases of queries, keys and values only."""
        return True, False, False

    def options(self) -> dict[str, Any]:
        """Return `sliding_window` from layer `max_window_layers` on (or as `layer_types` says) when `use_sliding_window`."""
        c, layers = self.config, self.config.integer("num_hidden_layers")
        first = c.values.get("max_window_layers", 28)
        if not isinstance(first, int) or isinstance(first, bool) or first < 0:
            raise c.error("max_window_layers", "a non-negative integer is needed")
        if c.flag("use_sliding_window", False) and c.present("sliding_window"):
            return {"windows": windows(c, sliding_layers(c, layers, [n >= first for n in range(layers)]))}
        if any(sliding_layers(c, layers, [])):
            raise c.error("layer_types", "sliding layers need use_sliding_window = true and a sliding_window")
        return {}
