"""Gemma: LLaMA with a scaled embedding, gains stored less 1, and a head that is the embedding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from models.families.llama import Llama


class Gemma(Llama):
    """Reads `GemmaForCausalLM` checkpoints. Source: Mesnard et al., arXiv 2403.08295."""

    gain_offset = 1.0
    tied_by_default = True
    activation = "gelu_pytorch_tanh"
    defaults: ClassVar[Mapping[str, Any]] = {"num_key_value_heads": 16, "head_dim": 256}

    def factors(self) -> Mapping[str, float]:
        """Return the embedding's scale, rounded to float32 as transformers has it."""
        return {"tokens": float(self.architecture.width**0.5)}

    def biases(self) -> tuple[bool, bool, bool]:
        """Return biases of the attention's layers where `attention_bias` says so."""
        attention = self.config.flag("attention_bias", False)
        return attention, attention, False

    def refuse_both_ways(self) -> None:
        """Refuse attention in both directions."""
        self.config.refuse("use_bidirectional_attention", "a decoder attends to what came before", False)

    def options(self) -> dict[str, Any]:
        """Return the function of the first files, which say "gelu" and mean its tanh form."""
        self.refuse_both_ways()
        return {"activation": "gelu_tanh"} if self.config.values.get("hidden_act") == "gelu" else {}
