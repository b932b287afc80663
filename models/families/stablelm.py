"""StableLM: LLaMA with LayerNorm, rotary positions on a part of the channels, perhaps parts beside each other and normalised
queries and keys with gains by head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from models.architecture import Rotary
from models.families.family import Read
from models.families.rotary_config import RotaryRules, read_rotary
from models.families.standard import NAMES, Standard


class StableLm(Standard):
    """Reads `StableLmForCausalLM` checkpoints. Source: Bellagente et al., arXiv 2402.17834."""

    prefix = "model."
    layer_norm = True
    epsilon = 1e-5
    computes = ("qk_layernorm",)
    keys: ClassVar[Mapping[str, str]] = {"epsilon": "layer_norm_eps", "head_channels": ""}
    defaults: ClassVar[Mapping[str, Any]] = {"num_key_value_heads": 32}

    def biases(self) -> tuple[bool, bool, bool]:
        """Return biases of queries, keys and values as `use_qkv_bias` says."""
        return self.config.flag("use_qkv_bias", False), False, False

    def rotary(self, head: int) -> Rotary:
        """Return positions on `partial_rotary_factor` of the channels."""
        return read_rotary(self.config, RotaryRules(head, 0.25))

    def options(self) -> dict[str, Any]:
        """Return parallel parts, which share one norm, and norms of queries and keys."""
        c, beside = self.config, self.config.flag("use_parallel_residual", False)
        if beside:
            self.names = dict(NAMES) | {"mlp.norm": NAMES["attention.norm"]}
        return {"parallel": beside, "query_key_norm": "head" if c.flag("qk_layernorm", False) else None}

    def head_norm_names(self, at: str, part: str) -> list[str]:
        """Return the tensors that hold the gains of queries' or keys' heads."""
        count = self.architecture.heads if part == "q" else self.architecture.kv_heads
        return [f"{at}self_attn.{part}_layernorm.norms.{n}.weight" for n in range(count)]

    def head_norm_tensors(self, at: str) -> dict[str, tuple[int, ...]]:
        a = self.architecture
        names = [name for part in "qk" for name in self.head_norm_names(at, part)]
        return {} if a.query_key_norm is None else {name: (a.head_channels,) for name in names}

    def head_gain(self, at: str, part: str, read: Read) -> Tensor:
        """Return the gains of all heads, one after the other."""
        return torch.cat([read(name) for name in self.head_norm_names(at, part)])
