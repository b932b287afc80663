"""Matrices at the host whose inner axis is cut into pieces: a product with one row reads them in the order in which they
lie, and the row's piece stays in the processor's first cache.

A product of one row with a column-major matrix runs through every column, and through the row with each. A row of more than
some 8 KiB does not stay in a cache of 32 KiB beside the columns that pass by, and a product of 64-bit integers then takes
twice as long. So the pieces lie one behind the other, each of them column-major and at most `PIECE_BYTES` deep.

Leaks: nothing; what is done and its order depend on shapes alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor

PIECE_BYTES = 1 << 13  # of a row


def cuts(depth: int, dtype: torch.dtype) -> list[slice]:
    """Return the pieces of a row of `depth` elements, as equal as they can be.

    >>> cuts(2500, torch.int64)
    [slice(0, 834, None), slice(834, 1667, None), slice(1667, 2500, None)]
    >>> len(cuts(2048, torch.int32)), len(cuts(2049, torch.int32))
    (1, 2)
    """
    count = max(1, -(-depth * dtype.itemsize // PIECE_BYTES))
    ends = [-(-depth * i // count) for i in range(count + 1)]
    return [slice(start, end) for start, end in pairwise(ends)]


def pays(shape: Sequence[int], dtype: torch.dtype) -> bool:
    """Whether a matrix [K, N] is worth cutting: its rows do not stay in the cache."""
    return len(shape) == 2 and shape[0] * dtype.itemsize > PIECE_BYTES


class PiecedMatrix:
    """A matrix [K, N] of words, int64 or int32. parts: its rows from above, each a tensor [k, N], column-major."""

    def __init__(self, parts: Sequence[Tensor]) -> None:
        self.parts = tuple(parts)
        self.dtype = self.parts[0].dtype

    @classmethod
    def empty(cls, shape: Sequence[int], dtype: torch.dtype) -> PiecedMatrix:
        """Return a matrix [K, N] to be filled by rows."""
        depth, width = shape
        with torch.inference_mode(False):  # used in either mode
            sizes = [cut.stop - cut.start for cut in cuts(depth, dtype)]
            memory = torch.empty(depth * width, dtype=dtype)
            pieces = torch.split(memory, [size * width for size in sizes])
            return cls([piece.view(width, size).t() for piece, size in zip(pieces, sizes, strict=True)])

    @property
    def shape(self) -> torch.Size:
        """[K, N]."""
        return torch.Size((sum(part.shape[0] for part in self.parts), self.parts[0].shape[1]))

    @property
    def nbytes(self) -> int:
        """Bytes of its memory."""
        return math.prod(self.shape) * self.dtype.itemsize

    def data_ptr(self) -> int:
        """Where its memory begins."""
        return self.parts[0].data_ptr()

    def __setitem__(self, rows: slice, words: Tensor) -> None:
        """Fill some of its rows."""
        first, end, _ = rows.indices(self.shape[0])
        for part, cut in self._placed():
            start, stop = max(first, cut.start), min(end, cut.stop)
            if start < stop:
                part[start - cut.start : stop - cut.start] = words[start - first : stop - first]

    def words(self) -> Tensor:
        """Return it in one piece, column-major [K, N]; a copy where there are several."""
        return self.parts[0] if len(self.parts) == 1 else torch.cat([part.t() for part in self.parts], 1).t()

    def join(self) -> None:
        """Keep it in one piece from here on."""
        self.parts = (self.words(),)

    def times(self, a: Tensor, product: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Return the sum of product(piece of a [..., K], part) over its parts."""
        first, *others = ((a[..., cut], part) for part, cut in self._placed())
        out = product(*first)
        for piece, part in others:
            out += product(piece, part)
        return out

    def _placed(self) -> list[tuple[Tensor, slice]]:
        """Return its parts, and which rows they are."""
        parts = self.parts
        ends = [0, *accumulate(part.shape[0] for part in parts)]
        return [(part, slice(start, end)) for part, (start, end) in zip(parts, pairwise(ends), strict=True)]
