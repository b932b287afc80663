"""Mistral: LLaMA without biases, with a sliding window in every layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from models.families.llama import Llama


class Mistral(Llama):
    """Reads `MistralForCausalLM` checkpoints. Source: Jiang et al., arXiv 2310.06825."""

    defaults: ClassVar[Mapping[str, Any]] = {"num_key_value_heads": 8, "sliding_window": 4096}

    def biases(self) -> tuple[bool, bool, bool]:
        """Return that there are none."""
        return False, False, False

    def options(self) -> dict[str, Any]:
        """Return `sliding_window` in every layer, or full attention where it is null."""
        c, layers = self.config, self.config.integer("num_hidden_layers")
        if not c.present("sliding_window"):
            return {}
        if c.present("layer_types") and c.values["layer_types"] != ["sliding_attention"] * layers:
            raise c.error("layer_types", "mixed full and sliding layers are not part of Mistral")
        return {"windows": (c.integer("sliding_window"),) * layers}
