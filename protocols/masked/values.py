"""Values of the suite `masked`: a sharing, a masked value, or both; and fixed secrets (weights)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mpc.constants import derived, placed
from mpc.errors import RangeError
from mpc.fixed_point import encode
from mpc.ring import RING_BITS
from protocols.masked import product
from protocols.masked.append_buffer import AppendBuffer, rows_of
from protocols.masked.context import Context
from protocols.masked.packed_rows import PackedRows
from protocols.masked.shares import Masked, Shared, WideShared
from protocols.masked.veiled import Veiled
from protocols.row_tensors import RowTensors
from protocols.suite import Value


@dataclass(frozen=True)
class RankedRows:
    """One-hot rows [..., n, N] that are made when they are first needed: row j is one-hot at the value of rank j.

    ranks: masked, [..., N]. count: n. make: gives the rows modulo 2^bits of the bits that it is asked for, locally."""

    ranks: Masked
    count: int
    make: Callable[[int], Shared]

    @property
    def shape(self) -> torch.Size:
        """Public shape of the rows."""
        return torch.Size((*self.ranks.shape[:-1], self.count, self.ranks.shape[-1]))


@dataclass
class MaskedTensor(Value):
    """A tensor of the suite. At least one of `shared`, `masked`, `wide`, `ranked`, `veiled` and `packed` is set; all stand
    for the same value.

    ranked: one-hot rows of ranks, of which a sharing is made when it is asked for. wide: a sharing in more than 64 bits,
    from which x is opened in one round whatever ring is asked for. veiled: a sharing that is opened once, or made an
    ordinary one, and is gone then. |x| < 2^magnitude. watched: a kind of `RANGE_KINDS` whose bound, 2^(magnitude - 1), is
    checked when x is opened; until then |x| may be larger. checked: it was, so |x| is below 3/2 of that bound or flagged.
    most: what |x| is at most, where that is known more closely. positive: x > -1.
    """

    context: Context
    magnitude: int
    shared: Shared | None = None
    masked: Masked | None = None
    rows: AppendBuffer | None = None  # where `masked` lies, if it is a cache that rows may be appended to
    watched: str | None = None
    checked: bool = False
    most: float | None = None
    positive: bool = False
    wide: WideShared | None = None
    ranked: RankedRows | None = None
    veiled: Veiled | None = None
    packed: PackedRows | None = None  # alone: rows that are held for attention, and for nothing else

    @property
    def unmade(self) -> RankedRows | None:
        """What the value is to be made from; None once it is."""
        return self.ranked if self.shared is None and self.masked is None and self.wide is None else None

    @property
    def form(self) -> Shared | Masked:
        """Whichever form there is; the masked one first."""
        if self.packed is not None:
            return self.packed.whole()
        return self.masked if self.masked is not None else self.as_shared()

    @property
    def element_bytes(self) -> int:
        if self.packed is not None:
            return self.packed.element_bytes
        return 8 if self.masked is None else 16

    def row_tensors(self) -> RowTensors | None:
        if self.packed is not None:
            return self.packed.row_tensors(lambda packed: replace(self._bare, packed=packed))
        masked, whole = self.masked, self.shared is None and self.wide is None and self.ranked is None
        if masked is None or not whole or masked.dealt_for or masked.m.is_meta or len(masked.shape) != 3:
            return None
        lies = self.rows is not None and self.rows.value is masked and self.rows.dim == 1
        bare = self._bare
        return rows_of(masked, self.rows if lies else None, lambda m, rows: replace(bare, masked=m, rows=rows))

    @property
    def _bare(self) -> MaskedTensor:
        """What is known of the value, without itself."""
        return replace(self, masked=None, rows=None, packed=None)

    @property
    def frac(self) -> int:
        """Fraction bits."""
        return self.form.frac if self.veiled is None else self.veiled.frac

    @property
    def shape(self) -> torch.Size:
        """Public shape."""
        if self.packed is not None:
            return self.packed.shape
        if self.veiled is not None:
            return self.veiled.shape
        return self.form.shape if self.unmade is None else self.unmade.shape

    @property
    def reach(self) -> float:
        """What |x| is at most once it is opened, unless flagged."""
        if self.most is not None:
            return self.most
        return 2.0**self.magnitude * (0.75 if self.checked or self.watched is not None else 1.0)

    def reach_bits(self, frac: int) -> tuple[int, int]:
        """Return `reach` in units of so many fraction bits, and the bits of a ring that holds a difference of both ends."""
        reach = math.ceil(self.reach * 2.0**frac)
        return reach, (2 * reach).bit_length() + 1

    def as_shared(self) -> Shared:
        """Return a sharing of it in 64 bits or fewer; local."""
        if self.shared is None:
            if self.masked is not None:
                self.shared = self.context.shared(self.masked)
            elif self.unmade is not None:
                self.shared = self.unmade.make(RING_BITS)
            elif self.veiled is not None:
                self.shared, self.veiled = self.veiled.without(self.context), None
            else:
                assert self.wide is not None
                self.shared = self.wide.narrow()
        return self.shared

    def widest(self) -> Shared | WideShared:
        """Return the sharing in the largest ring that there is; local."""
        return self.as_shared() if self.wide is None else self.wide

    def _map(self, f: Any, grow: int = 0) -> MaskedTensor:
        """Apply a linear map with public coefficients."""
        return MaskedTensor(
            self.context,
            self.magnitude + grow,
            self.as_shared().map(f) if self.masked is None else None,
            None if self.masked is None else self.masked.map(f),
            watched=self.watched,
        )

    def _move(self, f: Any) -> MaskedTensor:
        """Apply a map that only moves elements."""
        if self.wide is None or self.masked is not None:
            return self._map(f)
        return MaskedTensor(self.context, self.magnitude, watched=self.watched, wide=self.wide.move(f))

    def needs(self, frac: int) -> int:
        """Return the bits of the smallest ring that holds it with so many fraction bits once it is opened."""
        return frac + self.magnitude + 2 - int(self.checked or self.watched is not None)

    def __add__(self, other: Value | Tensor | float) -> MaskedTensor:
        if isinstance(other, MaskedWeight):
            other = other.tensor()
        if isinstance(other, Tensor | float | int):
            return self._add_public(other)
        assert isinstance(other, MaskedTensor)
        grow = max(self.magnitude, other.magnitude) + 1
        if self.masked is not None and other.masked is not None and self.masked.frac == other.masked.frac:
            return MaskedTensor(self.context, grow, masked=self.masked.add(other.masked))
        if self.wide is not None and other.wide is not None:
            frac = max(self.wide.frac, other.wide.frac)
            left, right = (w.shift_left(frac - w.frac) for w in (self.wide, other.wide))
            return MaskedTensor(self.context, grow, wide=left.add(right))
        a, b = self.as_shared(), other.as_shared()
        frac = max(a.frac, b.frac)
        a, b = a.shift_left(frac - a.frac), b.shift_left(frac - b.frac)
        return MaskedTensor(self.context, grow, a.add(b))

    def _add_public(self, other: Tensor | float) -> MaskedTensor:
        form = self.form
        device = self.context.device
        if isinstance(other, Tensor):
            key = ("encoded", form.frac, form.bits, device)
            value = derived(other, key, lambda t: encode(t, form.frac, form.bits).to(device))
        else:
            value = encode(other, form.frac, form.bits)  # a number: no copy
        masked = None if self.masked is None else self.masked.add_public(value)
        shared = None if self.masked is not None else self.context.add_public(self.as_shared(), value)
        return MaskedTensor(self.context, self.magnitude + 1, shared, masked)

    def __sub__(self, other: Value | Tensor | float) -> MaskedTensor:
        if isinstance(other, MaskedWeight):
            other = other.tensor()
        return self + (-other)

    def __neg__(self) -> MaskedTensor:
        return self._map(torch.neg)

    def __mul__(self, factor: int | Tensor) -> MaskedTensor:
        if isinstance(factor, Tensor):
            if factor.is_floating_point():
                raise RangeError("a value is multiplied by public integers only; use Suite.scale for real factors")
            largest = int(factor.abs().max()) if factor.numel() else 0
            return self._map(lambda t: t * placed(factor, t.device), max(largest, 1).bit_length())
        return self._map(lambda t: t * int(factor), max(abs(int(factor)), 1).bit_length())

    def __getitem__(self, index: Any) -> MaskedTensor:
        part = self._part(index)
        return self._move(lambda t: t[index]) if part is None else self.of_rows(part)

    def of_rows(self, rows: AppendBuffer) -> MaskedTensor:
        """Return other rows of the same cache."""
        return MaskedTensor(self.context, self.magnitude, masked=rows.value, rows=rows)

    def _part(self, index: Any) -> AppendBuffer | None:
        """Return the rows that `index` names, where it names consecutive rows of a cache and nothing else."""
        rows = self.rows
        if rows is None or rows.value is not self.masked or not isinstance(index, tuple) or len(index) != rows.dim + 1:
            return None
        if any(i != slice(None) for i in index[:-1]) or not isinstance(index[-1], slice):
            return None
        start, stop, step = index[-1].indices(self.shape[rows.dim])
        return rows.part(start, stop) if step == 1 and stop > start else None

    def reshape(self, *shape: int) -> MaskedTensor:
        return self._move(lambda t: t.reshape(*shape))

    def permute(self, *dims: int) -> MaskedTensor:
        return self._move(lambda t: t.permute(*dims))

    def expand(self, *shape: int) -> MaskedTensor:
        return self._move(lambda t: t.expand(*shape))

    def sum(self, dim: int, keepdim: bool = False) -> MaskedTensor:
        return self._map(lambda t: t.sum(dim, keepdim=keepdim), self.shape[dim].bit_length())

    def cumsum(self, dim: int) -> MaskedTensor:
        return self._map(lambda t: t.cumsum(dim), self.shape[dim].bit_length())

    def __repr__(self) -> str:
        return f"MaskedTensor(shape={list(self.shape)}, ring=2^{self.form.bits}, fraction bits={self.frac})"


class MaskedWeight(Value):
    """A fixed secret. Independent of the session: later suites of the same role in this process may use it.

    wide: a vector's sharing in more than 64 bits, to be added to products in such rings.
    """

    def __init__(
        self, context: Context, weight: product.FixedWeight, magnitude: int, wide: WideShared | None = None
    ) -> None:
        self.context = context
        self.weight = weight
        self.magnitude = magnitude
        self._wide = wide

    @property
    def element_bytes(self) -> int:
        """Return what an element takes: its masked form and this party's share, each in words of 32 or 64 bits."""
        return 2 * self.weight.bits // 8

    def tensor(self, context: Context | None = None) -> MaskedTensor:
        """Return the weight as an ordinary value (a sharing)."""
        share = Shared(self.weight.whole().own.to(torch.int64), self.weight.bits, self.weight.frac)
        return MaskedTensor(context or self.context, self.magnitude, share, wide=self._wide)

    @property
    def shape(self) -> torch.Size:
        """Public shape."""
        return self.weight.shape

    def __add__(self, other: Value | Tensor | float) -> MaskedTensor:
        return self.tensor() + other

    def __sub__(self, other: Value | Tensor | float) -> MaskedTensor:
        return self.tensor() - other

    def __neg__(self) -> MaskedTensor:
        return -self.tensor()

    def __mul__(self, factor: int | Tensor) -> MaskedTensor:
        return self.tensor() * factor

    def __getitem__(self, index: Any) -> MaskedTensor:
        return self.tensor()[index]

    def _moved(self, f: Any) -> MaskedWeight:
        wide = None if self._wide is None else self._wide.move(f)
        return MaskedWeight(self.context, self.weight.move(f), self.magnitude, wide)

    def reshape(self, *shape: int) -> MaskedWeight:
        return self._moved(lambda t: t.reshape(*shape))

    def permute(self, *dims: int) -> MaskedWeight:
        return self._moved(lambda t: t.permute(*dims))

    def expand(self, *shape: int) -> MaskedTensor:
        return self.tensor().expand(*shape)

    def sum(self, dim: int, keepdim: bool = False) -> MaskedTensor:
        return self.tensor().sum(dim, keepdim)

    def cumsum(self, dim: int) -> MaskedTensor:
        return self.tensor().cumsum(dim)
