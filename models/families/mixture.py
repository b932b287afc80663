"""Mixtures of experts in place of feed-forward layers, in the layouts that checkpoints have.

transformers writes each expert's matrices as tensors of their own, and holds them fused in memory, gate and up of all
experts in one tensor; both are read. Canonical weights have the experts side by side, the norm's gain folded into the router
and into them.

Parts, beside those of `models.families.standard`: `router`, and `expert.gate`, `expert.up`, `expert.down` with `{}` for an
expert's number.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from models.architecture import Experts
from models.families.family import Read
from models.families.standard import Standard

GATE_UP, DOWN, ROUTER = "mlp.experts.gate_up_proj", "mlp.experts.down_proj", "mlp.gate"


class Mixture(Standard):
    """What families with experts have in common. fused: whether the experts' tensors are."""

    computes = ("num_local_experts", "num_experts")
    fused = False

    def stored_as(self, names: Collection[str]) -> None:
        self.fused = any(name.endswith(GATE_UP) for name in names)

    def _experts(self, at: str) -> Experts | None:
        """Return the experts of the layer whose names begin with `at`."""
        return self.architecture.mixture(int(at.split(".")[1]))

    def layer_tensors(self, at: str) -> dict[str, tuple[int, ...]]:
        shapes, experts, wide = super().layer_tensors(at), self._experts(at), self.architecture.width
        if experts is None:
            return shapes
        for part in ("gate", "up", "down"):
            del shapes[f"{at}{self.names[part]}.weight"]
        count, inner = experts.count, experts.feed_forward
        shapes[f"{at}{ROUTER if self.fused else self.names['router']}.weight"] = (count, wide)
        if self.fused:
            return shapes | {f"{at}{GATE_UP}": (count, 2 * inner, wide), f"{at}{DOWN}": (count, wide, inner)}
        for e in range(count):
            for part, shape in (("gate", (inner, wide)), ("up", (inner, wide)), ("down", (wide, inner))):
                shapes[f"{at}{self.names[f'expert.{part}'].format(e)}.weight"] = shape
        return shapes

    def _stored(self, name: str, read: Read, kind: str) -> Tensor | None:
        at = ".".join(name.split(".")[:2]) + "."
        if name == f"{at}{self.names['down']}" and (experts := self._experts(at)) is not None:
            return None if kind == "bias" else self._stacked(at, "down", experts, read).transpose(1, 2).flatten(0, 1)
        return super()._stored(name, read, kind)

    def _entering(self, at: str, block: str, kind: str, read: Read) -> Tensor | None:
        experts, part = self._experts(at), block.partition(".")[2]
        if experts is None:
            return super()._entering(at, block, kind, read)
        if part == "router":
            return read(f"{at}{ROUTER if self.fused else self.names['router']}.weight").T
        return self._stacked(at, part, experts, read).flatten(0, 1).T

    def _stacked(self, at: str, part: str, experts: Experts, read: Read) -> Tensor:
        """Return a matrix of every expert, [E, out, in]."""
        if not self.fused:
            names = (self.names[f"expert.{part}"].format(e) for e in range(experts.count))
            return torch.stack([read(f"{at}{name}.weight") for name in names])
        if part == "down":
            return read(f"{at}{DOWN}")
        half = slice(experts.feed_forward) if part == "gate" else slice(experts.feed_forward, None)
        return read(f"{at}{GATE_UP}")[:, half]
