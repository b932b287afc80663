"""Training of retaining heads (`models.policies.axes.retaining`): each layer's by itself.

Source: Huang et al., "Locret", 2024, section 3.2, and its code: a token's label is the largest score before softmax that any
query of the answer gives it, over the heads of the group; loss: smooth L1, and 0.0025 times the mean squared difference of
neighbours' scores. In plaintext, at the model owner.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from launch.fit.examples import Example, rows_of
from launch.fit.training import Learner
from launch.measure.quality.prefilled import PrefilledModel
from models.policies.axes.retaining import FIRST, SECOND
from protocols.plain.suite import PlainSuite, PlainValue, tensor_of

SMOOTHNESS = 0.0025
LABELS = 8.0  # labels are divided by it, so that losses have the size of 1
MEASURED = 8  # examples whose largest scores are looked at


class RetainingHeads(Learner):
    """The heads of all layers, of a width. State: inner [F, W] of features divided by size [F], outer [W, G]."""

    def __init__(self, model: PrefilledModel, width: int) -> None:
        self.model = model
        self.width = width

    def fresh(self, example: Example, seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        g = torch.Generator().manual_seed(seed)
        groups = self.model.architecture.kv_heads
        trained, stays = {}, {}
        for layer, rows in enumerate(rows_of(self.model, example)):
            size = stays[f"size.{layer}"] = rows.features.std(0).clamp_min(1e-2)
            trained[f"inner.{layer}"] = torch.randn(len(size), self.width, generator=g) / math.sqrt(len(size))
            trained[f"outer.{layer}"] = torch.randn(self.width, groups, generator=g) / math.sqrt(self.width)
        return trained, stays

    def _scores(self, state: dict[str, Tensor], layer: int, features: Tensor) -> Tensor:
        """Return scores [T, G] of features [T, F]."""
        hidden = (features / state[f"size.{layer}"]) @ state[f"inner.{layer}"]
        suite = PlainSuite()
        active = tensor_of(suite.run(suite.activation(PlainValue(hidden), self.model.architecture.activation)))
        return active @ state[f"outer.{layer}"]

    def loss(self, state: dict[str, Tensor], example: Example) -> Tensor:
        losses = []
        for layer, rows in enumerate(rows_of(self.model, example)):
            label = rows.scores.amax((1, 2)).T / LABELS
            found = self._scores(state, layer, rows.features)
            smooth = (found[1:] - found[:-1]).square().mean()
            losses.append(functional.smooth_l1_loss(found, label) + SMOOTHNESS * smooth)
        return torch.stack(losses).mean()

    def exported(self, state: dict[str, Tensor], examples: Sequence[Example]) -> dict[str, Tensor]:
        """As in `Learner`; each head's scores are scaled to at most 1."""
        layers = range(self.model.architecture.layers)
        most = [torch.full((self.model.architecture.kv_heads,), 1e-6) for _ in layers]
        for example in examples[:MEASURED]:
            for layer, rows in enumerate(rows_of(self.model, example)):
                most[layer] = torch.maximum(most[layer], self._scores(state, layer, rows.features).abs().amax(0))
        found = {}
        for n in layers:
            found[f"policy.layers.{n}.{FIRST}.weight"] = state[f"inner.{n}"] / state[f"size.{n}"][:, None]
            found[f"policy.layers.{n}.{SECOND}.weight"] = state[f"outer.{n}"] / most[n]
        return found
