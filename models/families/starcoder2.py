"""StarCoder2: LLaMA's attention with LayerNorm, biases, a plain feed-forward layer and, in some sizes, windows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from models.families.standard import Standard, renamed


class StarCoder2(Standard):
    """Reads `Starcoder2ForCausalLM` checkpoints. Source: Lozhkov et al., arXiv 2402.19173."""

    prefix = "model."
    tied_by_default = True
    layer_norm = True
    activation = "gelu_pytorch_tanh"
    epsilon = 1e-5
    names: Mapping[str, str] = renamed({"up": "mlp.c_fc", "down": "mlp.c_proj"}, without=("gate",))
    keys: ClassVar[Mapping[str, str]] = {"epsilon": "norm_epsilon", "head_channels": ""}
    defaults: ClassVar[Mapping[str, Any]] = {"num_key_value_heads": 2}

    def biases(self) -> tuple[bool, bool, bool]:
        """Return biases as `use_bias` says."""
        biased = self.config.flag("use_bias", True)
        return biased, biased, biased

    def options(self) -> dict[str, Any]:
        """Return `sliding_window` in every layer, where it is not null."""
        c = self.config
        window = c.integer("sliding_window") if c.present("sliding_window") else None
        return {} if window is None else {"windows": (window,) * c.integer("num_hidden_layers")}
