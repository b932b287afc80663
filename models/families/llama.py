"""LLaMA: rotary positions, RMSNorm, grouped-query attention, a gated feed-forward layer. Many families build on it."""

from __future__ import annotations

from typing import Any

from models.families.standard import Standard


class Llama(Standard):
    """Reads `LlamaForCausalLM` checkpoints. Source: Touvron et al., arXiv 2302.13971. Its matrices are stored [out, in]."""

    prefix = "model."

    def biases(self) -> tuple[bool, bool, bool]:
        """Return biases of (queries, keys, values), of the attention's output, of the feed-forward layers."""
        attention = self.config.flag("attention_bias", False)
        return attention, attention, self.config.flag("mlp_bias", False)

    def options(self) -> dict[str, Any]:
        """Return the windows: none."""
        self.config.refuse("sliding_window", "LLaMA has no sliding window; is model_type 'mistral' meant?")
        return {}
