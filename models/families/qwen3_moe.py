"""Qwen3-MoE: Qwen3 with a mixture of experts in most of its layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from models.architecture import Experts
from models.families.mixture import Mixture
from models.families.qwen3 import Qwen3
from models.families.standard import renamed


class Qwen3Moe(Mixture, Qwen3):
    """Reads `Qwen3MoeForCausalLM` checkpoints. Source: Yang et al., arXiv 2505.09388."""

    names: Mapping[str, str] = renamed(
        {
            "router": "mlp.gate",
            "expert.gate": "mlp.experts.{}.gate_proj",
            "expert.up": "mlp.experts.{}.up_proj",
            "expert.down": "mlp.experts.{}.down_proj",
        },
        base=Qwen3.names,
    )
    defaults: ClassVar[Mapping[str, Any]] = {
        "num_key_value_heads": 4,
        "sliding_window": 4096,
        "num_experts_per_tok": 8,
        "norm_topk_prob": False,
        "decoder_sparse_step": 1,
        "moe_intermediate_size": 768,
    }

    def options(self) -> dict[str, Any]:
        """Return the norms, one window for all layers where `use_sliding_window` says so, and the experts of the layers that
        have some."""
        c, layers = self.config, self.config.integer("num_hidden_layers")
        c.refuse("layer_types", "windows are the same in all layers of Qwen3-MoE")
        found: dict[str, Any] = {"query_key_norm": "head"}
        if c.flag("use_sliding_window", False) and c.present("sliding_window"):
            found["windows"] = (c.integer("sliding_window"),) * layers
        dense = c.values.get("mlp_only_layers") or []
        if not isinstance(dense, list) or not all(isinstance(n, int) and not isinstance(n, bool) for n in dense):
            raise c.error("mlp_only_layers", "a list of layer numbers or null is needed")
        step = c.integer("decoder_sparse_step")
        mixed = tuple(n for n in range(layers) if n not in dense and (n + 1) % step == 0)
        experts = Experts(
            count=self._count(),
            chosen=c.integer("num_experts_per_tok"),
            feed_forward=c.integer("moe_intermediate_size"),
            renormalised=c.flag("norm_topk_prob", False),
            layers=None if len(mixed) == layers else mixed,
        )
        return found | ({"experts": experts} if mixed else {})

    def _count(self) -> int:
        """Return the number of experts, which transformers writes under another name than the published checkpoints do."""
        c = self.config
        names = [name for name in ("num_experts", "num_local_experts") if c.present(name)]
        counts = {name: c.integer(name) for name in names}
        if len(set(counts.values())) > 1:
            raise c.error("num_experts", f"'num_local_experts' = {counts['num_local_experts']} says otherwise")
        return next(iter(counts.values()), 128)
