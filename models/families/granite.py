"""Granite: LLaMA with multipliers, all of which are folded into weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from models.families.llama import Llama


class Granite(Llama):
    """Reads `GraniteForCausalLM` checkpoints. Source: IBM, "Granite 3.0 Language Models" (2024)."""

    computes = ("attention_multiplier", "embedding_multiplier", "residual_multiplier", "logits_scaling")
    keys: ClassVar[Mapping[str, str]] = {"head_channels": ""}

    def score_scale(self) -> float:
        """Return `attention_multiplier`, in place of 1 / sqrt(head size)."""
        return self.config.number("attention_multiplier", 1.0)

    def factors(self) -> Mapping[str, float]:
        """Return the other multipliers; logits are divided by theirs."""
        c = self.config
        written = c.number("residual_multiplier", 1.0)
        return {
            "tokens": c.number("embedding_multiplier", 1.0),
            "out": written,
            "down": written,
            "head": 1.0 / c.number("logits_scaling", 1.0),
        }
