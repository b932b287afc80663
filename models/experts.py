"""A mixture of experts in place of a feed-forward layer, with secret routing, in two ways.

* **dense**: every expert is computed for every token, and what it gives is weighted by a secret gate that is zero outside
  the chosen ones. Exact.
* **capacity**: each expert has a public number of places C; a prompt's tokens go to the places of the experts that they
  chose, in the order of the tokens, by secret one-hot rows. What finds no place is left out of the sum, and how many choices
  that were is counted, secretly, for the client alone.

Public: E, how many are chosen, C. Nobody learns which experts a token took, nor how many tokens an expert has.

Axis names as in `protocols.suite`; E experts, C places of an expert, F width of an expert.
"""

from __future__ import annotations

from dataclasses import dataclass

from models.architecture import Architecture, Experts
from protocols.suite import Linear, Suite, Value


@dataclass(frozen=True)
class MixtureWeights:
    """Fixed secrets of a mixture: router [D, E]; gate and up [D, E F], down [E F, D], expert after expert."""

    router: Linear
    gate: Linear
    up: Linear
    down: Linear


async def dense(suite: Suite, architecture: Architecture, experts: Experts, w: MixtureWeights, h: Value) -> Value:
    """Return the residual stream after the mixture, every expert computed: [T, D] -> [T, D]."""
    tokens, shape = h.shape[0], (h.shape[0], experts.count, experts.feed_forward)
    logits, gate, up = await suite.norm_linear(h, architecture.norm, [w.router, w.gate, w.up])
    (_, gates), active = await suite.together(
        suite.route(logits, experts.chosen, experts.renormalised),
        suite.gated_activation(gate, up, architecture.activation),
    )
    weighed = await suite.weigh(active.reshape(*shape), gates.reshape(tokens, experts.count, 1))
    return await suite.linear(weighed.reshape(tokens, shape[1] * shape[2]), w.down, h)


async def dispatched(
    suite: Suite, architecture: Architecture, experts: Experts, w: MixtureWeights, h: Value, capacity: int
) -> tuple[Value, Value]:
    """Return the residual stream after the mixture, each expert computed for `capacity` tokens: [T, D] -> [T, D]; and how
    many choices found no place, secret [1] with 0 fraction bits."""
    count, inner, width = experts.count, experts.feed_forward, architecture.width
    x = await suite.normalise(h, architecture.norm)
    marks, gates = await suite.route(await suite.linear(x, w.router), experts.chosen, experts.renormalised)
    slots, dropped = await suite.slots(marks, capacity)
    own_gates = gates.transpose(0, 1).reshape(count, h.shape[0], 1)
    rows, weights = await suite.together(suite.gather(slots, x), suite.gather(slots, own_gates))
    columns = [part.weight.reshape(width, count, inner).permute(1, 0, 2) for part in (w.gate, w.up)]
    gate, up = await suite.together(*(suite.linear(rows, Linear(part, None, "function")) for part in columns))
    active = await suite.gated_activation(gate, up, architecture.activation)
    weighed = await suite.weigh(active, weights)
    out = await suite.linear(weighed, Linear(w.down.weight.reshape(count, inner, width), None, "stream"))
    return await suite.scatter(slots, out, h), dropped
