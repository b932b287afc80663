"""A mixture of experts in place of a feed-forward layer, with secret routing, in two ways (`protocols.expert_ways`).

* **dense**: every expert is computed for every token, and what it gives is weighted by a secret gate that is zero outside
  the chosen ones. Exact.
* **capacity**: each expert has a public number of places C; a prompt's tokens go to the places of the experts that they
  chose, the last token first, by secret one-hot rows. What finds no place is left out of the sum, and how many choices that
  were is counted, secretly, for the client alone. A decoded token is always computed densely: with one row, an expert's
  places are as many as the tokens.

Public: E, how many are chosen, C. Nobody learns which experts a token took, nor how many tokens an expert has.

Axis names as in `protocols.suite`; E experts, C places of an expert, F width of an expert.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from models.architecture import Architecture, Experts
from models.loaded import linear_layer, write
from protocols.suite import Linear, Suite, Value


class Mixture:
    """The mixtures of a model in a session. weights: from `load_weights`, looked up when a layer runs: router [D, E]; gate
    and up [D, E F], down [E F, D], expert after expert."""

    def __init__(self, suite: Suite, architecture: Architecture, weights: Mapping[str, Value]) -> None:
        self.suite = suite
        self.architecture = architecture
        self._weights = weights

    @property
    def _experts(self) -> Experts:
        assert self.architecture.experts is not None
        return self.architecture.experts

    def _linear(self, layer: int, name: str) -> Linear:
        return linear_layer(self._weights, f"layers.{layer}.mlp.{name}", "function" if name in ("gate", "up") else "any")

    def places(self, tokens: int) -> int | None:
        """Return an expert's places for so many tokens; None where every expert is computed for every token."""
        return self.suite.experts.places(tokens, self._experts.chosen, self._experts.count)

    def entering(self, layer: int) -> list[Linear]:
        """Return the linear layers that read the residual stream behind its norm, where every expert is computed."""
        return [self._linear(layer, name) for name in ("router", "gate", "up")]

    async def leaving(self, entered: Sequence[Value], layer: int, residual: Value) -> Value:
        """Return the residual stream [T, D] with what comes of the products [T, E], [T, E F] of the layers `entering` it."""
        suite, e = self.suite, self._experts
        logits, gate, up = entered
        tokens = logits.shape[0]
        (_, gates), active = await suite.together(
            suite.route(logits, e.chosen, e.renormalised), suite.gated_activation(gate, up, self.architecture.activation)
        )
        by_expert = active.reshape(tokens, e.count, e.feed_forward)
        weighed = await suite.weigh(by_expert, gates.reshape(tokens, e.count, 1))
        flat = weighed.reshape(tokens, e.count * e.feed_forward)
        return await write(suite, self.architecture, self._weights, f"layers.{layer}.mlp.down", (flat, residual))

    async def dispatched(self, h: Value, layer: int, places: int) -> tuple[Value, Value]:
        """Return the residual stream behind the mixture, [T, D], each expert computed for so many places; and how many
        choices found none, secret [1] with 0 fraction bits."""
        suite, a, e = self.suite, self.architecture, self._experts
        x = await suite.normalise(h, a.stream_norm)
        logits = await suite.linear(x, self._linear(layer, "router"))
        marks, gates = await suite.route(logits, e.chosen, e.renormalised)
        slots, dropped = await suite.slots(marks, places)
        own_gates = gates.transpose(0, 1).reshape(e.count, h.shape[0], 1)
        rows, weights = await suite.together(suite.gather(slots, x), suite.gather(slots, own_gates))
        inputs = [self._columns(self._linear(layer, name)) for name in ("gate", "up")]
        gate, up = await suite.together(*(suite.linear(rows, each) for each in inputs))
        weighed = await suite.weigh(await suite.gated_activation(gate, up, a.activation), weights)
        down = self._linear(layer, "down").weight.reshape(e.count, e.feed_forward, a.width)
        out = await suite.linear(weighed, Linear(down, None, "stream"))
        return await suite.scatter(slots, out, h), dropped

    def _columns(self, layer: Linear) -> Linear:
        """Return each expert's own matrix of [D, E F]: [E, D, F]."""
        e = self._experts
        return Linear(
            layer.weight.reshape(self.architecture.width, e.count, e.feed_forward).permute(1, 0, 2), None, layer.use
        )
