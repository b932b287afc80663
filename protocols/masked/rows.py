"""Rows of a matrix with public positions that take part: what a softmax over masked scores is taken over. Local.

Leaks: nothing; positions are public, and nothing is sent (docs/security.md, "Softmax").
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from mpc.constants import placed
from mpc.errors import RangeError


@dataclass(frozen=True, repr=False)
class Rows:
    """Public positions of a [..., columns] tensor that take part, in row-major order; all leading axes are rows."""

    shape: torch.Size
    mask: Tensor | None = None  # broadcastable to `shape`; None when all take part

    @property
    def columns(self) -> int:
        """Positions of a row."""
        return self.shape[-1]

    @property
    def rows(self) -> int:
        """Number of rows."""
        return math.prod(self.shape[:-1])

    @staticmethod
    def of(shape: torch.Size, mask: Tensor | None) -> Rows:
        """Return the rows of a mask at the host, broadcastable to [..., columns]. Equal masks have the same rows, places
        are found, and copied to a device, once. Raises `RangeError` for a row without any entry."""
        if mask is None or bool(mask.all()):
            return Rows(shape)
        if not bool(mask.any(-1).all()):
            raise RangeError("softmax: a row of the mask is False everywhere; every query needs at least one key")
        return _rows(shape, tuple(mask.shape), mask.numpy().tobytes())

    @property
    def longest(self) -> int:
        """An upper bound on the entries of a row."""
        return self.columns

    @cached_property
    def entries(self) -> int:
        """Number of positions that take part."""
        if self.mask is None:
            return math.prod(self.shape)
        return int(self.mask.sum()) * (math.prod(self.shape) // self.mask.numel())

    @cached_property
    def index(self) -> Tensor | None:
        """The positions row * columns + column that take part, [entries]; None when all do."""
        return None if self.mask is None else self.mask.expand(self.shape).reshape(-1).nonzero()[:, 0]

    @cached_property
    def _row(self) -> Tensor:
        """The row of each entry, [entries]."""
        assert self.index is not None
        return torch.div(self.index, self.columns, rounding_mode="floor")

    @cached_property
    def _starts(self) -> Tensor:
        """Where the entries of each row begin, and their number: [rows + 1]."""
        ends = torch.bincount(self._row, minlength=self.rows).cumsum(0)
        return torch.cat([torch.zeros_like(ends[:1]), ends])

    @cached_property
    def _place(self) -> Tensor:
        """The place of each entry among those of its row, [entries]."""
        return torch.arange(len(self._row)) - self._starts[self._row]

    @cached_property
    def _last(self) -> Tensor:
        """The last entry of each entry's row, [entries]."""
        return (self._starts[1:] - 1)[self._row]

    def take(self, x: Tensor) -> Tensor:
        """Return the entries that take part: [..., columns], all leading axes rows -> [entries]."""
        flat = x.reshape(-1)
        if self.mask is not None and flat.is_meta:
            return flat.new_zeros((self.entries,))
        return flat if self.index is None else flat[placed(self.index, flat.device)]

    def relative(self, x: Tensor) -> Tensor:
        """Return each entry less the last entry of its row: [entries] -> [entries]."""
        if x.is_meta:
            return x
        if self.index is None:
            whole = x.reshape(self.rows, self.columns)
            return (whole - whole[:, -1:]).reshape(-1)
        return x - x[placed(self._last, x.device)]

    def sum(self, x: Tensor) -> Tensor:
        """Return the sum of each row: [entries, ...] -> [rows, ...]."""
        if x.is_meta:
            return x.new_zeros((self.rows, *x.shape[1:]))
        if self.index is None:
            return x.reshape(self.rows, self.columns, *x.shape[1:]).sum(1)
        out = x.new_zeros((self.rows, *x.shape[1:]))
        return out.index_add_(0, placed(self._row, x.device), x)

    def spread(self, x: Tensor) -> Tensor:
        """Return the value of its row for each entry: [rows] -> [entries]."""
        if x.is_meta:
            return x.new_zeros((self.entries,))
        if self.index is None:
            return x[:, None].expand(self.rows, self.columns).reshape(-1)
        return x[placed(self._row, x.device)]

    def put(self, x: Tensor) -> Tensor:
        """Return entries in their places, zero where masked out: [entries] -> [..., columns]."""
        if x.is_meta:
            return x.new_zeros(self.shape)
        if self.index is None:
            return x.reshape(self.shape)
        out = x.new_zeros((self.rows * self.columns,))
        out[placed(self.index, x.device)] = x
        return out.reshape(self.shape)

    def pieces(self, x: Tensor, step: int) -> Iterator[tuple[int, int, Tensor]]:
        """Yield `step` rows at a time: the first row, the one after the last, and their entries in columns, [places, rows,
        ...]: the i-th entry of each row at place i, zero where a row has fewer. x: [entries, ...]."""
        rest = x.shape[1:]
        whole = x.reshape(self.rows, self.columns, *rest) if self.index is None else None
        for start in range(0, self.rows, step):
            stop = min(start + step, self.rows)
            if whole is not None:
                yield start, stop, whole[start:stop].transpose(0, 1)
                continue
            starts = self._starts[start : stop + 1]
            first, last = int(starts[0]), int(starts[-1])
            most = int((starts[1:] - starts[:-1]).max())
            row, place = (placed(t, x.device)[first:last] for t in (self._row, self._place))
            out = x.new_zeros((most, stop - start, *rest))
            out[place, row - start] = x[first:last]
            yield start, stop, out


@lru_cache(maxsize=8)
def _rows(shape: torch.Size, mask_shape: tuple[int, ...], mask: bytes) -> Rows:
    """Return the rows of a mask [mask_shape] of bytes 0 and 1."""
    return Rows(shape, torch.frombuffer(bytearray(mask), dtype=torch.bool).reshape(mask_shape))
