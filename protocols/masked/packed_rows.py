"""Cached rows in as many bytes as their ring needs: m and lam of a masked value, an element in 1 to 8 bytes each.

Local; no round, no byte. What is read is unpacked for as long as it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from protocols.masked.shares import Masked
from protocols.row_tensors import Fill, RowTensors
from protocols.value import Value

_DTYPES = {8: torch.uint8, 16: torch.int16, 32: torch.int32, 64: torch.int64}


def _widths(bits: int) -> list[int]:
    """Return the bits of the words that hold an element, the lowest bits first.

    >>> _widths(24), _widths(40), _widths(64)
    ([16, 8], [32, 8], [64])
    """
    if bits > 56:
        return [64]
    size = -(-bits // 8) * 8
    return [width for width in (32, 16, 8) if size & width]


class _Words:
    """A tensor of canonical elements of Z_2^bits in narrow words."""

    def __init__(self, shape: torch.Size, bits: int, planes: Sequence[Tensor]) -> None:
        self.shape, self.bits, self.planes = shape, bits, tuple(planes)

    @staticmethod
    def of(x: Tensor, bits: int) -> _Words:
        """Return x, packed; of a tensor without content itself."""
        if x.is_meta:
            return _Words(x.shape, bits, [x])
        planes, shift = [], 0
        for width in _widths(bits):
            planes.append((x >> shift).to(_DTYPES[width]))
            shift += width
        return _Words(x.shape, bits, planes)

    def whole(self) -> Tensor:
        """Return the elements in int64."""
        if self.planes[0].is_meta or (len(self.planes) == 1 and self.planes[0].dtype == torch.int64):
            return self.planes[0]
        out, shift = torch.zeros((), dtype=torch.int64, device=self.planes[0].device), 0
        for width, plane in zip(_widths(self.bits), self.planes, strict=True):
            out = out | ((plane.to(torch.int64) & ((1 << width) - 1)) << shift)
            shift += width
        return out

    def joined(self, other: _Words) -> _Words:
        """Return both, one behind the other along axis 1."""
        planes = [torch.cat([a, b], 1) for a, b in zip(self.planes, other.planes, strict=True)]
        return _Words(planes[0].shape, self.bits, planes)


class PackedRows:
    """A masked value [G, S, C] that is held packed and read rarely; rows may be added behind it."""

    def __init__(self, m: _Words, lam: _Words, bits: int, frac: int) -> None:
        self._m, self._lam = m, lam
        self.bits, self.frac = bits, frac

    @staticmethod
    def of(x: Masked) -> PackedRows:
        """Return a masked value packed."""
        return PackedRows(_Words.of(x.m, x.bits), _Words.of(x.lam, x.bits), x.bits, x.frac)

    @property
    def shape(self) -> torch.Size:
        """Public shape."""
        return self._m.shape

    @property
    def element_bytes(self) -> int:
        """Bytes of an element of m and of its lam."""
        return 2 * sum(_widths(self.bits)) // 8

    def whole(self) -> Masked:
        """Return the masked value."""
        return Masked(self._m.whole(), self._lam.whole(), self.bits, self.frac)

    def row_tensors(self, wrap: Callable[[PackedRows], Value]) -> RowTensors | None:
        """Return the words as tensors; wrap: makes the value again."""
        shape, (bits, frac), half = self.shape, (self.bits, self.frac), len(self._m.planes)
        planes = (*self._m.planes, *self._lam.planes)
        if planes[0].is_meta or len(shape) != 3:
            return None
        kinds = [(plane.dtype, plane.device) for plane in planes]

        def empty(count: int) -> Fill:
            whole = torch.Size((shape[0], count, shape[2]))
            made = [torch.empty(whole, dtype=dtype, device=device) for dtype, device in kinds]
            m, lam = _Words(whole, bits, made[:half]), _Words(whole, bits, made[half:])
            return tuple(made), lambda start: wrap(PackedRows(m, lam, bits, frac))

        return RowTensors(self, 0, planes, empty)

    def joined(self, other: PackedRows) -> PackedRows:
        """Return the rows of both, of the same ring and fraction bits."""
        return PackedRows(self._m.joined(other._m), self._lam.joined(other._lam), self.bits, self.frac)
