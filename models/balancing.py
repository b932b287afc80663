"""Balancing by exact powers of two between weights that follow each other, made where canonical weights are made.

Three pairs of secret weights meet in products with nothing but linear operations between them, so that a factor may move
from one to the other without changing any result:

* **keys and queries**, by channel of a key/value head; with rotary positions by the *pair* of channels c and c + C/2, since
  a common factor commutes with the rotation. All R query heads of the group take the inverse factor. Not where both are
  normalised first;
* **values and the attention's output**, by channel of a key/value head; the rows of all R query heads take the inverse;
* **up and down** of a *gated* feed-forward layer, by channel. (The gate passes a non-linear function and stays; without a
  gate `up` passes it.)

Factors are powers of two, hence exact in floats. They follow from the weights alone, so a checkpoint has one set of
canonical weights, whoever reads it. What is balanced is the size that a channel takes: a normalised input x of width D has
|x| <= sqrt(D), and of a layer x W + b a channel's deviation is about the norm of its column W_j for inputs without a
direction. So a channel's size is taken as |b_j| + 4 |W_j|. The provable bound |b_j| + sqrt(D) |W_j| (`provable_bounds`) is
reached by an input along W_j alone; without biases both balance alike.

For keys and queries both factors are cached or opened with the same precision, and the error of a score is least where both
are equally large. For values and `up` the other factor is a weight. A value's rounding (steps of 2^-14) comes out times its
row of the next weight, that weight's rounding (steps of 2^-16) times the value. The sum of both squares is least where
dividing by s has made the deviation 4 times as large as w, the root mean square of the row: s^2 = deviation / (4 w). For
s above 1 the weight's error dominates before and none does after, so small values and precision are the same wish; s below
1 would trade range for little and is left alone. A weight does not leave +-2^4 by this.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from models.architectures import AnyArchitecture

DEVIATIONS = 4.0
LARGEST_WEIGHT = 4  # log2
PRECISION = 4.0  # rounding of an activation over rounding of a weight, as steps of 2^-14 and 2^-16
LARGEST_EXPONENT = 20

Read = Callable[[str], Tensor]
"""Reads one canonical weight, not balanced, as float64."""


class Balance:
    """The factors of a checkpoint's layers. Each is found when one of the layer's weights is first asked for, from these
    weights, one read at a time; only the vectors are kept."""

    def __init__(self, architecture: AnyArchitecture, read: Read) -> None:
        self._architecture = architecture
        self._read = read
        self._attention: dict[str, tuple[Tensor, Tensor]] = {}
        self._up: dict[str, Tensor] = {}

    def __call__(self, name: str, weight: Tensor) -> Tensor:
        """Return the canonical weight `name`, balanced. weight: float64, not balanced; may be changed."""
        a = self._architecture
        at, _, kind = name.rpartition(".")
        at, _, part = at.rpartition(".")
        if part == "out" and kind == "weight":
            return weight * _powers(self._attention_factors(at)[1]).repeat_interleave(a.group, 0).reshape(-1, 1)
        if part in ("qkv", "q", "kv"):
            return weight * self._read_factors(at)[part]
        if a.gated and f"{part}.{kind}" in ("up.weight", "up.bias", "down.weight"):
            up = self._up_factors(at)
            return weight * (_powers(up)[:, None] if part == "down" else _powers(-up))
        return weight

    def _read_factors(self, at: str) -> dict[str, Tensor]:
        """Return the factors of what gives queries, keys and values, together or (cross-attention) apart."""
        keys, values = self._attention_factors(at)
        queries = _powers(keys).repeat_interleave(self._architecture.group, 0).flatten()
        both = torch.cat([_powers(-keys).flatten(), _powers(-values).flatten()])
        return {"q": queries, "kv": both, "qkv": torch.cat([queries, both])}

    def _attention_factors(self, at: str) -> tuple[Tensor, Tensor]:
        if at not in self._attention:
            a = self._architecture
            parts = ("q", "kv") if at.endswith(".cross") else ("qkv",)
            sizes_of = [self._columns(f"{at}.{part}", a.qkv_bias) for part in parts]
            norms, bias = (torch.cat(columns) for columns in zip(*sizes_of, strict=True))
            heads, groups = a.heads * a.head_channels, a.kv_heads * a.head_channels
            sizes = DEVIATIONS * norms + bias
            queries = sizes[:heads].reshape(a.kv_heads, a.group, a.head_channels).amax(1)
            keys = sizes[heads : heads + groups].reshape(a.kv_heads, a.head_channels)
            if a.query_key_norm is not None:
                keys = queries  # what a norm reads keeps its channels' sizes
            if a.rotary is not None:
                queries, keys = (_pairs(x) for x in (queries, keys))
            deviation = (norms.square() + bias.square()).sqrt()[heads + groups :]
            rows = self._read(f"{at}.out.weight").reshape(a.kv_heads, a.group, a.head_channels, a.width)
            values = _precise(
                deviation.reshape(a.kv_heads, -1),
                rows.square().mean((1, 3)).sqrt(),
                rows.abs().amax((1, 3)),
            )
            self._attention[at] = _exponents(keys, queries), values
        return self._attention[at]

    def _up_factors(self, at: str) -> Tensor:
        if at not in self._up:
            a = self._architecture
            norms, bias = self._columns(f"{at}.up", a.mlp_bias)
            gates, gate_bias = self._columns(f"{at}.gate", a.mlp_bias)
            active = (
                (norms.square() + bias.square()).sqrt() * (gates.square() + gate_bias.square()).sqrt() / 2
            )  # silu, gelu and relu halve a square
            rows = self._read(f"{at}.down.weight")
            self._up[at] = _precise(active, rows.square().mean(1).sqrt(), rows.abs().amax(1))
        return self._up[at]

    def _columns(self, name: str, biased: bool) -> tuple[Tensor, Tensor]:
        """Return (norm of each column, |bias|) of a linear layer."""
        norms = self._read(f"{name}.weight").square().sum(0).sqrt()
        return norms, self._read(f"{name}.bias").abs() if biased else torch.zeros_like(norms)


def _powers(exponents: Tensor) -> Tensor:
    return torch.ldexp(torch.ones_like(exponents, dtype=torch.float64), exponents)


def _pairs(x: Tensor) -> Tensor:
    """Return the larger one of each rotary pair, at both its channels."""
    half = x.shape[-1] // 2
    return torch.maximum(x[..., :half], x[..., half:]).repeat(1, 2)


def _exponents(larger: Tensor, smaller: Tensor) -> Tensor:
    """Return log2 of the power of two next to sqrt(larger / smaller); 0 where one of them is zero."""
    exponents = torch.round(0.5 * (torch.log2(larger) - torch.log2(smaller)))
    known = (larger > 0) & (smaller > 0)
    return torch.where(known, exponents, 0.0).clamp(-LARGEST_EXPONENT, LARGEST_EXPONENT).to(torch.int64)


def _precise(deviation: Tensor, rows: Tensor, largest: Tensor) -> Tensor:
    """Return exponents, at least 0, that make the next product most precise within the weights' limit, see the module."""
    room = torch.where(largest > 0, torch.floor(LARGEST_WEIGHT - torch.log2(largest)), 0.0).clamp(min=0).to(torch.int64)
    return torch.minimum(_exponents(deviation, PRECISION * rows).clamp(min=0), room)


def provable_bounds(weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return what |x W + b| cannot exceed for any normalised input x, by column: sqrt(D) |W_j| + |b_j|. [D, out] -> [out].

    >>> provable_bounds(torch.tensor([[3.0], [4.0]]) * 2.0**0.5, torch.tensor([-1.0]))
    tensor([11...])
    """
    bound: Tensor = weight.square().sum(0).sqrt() * float(weight.shape[0] ** 0.5)
    return bound if bias is None else bound + bias.abs()
