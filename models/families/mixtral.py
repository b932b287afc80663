"""Mixtral: Mistral with a mixture of experts in every layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from models.architecture import Experts
from models.families.mistral import Mistral
from models.families.mixture import Mixture
from models.families.standard import renamed


class Mixtral(Mixture, Mistral):
    """Reads `MixtralForCausalLM` checkpoints. Source: Jiang et al., arXiv 2401.04088. Noise on the router
    (`router_jitter_noise`) is for training alone."""

    names: Mapping[str, str] = renamed(
        {
            "router": "block_sparse_moe.gate",
            "expert.gate": "block_sparse_moe.experts.{}.w1",
            "expert.up": "block_sparse_moe.experts.{}.w3",
            "expert.down": "block_sparse_moe.experts.{}.w2",
        }
    )
    defaults: ClassVar[Mapping[str, Any]] = {
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    }

    def options(self) -> dict[str, Any]:
        """Return the windows as in Mistral, and the experts of every layer."""
        c = self.config
        experts = Experts(
            count=c.integer("num_local_experts"),
            chosen=c.integer("num_experts_per_tok"),
            feed_forward=c.integer("intermediate_size"),
            renormalised=True,
        )
        return super().options() | {"experts": experts}
