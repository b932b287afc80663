"""Multiply-adds of ring matrix products, counted as a program asks a suite for them."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Sequence
from typing import Any

from torch import Tensor

from mpc.ledger import current
from protocols.suite import Linear, Part, Suite, Value

FEW_ROWS = 12  # products with fewer rows run at the speed of memory (see mpc.ring)

# Ring products that a party computes for one product of a secret with a secret: with the opened value and with the mask.
RING_PRODUCTS = {"masked": 2, "crypten": 2}
KINDS = ("vector_products", "matrix_products", "bit_products")
"""Of few rows, of many, and of opened bits, which are made in bytes (`protocols.masked.tokens`)."""


class Products:
    """A suite that counts the multiply-adds of the matrix products it is asked for, and passes everything on."""

    def __init__(self, suite: Suite) -> None:
        self._suite = suite
        self.counts: dict[tuple[str, str, str], int] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._suite, name)

    def _count(self, rows: int, inner: int, columns: int, batch: int = 1) -> None:
        self._add("vector_products" if rows < FEW_ROWS else "matrix_products", batch * rows * inner * columns)

    def _count_rows(self, rows: int, table: Value) -> None:
        """Count rows of bits times a table, [rows, V] x [V, D]."""
        if self._suite.name == "masked":
            self._add("bit_products", rows * table.shape.numel())
        else:
            self._count(rows, *table.shape)

    def _add(self, kind: str, products: int) -> None:
        where, op = current()
        each = RING_PRODUCTS.get(self._suite.name, 2)
        self.counts[where, op, kind] = self.counts.get((where, op, kind), 0) + products * each

    def whole_linear(self, x: Value, layer: Linear) -> Any:
        """Count as `linear` does."""
        self._count(x.shape[:-1].numel(), *layer.weight.shape)
        return self._suite.whole_linear(x, layer)

    def linear(self, x: Value, layer: Linear, residual: Value | None = None) -> Any:
        """Count [..., in] x [in, out], or [E, n, in] x [E, in, out]."""
        *each, inner, columns = layer.weight.shape
        batch = math.prod(each)
        self._count(x.shape[:-1].numel() // batch, inner, columns, batch)
        return self._suite.linear(x, layer, residual)

    def norm_linear(self, x: Value, norm: Any, layers: Sequence[Linear], whole: bool = False) -> Any:
        """Count as `linear` does, for each layer."""
        for layer in layers:
            self._count(x.shape[:-1].numel(), *layer.weight.shape)
        return self._suite.norm_linear(x, norm, layers, whole)

    def look_up(self, index: Value, table: Value) -> Any:
        """Count [T, V] x [V, D]."""
        self._count_rows(index.shape[0], table)
        return self._suite.look_up(index, table)

    def embed(self, one_hot: Value, table: Value) -> Any:
        """Count [T, V] x [V, D]."""
        self._count_rows(one_hot.shape[0], table)
        return self._suite.embed(one_hot, table)

    def matmul(self, x: Value, y: Value) -> Any:
        """Count [..., M, K] x [..., K, N]."""
        self._count(x.shape[-2], x.shape[-1], y.shape[-1], x.shape[:-2].numel())
        return self._suite.matmul(x, y)

    def gather(self, slots: Value, rows: Value) -> Any:
        """Count [E C, T] x [T, D], or each expert's own [C, T] x [T, D]."""
        self._count(slots.shape[:2].numel(), slots.shape[2], rows.shape[-1])
        return self._suite.gather(slots, rows)

    def scatter(self, slots: Value, rows: Value, stream: Value) -> Any:
        """Count [T, E C] x [E C, D]."""
        self._count(slots.shape[2], slots.shape[:2].numel(), rows.shape[2])
        return self._suite.scatter(slots, rows, stream)

    def attention(self, q: Value, k: Value, v: Value, mask: Tensor | None) -> Any:
        """Count [G, n, C] x [G, C, S] and [G, n, S] x [G, S, C]."""
        groups, rows, channels = q.shape
        self._count(rows, channels, k.shape[1], groups)
        self._count(rows, k.shape[1], channels, groups)
        return self._suite.attention(q, k, v, mask)

    def attention_with_mass(self, q: Value, k: Value, v: Value, mask: Tensor | None, observed: Tensor) -> Any:
        groups, rows, channels = q.shape
        self._count(rows, channels, k.shape[1], groups)
        self._count(rows, k.shape[1], channels, groups)
        return self._suite.attention_with_mass(q, k, v, mask, observed)

    def observed_attention(self, q: Value, k: Value, v: Value | None, mask: Tensor | None, observed: Any) -> Any:
        groups, rows, channels = q.shape
        self._count(rows, channels, k.shape[1], groups)
        if v is not None:
            self._count(rows, k.shape[1], channels, groups)
        return self._suite.observed_attention(q, k, v, mask, observed)

    def biased_attention(self, q: Value, k: Value, v: Value, bias: Value, mask: Tensor | None = None) -> Any:
        groups, rows, channels = q.shape
        self._count(rows, channels, k.shape[1], groups)
        self._count(rows, k.shape[1], v.shape[2], groups)
        return self._suite.biased_attention(q, k, v, bias, mask)

    def relative_attention(self, q: Value, k: Value, v: Value, bias: Value, mask: Tensor | None) -> Any:
        groups, rows, channels = q.shape
        self._count(rows, channels, k.shape[1], groups)
        self._count(rows, k.shape[1], channels, groups)
        return self._suite.relative_attention(q, k, v, bias, mask)

    def attention_over(self, parts: Sequence[Part], mask: Tensor | None = None, observed: Any = None) -> Any:
        """Count both products of `attention`, of each part."""
        for part in parts:
            groups, rows, channels = part.q.shape
            sets, cached, width = part.v.shape
            self._count(rows, channels, cached, groups)
            self._count(groups * rows // sets, cached, width, sets)
        return self._suite.attention_over(parts, mask, observed)

    def scores(self, q: Value, k: Value) -> Any:
        """Count [G, R, C] x [G, C, N]."""
        self._count(q.shape[1], q.shape[2], k.shape[1], q.shape[0])
        return self._suite.scores(q, k)

    def selected_attention(self, q: Value, chosen: Value | Awaitable[Value], k: Value, v: Value, always: Any) -> Any:
        """Count products with all clusters, of the choice with scores and weights, and with what always counts."""
        groups, rows, channels = q.shape
        clusters, size = k.shape[1], k.shape[2]

        def count(rows_chosen: Value) -> Value:
            self._count(rows * rows_chosen.shape[1], clusters, 2 * size, groups)
            return rows_chosen

        async def counted(choosing: Awaitable[Value]) -> Value:
            return count(await choosing)

        self._count(rows, channels, 2 * clusters * size, groups)
        if always is not None:
            self._count(rows, channels, 2 * always[0].shape[1], groups)
        given = count(chosen) if isinstance(chosen, Value) else counted(chosen)
        return self._suite.selected_attention(q, given, k, v, always)
