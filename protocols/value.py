"""What a suite computes on and with: values, layers, a party's share of an output; the words of `protocols.suite`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from protocols.row_tensors import RowTensors

Activation = Literal["gelu", "gelu_tanh", "silu", "relu"]


class Value(ABC):
    """A tensor inside a suite. Everything here is local and exact.

    `*` takes a public integer only (a real factor needs a truncation, hence `Suite.scale`). Adding two values aligns
    their fraction bits; adding a public float encodes it.
    """

    @property
    def element_bytes(self) -> int:
        """Return what an element takes in a party's memory: of a share."""
        return 8

    def row_tensors(self) -> RowTensors | None:
        """Return a cached value's rows as tensors, None where the value is more than its rows; local."""
        return None

    @property
    @abstractmethod
    def shape(self) -> torch.Size:
        """Public shape."""

    @abstractmethod
    def __add__(self, other: Value | Tensor | float) -> Value: ...

    @abstractmethod
    def __sub__(self, other: Value | Tensor | float) -> Value: ...

    @abstractmethod
    def __neg__(self) -> Value: ...

    @abstractmethod
    def __mul__(self, factor: int | Tensor) -> Value:
        """Return the value times a public integer or a public int64 tensor."""

    @abstractmethod
    def __getitem__(self, index: Any) -> Value:
        """Return the part that a public index or slice names."""

    @abstractmethod
    def reshape(self, *shape: int) -> Value: ...

    @abstractmethod
    def permute(self, *dims: int) -> Value: ...

    @abstractmethod
    def expand(self, *shape: int) -> Value: ...

    @abstractmethod
    def sum(self, dim: int, keepdim: bool = False) -> Value: ...

    @abstractmethod
    def cumsum(self, dim: int) -> Value: ...

    def transpose(self, a: int, b: int) -> Value:
        """Return the value with two axes swapped."""
        dims = list(range(len(self.shape)))
        dims[a], dims[b] = dims[b], dims[a]
        return self.permute(*dims)


async def there(x: Value | Awaitable[Value]) -> Value:
    """Return a value that is there, or what gives it once it has."""
    return x if isinstance(x, Value) else await x


@dataclass(frozen=True)
class Norm:
    """A normalisation whose centring, gain and offset are folded into the linear layers that follow it.

    LayerNorm(h) W + b = (h W') / sqrt(var(h) + eps) + b' with W' = (I - 11^T/D) diag(gain) W and b' = b + offset W;
    RMSNorm the same without centring and with the mean of squares. Only 1/sqrt is left to compute, one scalar a token.

    kind: "layer" or "rms". epsilon: public.
    """

    kind: Literal["layer", "rms"]
    epsilon: float


Use = Literal["any", "heads", "rotated", "function", "normalised", "stream"]


@dataclass(frozen=True)
class Linear:
    """A linear layer with fixed secret weight [in, out], or one for each of several inputs, [E, in, out], and optional fixed
    secret bias [out].

    use: what is done with its product, by which a suite chooses rings: `heads`, queries, keys and values, which are cached;
    `rotated`, the same with rotary positions; `function`, an activation follows; `normalised`, a norm follows; `stream`, it
    is added to the residual stream in the end; `any`.
    """

    weight: Value
    bias: Value | None = None
    use: Use = "any"


@dataclass(frozen=True)
class Part:
    """Cached rows that are attended to beside other ones, which may be held in another way: one softmax is taken over the
    scores of all parts.

    q: the queries as these rows' keys meet them [G', n, C']; k: [G', S, C']; v: [G'', S, C'']; the heads of all parts are
    the same ones in the same order, however they are grouped. total: which of the results the weighted values join.
    """

    q: Value
    k: Value
    v: Value
    total: int = 0


@dataclass(frozen=True, repr=False)
class OutputShare:
    """One party's share of a result, for the one receiver who is to learn it.

    share: int64 [any], additive in Z_2^bits with `fraction_bits`; for the suite `plain` the float result itself. At the
    dealer and in `estimate` a tensor on the meta device. flags: this party's XOR share of the range flags, see
    `Suite.flags`; None where the suite has none. dropped: the share of how many choices of an expert found no place on the
    way to it [1]; None where none could be missed.
    """

    share: Tensor
    bits: int
    fraction_bits: int
    flags: Tensor | None = None
    dropped: OutputShare | None = None
