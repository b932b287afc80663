"""What every suite must write itself: values in and out, arithmetic, non-linear functions, selection.

`protocols.suite.Suite` adds what all suites have; model code is written against that one. Vocabulary and axis names are
there, too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor

from protocols.value import Activation, Linear, Norm, OutputShare, Value


class Operations(ABC):
    """The operations that a suite must write. Rounds and bytes of an operation are a suite's own, see its module."""

    # ---- values in and out ---------------------------------------------------------------------------------------
    @abstractmethod
    async def weight(self, name: str, shape: Sequence[int], share: Tensor | None) -> Value:
        """Take a fixed secret (a weight), used in many products and never changed.

        share: this party's int64 share with `weight_fraction_bits` fraction bits in Z_2^64 (float tensor for `plain`,
        None at the dealer and in `estimate`). Whatever is opened to make products cheap is opened here, once.
        """

    @abstractmethod
    def input(self, shape: Sequence[int], share: Tensor | None, fraction_bits: int, bound: float | None = None) -> Value:
        """Take a secret input from this party's int64 share in Z_2^64 (float for `plain`, None at dealer and `estimate`)."""

    @abstractmethod
    def indices(self, count: int, share: Tensor | None, size: int) -> Value:
        """Take secret places [count] in a table of `size` rows, for `look_up`, from this party's int64 share in Z_2^64
        (integers for `plain`, None at dealer and `estimate`). Whatever was shared stands for a row of the table."""

    @abstractmethod
    def output(self, x: Value) -> OutputShare:
        """Return this party's share of x, re-randomised so that the sum of the parties' shares says nothing but x."""

    @abstractmethod
    async def perturbed(self, x: Value, temperature: float) -> Value:
        """Return x plus fresh Gumbel noise times a public temperature; its arg-max is a sample of softmax(x / temperature).

        The noise is dealt: the dealer draws it (`protocols.gumbel`) and nobody else knows it. Used once.
        """

    @abstractmethod
    def public(self, x: Tensor | float, shape: Sequence[int] | None = None) -> Value:
        """Return a public tensor as a value."""

    @abstractmethod
    def concat(self, values: Sequence[Value], dim: int) -> Value:
        """Concatenate along `dim`; local."""

    # ---- arithmetic ----------------------------------------------------------------------------------------------
    @abstractmethod
    async def mul(self, x: Value, y: Value) -> Value:
        """Return the element-wise product, broadcasting."""

    @abstractmethod
    async def matmul(self, x: Value, y: Value) -> Value:
        """Return the matrix product over the last two axes, leading axes broadcast: [..., M, K] x [..., K, N] ->
        [..., M, N]."""

    @abstractmethod
    async def scale(self, x: Value, factor: Tensor | float) -> Value:
        """Return x times a public real tensor or number (broadcasting)."""

    @abstractmethod
    async def linear(self, x: Value, layer: Linear, residual: Value | None = None) -> Value:
        """Return x W + b (+ residual). x: [..., in] -> [..., out]."""

    @abstractmethod
    async def one_hot(self, index: Value, size: int) -> Value:
        """Return the one-hot rows of secret places (`indices`) below `size`: [T] -> [T, size], 0 fraction bits. Whatever a
        role shares as a place is one: what it says beyond `size` counts from 0 on again, so nobody can ask for anything but
        one row."""

    @abstractmethod
    async def look_up(self, index: Value, table: Value) -> Value:
        """Return the rows of a fixed secret table [V, D] at secret places (`indices`) [T]: [T, D]; exact."""

    @abstractmethod
    async def embed(self, one_hot: Value, table: Value) -> Value:
        """Return the rows of a fixed secret table: one_hot [T, V] (integers, 0 fraction bits) x table [V, D] -> [T, D];
        exact."""

    # ---- non-linear functions --------------------------------------------------------------------------------------
    @abstractmethod
    async def rsqrt_moment(self, x: Value, norm: Norm) -> Value:
        """Return 1 / sqrt(moment(x) + eps) over the last axis, [..., D] -> [..., 1]; moment is the variance ("layer") or the
        mean of squares ("rms"). Rows are those of the residual stream."""

    async def output_moment(self, x: Value, norm: Norm) -> Value:
        """Return `rsqrt_moment` of rows that are no residual stream, and may be larger: what linear layers give."""
        return await self.rsqrt_moment(x, norm)

    @abstractmethod
    async def softmax(self, x: Value, mask: Tensor | None = None) -> Value:
        """Return the softmax over the last axis. mask: public bool, broadcastable to x; False positions get probability
        exactly 0.

        Raises `RangeError` when a row of the mask is False everywhere.
        """

    @abstractmethod
    async def activation(self, x: Value, kind: Activation) -> Value:
        """Return gelu (erf), gelu_tanh, silu or relu, element-wise."""

    @abstractmethod
    async def less_than_zero(self, x: Value, fraction_bits: int | None = None) -> Value:
        """Return 1 where x < 0, else 0, with 0 fraction bits. fraction_bits: of x that count, see `keep_largest`."""

    @abstractmethod
    async def max(self, x: Value, background: bool = False) -> Value:
        """Return the maximum over the last axis, [..., n] -> [..., 1].

        background: its rounds overlap others and cost nothing, so the fewest comparisons are wanted.
        """

    @abstractmethod
    async def argmax(self, x: Value) -> Value:
        """Return the one-hot of the maximum over the last axis, same shape, 0 fraction bits; ties go to the earlier
        position."""

    # ---- selection; nobody learns what was selected ----------------------------------------------------------------
    @abstractmethod
    async def top_k(self, x: Value, k: int, bound: float) -> Value:
        """Return the k largest along the last axis: [..., C] -> [..., k, C], 0 fraction bits, row j one-hot at the value of
        rank j; exact ties go to the earlier position. |x| < bound, public. Raises `RangeError` unless 1 <= k <= C."""

    @abstractmethod
    async def keep_largest(self, x: Value, k: int, bound: float, fraction_bits: int | None = None) -> Value:
        """Return 1 at the k largest along the last axis, else 0: [..., n] -> [..., n], 0 fraction bits; ties as in
        `top_k`. fraction_bits: of x that are compared, where it has more than the suite's and they fit."""

    @abstractmethod
    async def compact(self, keep: Value, rows: Sequence[Value], k: int) -> list[Value]:
        """Return the k marked rows in their order: keep [B, n] with exactly k ones, rows [B, n, width] each ->
        [B, k, width]."""
