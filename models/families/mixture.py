"""Mixtures of experts in place of LLaMA's feed-forward layers, in the layouts that checkpoints have.

transformers writes each expert's matrices as tensors of their own, and holds them fused in memory, gate and up of all
experts in one tensor; both are read. Canonical weights have the experts side by side, the norm's gain folded into the router
and into them.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar

import torch
from torch import Tensor

from models.families.family import Read, split_layer
from models.families.folding import folded_weight
from models.families.llama import Llama

FUSED = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
FUSED_ROUTER = "mlp.gate.weight"


class Mixture(Llama):
    """What families with experts have in common.

    router, gate, up, down: names of a layer's tensors where each expert has its own, `{}` for its number.
    """

    router: ClassVar[str]
    gate: ClassVar[str]
    up: ClassVar[str]
    down: ClassVar[str]
    computes = frozenset({"num_local_experts", "num_experts"})
    fused = False

    def stored_as(self, names: Collection[str]) -> None:
        self.fused = any(name.endswith(FUSED[0]) for name in names)

    def tensors(self) -> dict[str, tuple[int, ...]]:
        a, shapes = self.architecture, super().tensors()
        for n in range(a.layers):
            if (experts := a.mixture(n)) is None:
                continue
            at, inner = f"layers.{n}", experts.feed_forward
            shapes[f"{at}.{FUSED_ROUTER if self.fused else self.router}"] = (experts.count, a.width)
            if self.fused:
                shapes[f"{at}.{FUSED[0]}"] = (experts.count, 2 * inner, a.width)
                shapes[f"{at}.{FUSED[1]}"] = (experts.count, a.width, inner)
                continue
            for e in range(experts.count):
                shapes |= {f"{at}.{part.format(e)}": (inner, a.width) for part in (self.gate, self.up)}
                shapes[f"{at}.{self.down.format(e)}"] = (a.width, inner)
        return shapes

    def weight(self, name: str, read: Read) -> Tensor:
        if ".mlp." not in name or self.architecture.mixture(split_layer(name)[0]) is None:
            return super().weight(name, read)
        layer, part = split_layer(name)
        at, block = f"layers.{layer}", part.removesuffix(".weight")
        if block == "mlp.down":
            return self._stacked(at, block, read).transpose(1, 2).flatten(0, 1)
        gain = read(f"{at}.post_attention_layernorm.weight")
        if block == "mlp.router":
            rows = read(f"{at}.{FUSED_ROUTER if self.fused else self.router}")
        else:
            rows = self._stacked(at, block, read).flatten(0, 1)
        return folded_weight(rows.T, gain, centred=False)

    def _stacked(self, at: str, block: str, read: Read) -> Tensor:
        """Return a matrix of every expert, [E, out, in]."""
        experts = self.architecture.experts
        assert experts is not None
        if self.fused:
            if block == "mlp.down":
                return read(f"{at}.{FUSED[1]}")
            half = slice(experts.feed_forward) if block == "mlp.gate" else slice(experts.feed_forward, None)
            return read(f"{at}.{FUSED[0]}")[:, half]
        name = {"mlp.gate": self.gate, "mlp.up": self.up, "mlp.down": self.down}[block]
        return torch.stack([read(f"{at}.{name.format(e)}") for e in range(experts.count)])
