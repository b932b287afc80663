"""The feed-forward part of a layer: what reads the normalised residual stream, and what is written back to it.

Axis names as in `protocols.suite`: T tokens, D width, F feed-forward width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from models.architecture import Architecture
from models.loaded import linear_layer, write
from protocols.suite import Linear, Suite, Value


class FeedForward:
    """The feed-forward layers of a model in a session. weights: from `load_weights`, looked up when a layer runs."""

    def __init__(self, suite: Suite, architecture: Architecture, weights: Mapping[str, Value]) -> None:
        self.suite = suite
        self.architecture = architecture
        self._weights = weights

    def entering(self, layer: int) -> list[Linear]:
        """Return the linear layers that read the residual stream behind its norm."""
        names = ("gate", "up") if self.architecture.gated else ("up",)
        return [linear_layer(self._weights, f"layers.{layer}.mlp.{name}", "function") for name in names]

    async def leaving(self, entered: Sequence[Value], layer: int, residual: Value) -> Value:
        """Return the residual stream [T, D] with what comes of the products [T, F] of the layers `entering` it."""
        suite, a = self.suite, self.architecture
        if a.gated:
            gate, up = entered
            active = await suite.gated_activation(gate, up, a.activation)
        else:
            (up,) = entered
            active = await suite.activation(up, a.activation)
        return await write(suite, a, self._weights, f"layers.{layer}.mlp.down", (active, residual))
