"""Matrices of words kept as signed digits of 8 bits, which products read in any ring and tensor cores multiply.

A word x of Z_2^64 is x = sum_i d_i 256^i modulo 2^64 with -128 <= d_i < 128 for i = 0 to 7, in one way. The first n digits
depend on the lowest 8 n bits alone, and are x modulo 2^(8 n). So ceil(k / 8) of them are all that a product in a ring of k
bits reads, and one storage serves every ring:

    Let c = 128 (1 + 256 + ... + 256^7), and let b_i be byte i of x + c modulo 2^64. Then x = sum_i b_i 256^i - c =
    sum_i (b_i - 128) 256^i, so d_i = b_i - 128. An addition carries upwards only: bytes 0 to n - 1 of x + c follow
    from x modulo 2^(8 n). Modulo 2^(8 n) all terms from i = n on vanish: sum_(i < n) d_i 256^i, which is left, is x.

A byte less 128 is, as a signed one, that byte with its highest bit turned: d_i is byte i of (x + c) xor c.

Leaks: nothing; what is done and its order depend on shapes alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mpc.device.deferred import deferred, there

OFFSET = int.from_bytes(b"\x80" * 8, "little", signed=True)  # c, as a word
DEPTH, WIDTH = 16, 8  # multiples of these are what tensor cores read: elements of a column, columns


def digits_in(bits: int) -> int:
    """Return how many digits tell a number modulo 2^bits.

    >>> [digits_in(bits) for bits in (1, 8, 9, 40, 61, 64)]
    [1, 1, 2, 5, 8, 8]
    """
    return -(-bits // 8)


def digits_of(x: Tensor, count: int) -> Tensor:
    """Return the first digits of words, int32 or int64 of any shape: int8 [..., count], on their device.

    >>> digits_of(torch.tensor([-1, 128, 256 * 5 + 200]), 2)
    tensor([[  -1,    0],
            [-128,    1],
            [ -56,    6]], dtype=torch.int8)
    """
    octets: Tensor = there((x.to(torch.int64) + OFFSET) ^ OFFSET).contiguous().view(torch.int8)
    return octets.reshape(*x.shape, 8)[..., :count]


def padded(size: int, to: int) -> int:
    """Return the next multiple."""
    return -(-size // to) * to


class DigitMatrix:
    """A matrix, or several of one shape, as signed digits: int8, those of a column one behind the other, of weight 1, then
    of weight 256, ...; a column is padded to `DEPTH` elements, and there are a multiple of `WIDTH` columns: zeros.

    digits: [..., K, N, n], a view of `memory`, which is one-dimensional. dtype: of the words: int64, or int32 of which the
    lowest 32 bits count.
    """

    def __init__(self, digits: Tensor, memory: Tensor, dtype: torch.dtype) -> None:
        self.digits = digits
        self.memory = memory
        self.dtype = dtype

    @classmethod
    def empty(cls, shape: Sequence[int], dtype: torch.dtype, device: torch.device | str) -> DigitMatrix:
        """Return matrices [..., K, N] of zeros, to be filled by rows."""
        *batch, depth, width = shape
        deep, wide, count, first = padded(depth, DEPTH), padded(width, WIDTH), dtype.itemsize, len(batch)
        with torch.inference_mode(False):  # used in either mode
            memory = torch.zeros(math.prod(batch) * wide * count * deep, dtype=torch.int8, device=device)
            columns = memory.reshape(*batch, wide, count, deep)[..., :width, :, :depth]
            digits = columns.permute(*range(first), first + 2, first, first + 1)
        return cls(digits, memory, dtype)

    @classmethod
    def of(cls, words: Tensor) -> DigitMatrix:
        """Return matrices of words [..., K, N], int32 or int64, on their device.

        >>> DigitMatrix.of(torch.tensor([[300, -7]])).words()
        tensor([[300,  -7]])
        """
        found = cls.empty(words.shape, words.dtype, words.device)
        found[:] = words
        return found

    @property
    def shape(self) -> torch.Size:
        """[..., K, N]."""
        return self.digits.shape[:-1]

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return self.digits.device

    @property
    def nbytes(self) -> int:
        """Bytes of its memory, with what is padded."""
        return self.memory.numel()

    def dim(self) -> int:
        """Return how many axes it has."""
        return len(self.shape)

    def __setitem__(self, rows: slice, words: Tensor) -> None:
        """Fill a part of the first axis, of a matrix its rows."""
        self.digits[rows].copy_(digits_of(words, self.digits.shape[-1]))

    def __getitem__(self, index: Any) -> DigitMatrix:
        """Return a part of it, without a copy: slices and numbers."""
        parts = index if isinstance(index, tuple) else (index,)
        return self._shown(self.digits[(*parts, slice(None))] if Ellipsis in parts else self.digits[parts])

    def _shown(self, digits: Tensor) -> DigitMatrix:
        return DigitMatrix(digits, self.memory, self.dtype)

    def lowest(self, bits: int) -> DigitMatrix:
        """Return what a product modulo 2^bits reads of it."""
        return self._shown(self.digits[..., : digits_in(bits)])

    def words(self) -> Tensor:
        """Return the words, congruent modulo 256^n to what they were made of: as many bytes again as the digits take."""
        parts = [x.to(torch.int64) for x in deferred(self.digits).unbind(-1)]
        found = parts[-1]
        for part in reversed(parts[:-1]):
            found = (found << 8) + part
        words: Tensor = found.to(self.dtype)
        return words

    def moved(self, f: Callable[[Tensor], Tensor]) -> DigitMatrix:
        """Return it in another shape or order of its elements: f permutes or reshapes a tensor.

        Without a copy where torch needs none for the digits of one weight; else it is made again from words."""
        *strides, apart = self.digits.stride()
        plane = torch.empty_strided(self.shape, strides, device="meta")
        found = f(plane)
        if found.untyped_storage()._cdata != plane.untyped_storage()._cdata:
            return DigitMatrix.of(f(self.words()))
        shape = (*found.shape, self.digits.shape[-1])
        return self._shown(self.laid_out(shape, (*found.stride(), apart), int(found.storage_offset())))

    @property
    def start(self) -> int:
        """Where in the memory the first digit lies."""
        return int(self.digits.storage_offset())

    def laid_out(self, shape: Sequence[int], strides: Sequence[int], start: int = 0) -> Tensor:
        """Return a part of the memory, from `start` behind the first digit on."""
        with torch.inference_mode(False):
            return self.memory.as_strided(shape, strides, self.start + start)
