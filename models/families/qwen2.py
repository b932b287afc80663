"""Qwen2: LLaMA with biases on queries, keys and values, and sliding windows in some layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from models.families.llama import Llama


class Qwen2(Llama):
    """Reads `Qwen2ForCausalLM` checkpoints (Qwen2 and Qwen2.5). Source: Yang et al., arXiv 2407.10671."""

    defaults: ClassVar[Mapping[str, Any]] = {"num_key_value_heads": 32, "sliding_window": 4096}

    def biases(self) -> tuple[bool, bool, bool]:
        """Return biases of queries, keys and values only."""
        return True, False, False

    def windows(self, layers: int) -> tuple[int | None, ...] | None:
        """Return `sliding_window` from layer `max_window_layers` on (or as `layer_types` says) when `use_sliding_window`."""
        c = self.config
        kinds = c.values.get("layer_types")
        if kinds is not None and (not isinstance(kinds, list) or len(kinds) != layers):
            raise c.error("layer_types", f"a list with one entry for each of {layers} layers is needed")
        for kind in kinds or ():
            if kind not in ("full_attention", "sliding_attention"):
                raise c.error("layer_types", "supported: full_attention, sliding_attention")
        if not c.flag("use_sliding_window", False) or not c.present("sliding_window"):
            if kinds and "sliding_attention" in kinds:
                raise c.error("layer_types", "sliding layers need use_sliding_window = true and a sliding_window")
            return None
        first = c.values.get("max_window_layers", 28)
        if not isinstance(first, int) or isinstance(first, bool) or first < 0:
            raise c.error("max_window_layers", "a non-negative integer is needed")
        sliding = [k == "sliding_attention" for k in kinds] if kinds else [n >= first for n in range(layers)]
        window = c.integer("sliding_window")
        return tuple(window if s else None for s in sliding) if any(sliding) else None
