"""What every public description of a model has in common, whatever kind of transformer it is.

A description is frozen, strictly typed and has a canonical JSON, which enters the manifest that all parties compare. Nothing
here depends on a weight.
"""

from __future__ import annotations

import json
import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    field_validator,
    model_validator,
)

from mpc.errors import ConfigurationError
from protocols.suite import Activation, Norm

Count = Annotated[int, Field(ge=1, le=1 << 24)]
Layers = Annotated[int, Field(ge=1, le=1 << 12)]
TokenId = Annotated[int, Field(ge=0, lt=1 << 24)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def reason(title: str, error: ValidationError) -> str:
    """Return the first problem in words: the argument, its value, what is wrong."""
    first = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if not where:
        return f"{title}: {message}"
    if first["type"] == "missing":
        return f"{title}: '{where}' is missing"
    value = repr(first["input"])
    return f"{title}: '{where}' = {value if len(value) <= 80 else value[:77] + '...'}: {message}"


class PublicRecord(BaseModel):
    """A frozen, strictly typed record whose validation errors are `ConfigurationError`s."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @model_validator(mode="wrap")
    @classmethod
    def _typed_error(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        title = cls.__name__.lower()
        try:
            record = handler(values)
            record._check()
        except ValidationError as error:
            raise ConfigurationError(reason(title, error)) from None
        except ValueError as error:
            raise ConfigurationError(f"{title}: {error}") from None
        return record

    def _check(self) -> None:
        """Raise `ValueError` where values do not fit together."""


class Description(PublicRecord):
    """A model's sizes and kinds, of which its canonical weights' names and shapes follow.

    family: config.json's name of it. layers, width (D), heads (H), head_channels (C), feed_forward (F), vocabulary (V): as
    the axes of `protocols.suite`. positions: the most tokens of a sequence. norm: of its rows, centring folded where its
    kind is "rms". Raises `ConfigurationError` naming the argument and its value.
    """

    family: Annotated[str, Field(min_length=1, max_length=64)]
    layers: Layers
    width: Count
    heads: Count
    head_channels: Count
    feed_forward: Count
    vocabulary: Annotated[int, Field(ge=2, le=1 << 24)]
    positions: Count
    norm: Norm
    activation: Activation

    @field_validator("norm", mode="before")
    @classmethod
    def _norm(cls, value: Any) -> Norm:
        """Read a norm from JSON, too; the record of the suites' interface checks nothing itself."""
        norm = Norm(**value) if isinstance(value, dict) and value.keys() == {"kind", "epsilon"} else value
        if not isinstance(norm, Norm):
            raise ValueError("'kind' and 'epsilon' are needed")
        if norm.kind not in ("layer", "rms"):
            raise ValueError(f"'kind' = {norm.kind!r}; known: layer, rms")
        if not isinstance(norm.epsilon, float) or not 0 < norm.epsilon < 1:
            raise ValueError(f"'epsilon' = {norm.epsilon!r} must be a number between 0 and 1")
        return norm

    @abstractmethod
    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the names and shapes of the canonical weights, in the order in which they are shared and loaded."""

    @abstractmethod
    def reduced(self, layers: Sequence[int]) -> Self:
        """Return the same model with these of its layers alone."""

    def window(self, layer: int) -> int | None:
        """Return the sliding window of a layer, None for full attention."""
        return None

    def kind(self, layer: int) -> object:
        """Return what decides on a layer's costs besides bounds: layers of one kind are alike."""
        return None

    def parameters(self) -> int:
        """Number of canonical weights."""
        return sum(math.prod(shape) for shape in self.weight_shapes().values())

    def to_json(self) -> str:
        """Return canonical JSON: keys sorted, no spaces; equal descriptions give equal text."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Return the inverse of `to_json`. Raises `ConfigurationError` for unknown or missing keys and values out of
        range."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise ConfigurationError(reason("architecture", error)) from None
