"""Weights that a cache policy has learned of a model: which there are, and what a layer's policy computes with.

They are secret like the model's own and travel with them: shared by the model owner, loaded once, named
`policy.layers.N.{part}`. Which parts there are, and their shapes, is public: `models.architecture.Architecture.learned`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from models.architecture import Architecture, LearnedPart
from mpc.errors import ConfigurationError
from protocols.suite import Activation, Linear, Value

NAME = re.compile(r"policy\.layers\.(\d{1,4})\.([a-z_]+(?:\.[a-z_]+)*)")


@dataclass(frozen=True)
class Learned:
    """What policies have learned of one layer. weights: all of the session's, looked up when they are used. activation: the
    model's, for what is between two linear layers."""

    weights: Mapping[str, Value]
    layer: int
    activation: Activation

    def linear(self, part: str) -> Linear:
        """Return the linear layer `policy.layers.N.{part}`, with its bias where there is one."""
        name = f"policy.layers.{self.layer}.{part}"
        return Linear(self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))


def in_every_layer(architecture: Architecture, parts: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of these parts' weights by canonical name, in all layers.

    >>> from models.shapes import SHAPES
    >>> list(in_every_layer(SHAPES["tiny"], {"gate.bias": (2,)}))[0]
    'policy.layers.0.gate.bias'
    """
    return {f"policy.layers.{layer}.{part}": shape for layer in range(architecture.layers) for part, shape in parts.items()}


def parts_of(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Return the shapes by part, of weights by canonical name; others are left out.

    >>> parts_of({"policy.layers.0.gate.bias": (2,), "policy.layers.1.gate.bias": (2,), "head.bias": (9,)})
    {'gate.bias': (2,)}
    """
    found = ((NAME.fullmatch(name), shape) for name, shape in shapes.items())
    return {match[2]: tuple(shape) for match, shape in found if match is not None}


def with_learned(architecture: Architecture, shapes: Mapping[str, tuple[int, ...]]) -> Architecture:
    """Return the model with what of these weights it does not have: costs of a policy can be told before it is fitted."""
    there = {part.name for part in architecture.learned}
    lacking = [LearnedPart(name=name, shape=shape) for name, shape in parts_of(shapes).items() if name not in there]
    return architecture.model_copy(update={"learned": (*architecture.learned, *lacking)}) if lacking else architecture


def check_learned(policy: str, shapes: Mapping[str, tuple[int, ...]], architecture: Architecture) -> None:
    """Raise `ConfigurationError` unless the model has these weights of a policy in these shapes."""
    there = {part.name: part.shape for part in architecture.learned}
    for part, shape in parts_of(shapes).items():
        if part not in there:
            raise ConfigurationError(
                f"policy {policy} needs weights that it has learned of the model, and '{part}' is not shared with it; make "
                f"them by `mpcache fit --policy {policy}`, put policy.safetensors beside the checkpoint, share it again"
            )
        if there[part] != shape:
            raise ConfigurationError(
                f"policy {policy}: its settings ask for '{part}' {list(shape)}, the model has {list(there[part])}"
                "; use the settings that it was fitted with, which stand in profile.json, or fit it again"
            )
