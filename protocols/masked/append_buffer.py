"""An append buffer: a masked value that gets rows along an axis, as cached keys and values do; appending moves none.

Rows lie in a buffer with room behind them. Appending to the newest value writes into that room; appending to any other one
(its successor rows belong to somebody else), or to a full buffer, first copies it to a buffer of its own. A value is never
changed: all that is written lies behind every value that was handed out.

Local; no round, no byte. Memory: at most an eighth more than the rows, and 64 rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mpc.shape_tensor import shape_tensor
from protocols.masked.shares import Masked
from protocols.row_tensors import Fill, RowTensors
from protocols.value import Value

SPARE = 64
SHARE = 8


class _Buffer:
    """Storage of m and lam, [.., capacity, ..] along `dim`; rows before `filled` belong to somebody."""

    def __init__(self, shape: Sequence[int], dim: int, capacity: int, like: Masked) -> None:
        whole = (*shape[:dim], capacity, *shape[dim + 1 :])
        self.dim = dim
        self.capacity = capacity
        self.filled = 0
        self.given_up: int | None = None  # the first row that was given up since somebody asked (`changed`)
        self.m, self.lam = (_room(t, whole) for t in (like.m, like.lam))

    def changed(self) -> int | None:
        """Return the row from which rows may be others than when this was asked last; None: none are."""
        found, self.given_up = self.given_up, None
        return found

    def write(self, x: Masked) -> None:
        """Write rows behind what there is."""
        rows = x.shape[self.dim]
        for storage, part in ((self.m, x.m), (self.lam, x.lam)):
            if not storage.is_meta:
                storage.narrow(self.dim, self.filled, rows).copy_(part)
        self.filled += rows


def _room(like: Tensor, shape: Sequence[int]) -> Tensor:
    return shape_tensor(shape) if like.is_meta else torch.empty(tuple(shape), dtype=like.dtype, device=like.device)


class AppendBuffer:
    """Rows `start` to `stop` of a buffer."""

    def __init__(self, buffer: _Buffer, start: int, stop: int, bits: int, frac: int, lowest: int | None = None) -> None:
        self._buffer, self._start, self._stop = buffer, start, stop
        m, lam = (t.narrow(buffer.dim, start, stop - start) for t in (buffer.m, buffer.lam))
        self.value = Masked(m, lam, bits, frac, lowest)

    @property
    def dim(self) -> int:
        """The axis along which rows are appended."""
        return self._buffer.dim

    @property
    def source(self) -> tuple[_Buffer, int]:
        """The storage, and the place of the first row in it."""
        return self._buffer, self._start

    def part(self, start: int, stop: int) -> AppendBuffer:
        """Return rows `start` to `stop` of these."""
        return AppendBuffer(self._buffer, self._start + start, self._start + stop, self.value.bits, self.value.frac)

    def release(self, stop: int) -> AppendBuffer:
        """Return the first `stop` rows; what follows is given up: no value that holds it may be used any more."""
        buffer = self._buffer
        buffer.filled = self._start + stop
        buffer.given_up = buffer.filled if buffer.given_up is None else min(buffer.given_up, buffer.filled)
        return self.part(0, stop)

    def append(self, new: Masked) -> AppendBuffer:
        """Return these rows and, behind them, `new` (same ring and fraction bits)."""
        buffer, rows = self._buffer, new.shape[self.dim]
        if self._stop != buffer.filled or self._stop + rows > buffer.capacity:
            return append_buffer(self.value, self.dim, rows).append_in_place(new)
        return self.append_in_place(new)

    def append_in_place(self, new: Masked) -> AppendBuffer:
        """As `append`, where it is known that there is room."""
        self._buffer.write(new)
        return AppendBuffer(self._buffer, self._start, self._buffer.filled, self.value.bits, self.value.frac)


def append_buffer(x: Masked, dim: int, more: int = 0) -> AppendBuffer:
    """Return x in a buffer of its own, with room for at least `more` rows."""
    rows = x.shape[dim]
    buffer = _Buffer(x.shape, dim, rows + max(SPARE, rows // SHARE, more), x)
    buffer.write(x)
    return AppendBuffer(buffer, 0, rows, x.bits, x.frac)


def rows_of(x: Masked, rows: AppendBuffer | None, wrap: Callable[[Masked, AppendBuffer], Value]) -> RowTensors:
    """Return a masked value [G, S, C] as tensors; `rows` is where it lies, if that is an append buffer along axis 1. wrap:
    makes the value again of what lies in one."""
    shape, (bits, frac, lowest) = x.shape, (x.bits, x.frac, x.lowest)
    like = Masked(x.m.new_empty(0), x.lam.new_empty(0), bits, frac)  # no view, which would keep all of x

    def empty(count: int) -> Fill:
        capacity = count + max(SPARE, count // SHARE)
        buffer = _Buffer((shape[0], count, shape[2]), 1, capacity, like)
        buffer.filled = count

        def filled(start: int) -> Value:
            made = AppendBuffer(buffer, start, count, bits, frac, lowest)
            return wrap(made.value, made)

        return tuple(t.narrow(1, 0, count) for t in (buffer.m, buffer.lam)), filled

    if rows is None:
        return RowTensors(x, 0, (x.m, x.lam), empty)
    buffer, first = rows.source
    return RowTensors(buffer, first, (x.m, x.lam), empty, buffer.changed)
