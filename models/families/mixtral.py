"""Mixtral: Mistral with a mixture of experts in every layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from models.architecture import Experts
from models.families.mistral import Mistral
from models.families.mixture import Mixture


class Mixtral(Mixture, Mistral):
    """Reads `MixtralForCausalLM` checkpoints. Source: Jiang et al., arXiv 2401.04088."""

    router = "block_sparse_moe.gate.weight"
    gate = "block_sparse_moe.experts.{}.w1.weight"
    up = "block_sparse_moe.experts.{}.w3.weight"
    down = "block_sparse_moe.experts.{}.w2.weight"
    defaults: ClassVar[Mapping[str, Any]] = {
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    }

    def experts(self, layers: int) -> Experts | None:
        """Return the experts of every layer. Noise on the router (`router_jitter_noise`) is for training alone."""
        c = self.config
        return Experts(
            count=c.integer("num_local_experts"),
            chosen=c.integer("num_experts_per_tok"),
            feed_forward=c.integer("intermediate_size"),
            renormalised=True,
        )
