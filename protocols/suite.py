"""The interface that model code is written against, once, for every suite.

Vocabulary. A *suite* is one way to compute on values that nobody sees: `plain` (floats, no secrecy), `crypten` (CrypTen's
Beaver protocols), `masked` (masked evaluation), `estimate` (shapes only). A *value* is a tensor inside a suite. A
*party* holds a share of it; the *dealer* runs the same program to deal correlated randomness and holds no input.

Two rules make programs readable:
* an operator or method of a `Value` is local: no round, no byte, exact;
* whatever may communicate is an awaited method of the suite. `await suite.together(a, b)` shares rounds (see
  `protocols.schedule`); for suites that cannot interleave, it runs them one after the other.

No method opens a value to a compute party. `output` hands a party's share of a result to whoever is to learn it.

Shapes are public. Axis names used below: T tokens, S cached tokens, D model width, H query heads, G key/value heads,
R = H / G query heads per key/value head, C channels of a head, F feed-forward width, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from mpc.ledger import Ledger, operation
from protocols import schedule

Activation = Literal["gelu", "gelu_tanh", "silu", "relu"]

RANGE_KINDS = ("residual", "score", "value", "activation", "logits")
"""What may leave its declared range, one row of `OutputShare.flags` each: the norm of a row of the residual stream, the
spread of a row of attention scores, a cached value, the input of an activation function (or its factor), a logit."""


class Value(ABC):
    """A tensor inside a suite. Everything here is local and exact.

    `*` takes a public integer only (a real factor needs a truncation, hence `Suite.scale`). Adding two values aligns
    their fraction bits; adding a public float encodes it.
    """

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
        """Times a public integer or a public int64 tensor."""

    @abstractmethod
    def __getitem__(self, index: Any) -> Value:
        """Public indexing and slicing."""

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
        """Swap two axes."""
        dims = list(range(len(self.shape)))
        dims[a], dims[b] = dims[b], dims[a]
        return self.permute(*dims)


@dataclass(frozen=True)
class Norm:
    """A normalisation whose centring, gain and offset are folded into the linear layers that follow it.

    LayerNorm(h) W + b = (h W') / sqrt(var(h) + eps) + b' with W' = (I - 11^T/D) diag(gain) W and b' = b + offset W;
    RMSNorm the same without centring and with the mean of squares. Only 1/sqrt is left to compute, one scalar a token.

    kind: "layer" or "rms". epsilon: public.
    """

    kind: Literal["layer", "rms"]
    epsilon: float


@dataclass(frozen=True)
class Linear:
    """A linear layer with fixed secret weight [in, out] and optional fixed secret bias [out]."""

    weight: Value
    bias: Value | None = None


@dataclass(frozen=True)
class OutputShare:
    """One party's share of a result, for the one receiver who is to learn it.

    share: int64 [any], additive in Z_2^bits with `fraction_bits`; for the suite `plain` the float result itself. At the
    dealer and in `estimate` a tensor on the meta device. flags: this party's XOR share of the range flags, see
    `Suite.flags`; None where the suite has none.
    """

    share: Tensor
    bits: int
    fraction_bits: int
    flags: Tensor | None = None


class Suite(ABC):
    """One way of computing on secrets. One instance per party (or dealer) and session.

    parties: number of compute parties. fraction_bits: of activations. ledger: where costs are counted.
    """

    name: ClassVar[str]
    prepares: ClassVar[bool] = False
    """Whether a party can run a preparing pass of its program, see `mpc.preprocessing`."""
    overlaps_rounds: ClassVar[bool] = False
    """Whether rounds of work that is started aside (`protocols.schedule.later`) are shared with the work beside it."""

    flag_bytes: ClassVar[int] = 0
    """Offline bytes of the last party for the flags of one place, beside those of the values that are checked."""

    def __init__(self, parties: int, fraction_bits: int, ledger: Ledger, device: torch.device | str = "cpu") -> None:
        self.parties = parties
        self.fraction_bits = fraction_bits
        self.ledger = ledger
        self.device = torch.device(device)
        self.scheduler = schedule.Scheduler(self._flush)
        self.places = 1
        self.place = 0

    def begin(self, places: int) -> None:
        """A program with so many places begins: the layers, and the head after them."""
        self.places = places
        self.place = 0

    def at(self, place: int) -> None:
        """What follows belongs to this layer (or to the head): its bounds apply, its range flags are set."""
        self.place = place

    def flags(self) -> Tensor | None:
        """This party's XOR share of the range flags since the last call: int64 words [kinds, places], or None.

        kinds: `RANGE_KINDS`. A word is zero when no value of that kind left its declared range there, and a uniformly
        random word otherwise (zero by chance: 2^-64). Only the client opens them, with the answer that they belong to.
        """
        return None

    @property
    def public_device(self) -> torch.device:
        """Where public tensors lie: with the shares; on the CPU where values have no data."""
        return torch.device("cpu") if self.device.type == "meta" else self.device

    def _flush(self, requests: list[Any]) -> Sequence[Any]:
        raise NotImplementedError(f"suite {self.name} has no asynchronous openings")

    # ---- running -------------------------------------------------------------------------------------------------
    def run(self, program: Coroutine[Any, Any, Any]) -> Any:
        """Run a program (an `async def` written against this interface) to its end."""
        return self.scheduler.run(program)

    async def together(self, *programs: Coroutine[Any, Any, Any]) -> tuple[Any, ...]:
        """Run programs that do not depend on each other; their openings share rounds where the suite can."""
        return await schedule.together(*programs)

    # ---- values in and out ---------------------------------------------------------------------------------------
    @abstractmethod
    async def weight(self, name: str, shape: Sequence[int], share: Tensor | None) -> Value:
        """A fixed secret (a weight), used in many products and never changed.

        share: this party's int64 share with `weight_fraction_bits` fraction bits in Z_2^64 (float tensor for `plain`,
        None at the dealer and in `estimate`). Whatever is opened to make products cheap is opened here, once.
        """

    @abstractmethod
    def input(self, shape: Sequence[int], share: Tensor | None, fraction_bits: int, bound: float | None = None) -> Value:
        """A secret input from this party's int64 share in Z_2^64 (float for `plain`, None at dealer and `estimate`)."""

    @abstractmethod
    def indices(self, count: int, share: Tensor | None, size: int) -> Value:
        """Secret places [count] in a table of `size` rows, for `look_up`, from this party's int64 share in Z_2^64 (integers
        for `plain`, None at dealer and `estimate`). Whatever was shared stands for a row of the table."""

    @abstractmethod
    def output(self, x: Value) -> OutputShare:
        """This party's share of x, re-randomised so that the sum of the parties' shares says nothing but x."""

    async def rounded(self, x: Value, room: int = 4) -> Value:
        """x with `fraction_bits` fraction bits and nothing below them. Same value otherwise.

        room: bits that sums of a few such values may need beyond x's own bound.
        """
        return x

    async def released(self, x: Value) -> Value:
        """floor(x 2^fraction_bits) / 2^fraction_bits, exact: what may be output of a value with more fraction bits.

        The truncations inside a program round up or down by chance, and each compute party knows its chance: with the
        client it could tell, over many equal questions, what was cut. This one says the same of equal x, so that output and
        openings together are a function of the output and of fresh uniform masks.
        """
        return x

    @abstractmethod
    async def perturbed(self, x: Value, temperature: float) -> Value:
        """x plus fresh Gumbel noise times a public temperature, whose arg-max is a sample of softmax(x / temperature).

        The noise is dealt: the dealer draws it (`protocols.gumbel`) and nobody else knows it. Used once.
        """

    @abstractmethod
    def public(self, x: Tensor | float, shape: Sequence[int] | None = None) -> Value:
        """A public tensor as a value."""

    @abstractmethod
    def concat(self, values: Sequence[Value], dim: int) -> Value:
        """Concatenate along `dim`; local."""

    # ---- arithmetic ----------------------------------------------------------------------------------------------
    @abstractmethod
    async def mul(self, x: Value, y: Value) -> Value:
        """Element-wise product, broadcasting."""

    @abstractmethod
    async def matmul(self, x: Value, y: Value) -> Value:
        """Matrix product over the last two axes, leading axes broadcast: [..., M, K] x [..., K, N] -> [..., M, N]."""

    @abstractmethod
    async def scale(self, x: Value, factor: Tensor | float) -> Value:
        """x times a public real tensor or number (broadcasting)."""

    @abstractmethod
    async def linear(self, x: Value, layer: Linear, residual: Value | None = None) -> Value:
        """x W + b (+ residual). x: [..., in] -> [..., out]."""

    @abstractmethod
    async def look_up(self, index: Value, table: Value) -> Value:
        """Rows of a fixed secret table [V, D] at secret places (`indices`) [T]: [T, D]; exact."""

    @abstractmethod
    async def embed(self, one_hot: Value, table: Value) -> Value:
        """Rows of a fixed secret table: one_hot [T, V] (integers, 0 fraction bits) x table [V, D] -> [T, D]; exact."""

    # ---- non-linear functions --------------------------------------------------------------------------------------
    @abstractmethod
    async def rsqrt_moment(self, x: Value, norm: Norm) -> Value:
        """1 / sqrt(moment(x) + eps) over the last axis, [..., D] -> [..., 1]; moment is the variance ("layer") or the
        mean of squares ("rms")."""

    @abstractmethod
    async def softmax(self, x: Value, mask: Tensor | None = None) -> Value:
        """Softmax over the last axis. mask: public bool, broadcastable to x; False positions get probability exactly 0.

        Raises `RangeError` when a row of the mask is False everywhere.
        """

    @abstractmethod
    async def activation(self, x: Value, kind: Activation) -> Value:
        """gelu (erf), gelu_tanh, silu or relu, element-wise."""

    @abstractmethod
    async def less_than_zero(self, x: Value) -> Value:
        """1 where x < 0, else 0, with 0 fraction bits."""

    @abstractmethod
    async def max(self, x: Value, background: bool = False) -> Value:
        """Maximum over the last axis, [..., n] -> [..., 1].

        background: its rounds ride along with others and cost nothing, so the fewest comparisons are wanted.
        """

    @abstractmethod
    async def argmax(self, x: Value) -> Value:
        """One-hot of the maximum over the last axis, same shape, 0 fraction bits; ties go to the earlier position."""

    # ---- selection; nobody learns what was selected ----------------------------------------------------------------
    @abstractmethod
    async def top_k(self, x: Value, k: int, bound: float) -> Value:
        """The k largest along the last axis: [..., C] -> [..., k, C], 0 fraction bits, row j one-hot at the value of rank j;
        exact ties go to the earlier position. |x| < bound, public. Raises `RangeError` unless 1 <= k <= C."""

    @abstractmethod
    async def keep_largest(self, x: Value, k: int, bound: float) -> Value:
        """1 at the k largest along the last axis, else 0: [..., n] -> [..., n], 0 fraction bits; ties as in `top_k`."""

    @abstractmethod
    async def compact(self, keep: Value, rows: Sequence[Value], k: int) -> list[Value]:
        """The k marked rows in their order: keep [B, n] with exactly k ones, rows [B, n, width] each -> [B, k, width]."""

    similarity_bound: float = 2.0**15
    """Public bound on the results of `scores`."""

    def relative(self, x: Value) -> Value:
        """x, of which only the differences along the last axis matter; suites whose rings must hold it bring it near 0."""
        return x

    def with_bound(self, x: Value, bound: float) -> Value:
        """x, declared to lie within +-bound (public); suites that choose rings by bounds use it."""
        return x

    async def absolute(self, x: Value) -> Value:
        """|x|, exact."""
        return x - (await self.mul(await self.less_than_zero(x), x)) * 2

    async def hold(self, chosen: Value) -> Value:
        """A choice (one-hot rows) that several layers will use, made ready for that; the same value."""
        return chosen

    async def choose(self, chosen: Value, rows: Value) -> Value:
        """Rows of a small secret table: one-hot chosen [G, n, N] times rows [G, N, width] -> [G, n, width]."""
        return await self.matmul(chosen, rows)

    async def scores(self, q: Value, k: Value) -> Value:
        """Products of queries and keys (or cluster representatives) to be ranked: [G, R, C] x [G, N, C] -> [G, R, N]."""
        with operation("similarity"):
            return await self.matmul(q, k.transpose(1, 2))

    # ---- what transformers are made of; suites override these where they can do it in fewer rounds ---------------
    async def norm_linear(self, x: Value, norm: Norm, layers: Sequence[Linear], whole: bool = False) -> list[Value]:
        """Normalise x [..., D], then apply each (folded, see `Norm`) linear layer.

        whole: no fraction bit of the products is cut, for what is to be `released`.
        """
        (inverse, *products) = await self.together(
            self.rsqrt_moment(x, norm), *(self.linear(x, Linear(layer.weight)) for layer in layers)
        )
        with operation("norm scale"):
            scaled = await self.together(*(self.mul(product, inverse) for product in products))
        return [y if layer.bias is None else y + layer.bias for y, layer in zip(scaled, layers, strict=True)]

    async def attention(self, q: Value, k: Value, v: Value, mask: Tensor | None) -> Value:
        """softmax(q k^T) v per key/value head; the score scale is already in q's weights.

        q: [G, R T, C] with the R query heads of a key/value head stacked on the token axis, k: [G, S, C], v: [G, S, C],
        mask: public bool broadcastable to [G, R T, S] or None. Returns [G, R T, C].
        """
        with operation("scores"):
            scores = await self.matmul(q, k.transpose(1, 2))
        with operation("softmax"):
            probabilities = await self.softmax(scores, mask)
        with operation("values"):
            return await self.matmul(probabilities, v)

    async def attention_with_mass(
        self, q: Value, k: Value, v: Value, mask: Tensor | None, observed: Tensor
    ) -> tuple[Value, Value]:
        """`attention`, and the attention that each cached token receives from some queries: [G, R T, C] and [G, S].

        observed: public bool [R T]; the second result is the sum of these queries' probabilities.
        """
        with operation("scores"):
            scores = await self.matmul(q, k.transpose(1, 2))
        with operation("softmax"):
            probabilities = await self.softmax(scores, mask)
        with operation("values"):
            return await self.matmul(probabilities, v), probabilities[:, observed].sum(1)

    async def biased_attention(self, q: Value, k: Value, v: Value, bias: Value) -> Value:
        """`attention` of one token's queries q [G, R, C] with a secret `bias` [G, 1 or R, S] added to the scores."""
        with operation("scores"):
            scores = await self.matmul(q, k.transpose(1, 2)) + bias
        with operation("softmax"):
            probabilities = await self.softmax(scores)
        with operation("values"):
            return await self.matmul(probabilities, v)

    async def selected_attention(
        self, q: Value, chosen: Value, k: Value, v: Value, always: tuple[Value, Value] | None
    ) -> Value:
        """Attention of one token to the tokens of secretly chosen clusters, and to others that are always attended to.

        q: [G, R, C]; chosen: one-hot rows [G, n, N] (`top_k`); k, v: clusters of s tokens [G, N, s, C]; always: keys and
        values [G, m, C]. Returns [G, R, C]. A cluster that is chosen twice counts twice.
        """
        return await self.gathered_attention(q, chosen, k, v, always)

    async def gathered_attention(
        self, q: Value, chosen: Value, k: Value, v: Value, always: tuple[Value, Value] | None
    ) -> Value:
        """`selected_attention` by gathering: the choice times keys and values, then attention to what comes out."""
        groups, clusters, size, channels = k.shape
        with operation("gather"):
            flat = [x.reshape(groups, clusters, size * channels) for x in (k, v)]
            keys, values = await self.together(*(self.choose(chosen, x) for x in flat))
            tokens = chosen.shape[1] * size
            keys, values = (x.reshape(groups, tokens, channels) for x in (keys, values))
            keys, values = await self.together(self.append(None, keys, 1), self.append(None, values, 1))
        if always is not None:
            keys, values = self.concat([keys, always[0]], 1), self.concat([values, always[1]], 1)
        return await self.attention(q, keys, values, None)

    async def replace(self, rows: Value, place: Value, new: Value) -> Value:
        """Cached rows [G, n, C] with the one that `place` [G, n] (one-hot or zero) marks replaced by `new` [G, 1, C]."""
        groups, count, channels = rows.shape
        with operation("replace"):
            marks = place.reshape(groups, count, 1).expand(groups, count, channels)
            change = await self.mul(marks, new.expand(groups, count, channels) - rows)
            return await self.append(None, rows + change, 1)

    async def gated_activation(self, gate: Value, up: Value, kind: Activation) -> Value:
        """activation(gate) * up, element-wise."""
        return await self.mul(await self.activation(gate, kind), up)

    async def rotate(self, x: Value, cos: Tensor, sin: Tensor) -> Value:
        """Rotary position embedding (half-split form): x: [G, T, C], cos and sin: public [T, C]."""
        half = x.shape[-1] // 2
        swapped = self.concat([-x[..., half:], x[..., :half]], dim=-1)
        both = await self.scale(self.concat([x, swapped], dim=-1), torch.cat([cos, sin], dim=-1))
        return both[..., : 2 * half] + both[..., 2 * half :]

    async def prepare(self, x: Value) -> Value:
        """x made ready to be a factor of `attention`'s first product, beside other work; the same value."""
        return x

    async def append(self, cache: Value | None, new: Value, dim: int, kind: str | None = None) -> Value:
        """The cache with `new` appended along `dim`. Suites that mask cached values once do it here.

        kind: of `RANGE_KINDS`; `new` is flagged where it is outside that bound."""
        return new if cache is None else self.concat([cache, new], dim)

    def keep_first(self, x: Value, count: int, dim: int) -> Value:
        """The first `count` entries of a cache along `dim`; what follows is given up, and x may not be used any more."""
        return x[(*(slice(None),) * dim, slice(count))]


WeightShares = Mapping[str, Tensor]
