"""The canonical weights of a model as values of a suite: loaded once, found by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from torch import Tensor

from models.architecture import Architecture
from models.description import Description
from mpc.errors import ConfigurationError
from protocols.suite import Linear, Suite, Value
from protocols.value import Use

LOAD = "model load"


async def load_weights(suite: Suite, architecture: Description, shares: Callable[[str], Tensor | None]) -> dict[str, Value]:
    """Return every canonical weight as a value, recorded under stage `LOAD`; one after the other, the largest first: making
    one ready takes several times its size for a moment.

    shares(name): this party's share of that weight (float tensor for `plain`, None at the dealer and in `estimate`). The
    values serve later sessions too, with a suite instance of the same kind.
    """
    with suite.ledger.timed(LOAD):
        shapes = sorted(architecture.weight_shapes().items(), key=lambda item: -math.prod(item[1]))
        return {name: await suite.weight(name, shape, shares(name)) for name, shape in shapes}


def check_weights(architecture: Description, weights: Mapping[str, Value]) -> None:
    """Raise `ConfigurationError` for a weight that is missing or has another shape than the architecture says."""
    for name, shape in architecture.weight_shapes().items():
        if name not in weights:
            raise ConfigurationError(f"weight '{name}' {list(shape)} is missing; load the model that the manifest names")
        if tuple(weights[name].shape) != shape:
            raise ConfigurationError(
                f"weight '{name}' has shape {list(weights[name].shape)}, the architecture needs {list(shape)}"
            )


def linear_layer(weights: Mapping[str, Value], name: str, use: Use = "any") -> Linear:
    """Return the linear layer of a name, with its bias where there is one."""
    return Linear(weights[f"{name}.weight"], weights.get(f"{name}.bias"), use)


async def write(
    suite: Suite, architecture: Architecture, weights: Mapping[str, Value], name: str, onto: tuple[Value, Value]
) -> Value:
    """Return the residual stream [T, D] with what a part of a layer writes to it: x [T, in] times its last weight `name`,
    normalised where the architecture has norms after it. onto: x, and the stream as it was."""
    x, residual = onto
    if architecture.norms == "before":
        return await suite.linear(x, linear_layer(weights, name), residual)
    found = await suite.linear(x, linear_layer(weights, name, "normalised"))
    return await suite.norm_gain(found, architecture.norm, weights[f"{name}.gain"], residual)
