"""GPT-J: attention and feed-forward beside each other behind one norm, rotary positions of neighbouring channels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from models.architecture import Rotary
from models.families.standard import Standard, renamed


class GptJ(Standard):
    """Reads `GPTJForCausalLM` checkpoints. Source: Wang and Komatsuzaki 2021."""

    prefix = "transformer."
    buffers = (r"h\.\d+\.attn\.(bias|masked_bias|embed_positions)",)
    layer_norm = head_bias = interleaved = True
    activation = "gelu_new"
    epsilon = 1e-5
    names: Mapping[str, str] = renamed(
        {
            "tokens": "wte",
            "norm": "ln_f",
            "layer": "h",
            "attention.norm": "ln_1",
            "mlp.norm": "ln_1",
            "q": "attn.q_proj",
            "k": "attn.k_proj",
            "v": "attn.v_proj",
            "out": "attn.out_proj",
            "up": "mlp.fc_in",
            "down": "mlp.fc_out",
        },
        without=("gate",),
    )
    keys: ClassVar[Mapping[str, str]] = {
        "layers": "n_layer",
        "width": "n_embd",
        "heads": "n_head",
        "kv_heads": "",
        "head_channels": "",
        "feed_forward": "n_inner",
        "positions": "n_positions",
        "epsilon": "layer_norm_epsilon",
        "activation": "activation_function",
    }

    def biases(self) -> tuple[bool, bool, bool]:
        """Return biases of the feed-forward layers only."""
        return False, False, True

    def rotary(self, head: int) -> Rotary:
        """Return positions on the first `rotary_dim` channels, on all where it is null or 0."""
        dim = self.config.integer("rotary_dim", 64) if self.config.values.get("rotary_dim", 64) else head
        return Rotary(channels=None if dim == head else dim)

    def options(self) -> dict[str, Any]:
        """Return that both parts read the same stream."""
        return {"parallel": True}
