"""Bit-packed serialisation of ring elements: n elements of k bits take ceil(n k / 8) bytes, plus at most one byte.

Layout: planes of little-endian words, least significant first, n words each: of 64 bits, or else of 32, 16 and 8 bits, each
size once where the binary digits of k ask for it; then one plane of the k % 8 remaining high bits, packed little-endian. A
plane is one vectorised copy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor

from mpc.bits import check_bits
from mpc.errors import WireError
from mpc.ledger import current
from mpc.timeline import timed

_WORDS = {8: "u1", 16: "<u2", 32: "<u4"}
_GROUP = 8  # so many elements of any number of bits end on a byte
_LOWEST = np.uint64(0x0101010101010101)  # of each byte the lowest bit


def packed_size(count: int, bits: int) -> int:
    """Return the bytes that `pack` gives for `count` elements of `bits` bits."""
    return count * (bits // 8) + -(-count * (bits % 8) // 8)


def word_bytes(bits: int) -> int:
    """Return the bytes of the smallest machine word that holds `bits` bits."""
    return 1 if bits <= 8 else 2 if bits <= 16 else 4 if bits <= 32 else 8


def _padded(octets: np.ndarray, multiple: int) -> np.ndarray:
    missing = -octets.size % multiple
    return np.append(octets, np.zeros(missing, np.uint8)) if missing else octets


@cache
def _steps(rest: int) -> tuple[tuple[np.uint64, np.uint64, np.uint64], ...]:
    """Return (kept, moved, shift) of each step that brings the low `rest` bits of the 8 bytes of a word together: the bits
    of two neighbours, then of two pairs, then of two fours. Backwards they come apart again."""
    out = []
    for size in (8, 16, 32):
        held = rest * size // 8
        kept = sum(((1 << held) - 1) << at for at in range(0, 64, 2 * size))
        out.append((np.uint64(kept), np.uint64(kept << size), np.uint64(size - held)))
    return tuple(out)


def _pack_rest(octets: np.ndarray, rest: int) -> bytes:
    """Return the low `rest` < 8 bits of each byte, back to back, little-endian."""
    if rest == 1:
        return np.packbits(octets & 1, bitorder="little").tobytes()
    if rest in (2, 4):
        columns = (_padded(octets, 8 // rest) & ((1 << rest) - 1)).reshape(-1, 8 // rest)
        out = columns[:, 0].copy()
        for i in range(1, 8 // rest):
            out |= columns[:, i] << (i * rest)
        return out.tobytes()
    groups = -(-octets.size // _GROUP)
    words = np.zeros(groups, np.uint64)
    words.view(np.uint8)[: octets.size] = octets
    words &= _LOWEST * np.uint64((1 << rest) - 1)
    for kept, moved, shift in _steps(rest):
        upper = words & moved
        upper >>= shift
        words &= kept
        words |= upper
    return words.view(np.uint8).reshape(-1, 8)[:, :rest].tobytes()[: packed_size(octets.size, rest)]


def _unpack_rest(raw: np.ndarray, count: int, rest: int) -> np.ndarray:
    """Return the inverse of `_pack_rest`: uint8 [count]."""
    if rest == 1:
        return np.unpackbits(raw, count=count, bitorder="little")
    if rest in (2, 4):
        mask, out = (1 << rest) - 1, np.empty((raw.size, 8 // rest), dtype=np.uint8)
        for i in range(8 // rest):
            out[:, i] = (raw >> (i * rest)) & mask
        return out.reshape(-1)[:count]
    groups = -(-count // _GROUP)
    words = np.zeros(groups, np.uint64)
    octets = words.view(np.uint8).reshape(-1, 8)
    whole, left = divmod(raw.size, rest)
    octets[:whole, :rest] = raw[: whole * rest].reshape(-1, rest)
    if left:
        octets[whole, :left] = raw[whole * rest :]
    for kept, moved, shift in reversed(_steps(rest)):
        upper = words << shift
        upper &= moved
        words &= kept
        words |= upper
    words &= _LOWEST * np.uint64((1 << rest) - 1)
    return octets.reshape(-1)[:count]


@timed("serialise", current)
def pack(x: Tensor, bits: int) -> bytes:
    """Serialise int64 elements of Z_2^bits (any shape, row-major). Bits above `bits` are dropped.

    >>> packed = pack(torch.arange(10), 5)
    >>> len(packed), unpack(packed, 5, (2, 5)).tolist()
    (7, [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]])
    """
    check_bits(bits)
    words = np.ascontiguousarray(x.cpu().numpy()).reshape(-1)
    if bits == 64:
        return words.astype("<i8", copy=False).tobytes()
    if bits in _WORDS:
        return words.astype(_WORDS[bits]).tobytes()
    octets = words.astype("<i8", copy=False).view(np.uint8).reshape(-1, 8)
    planes = [_column(octets, at, size).tobytes() for at, size in _planes(bits)]
    if bits % 8:
        planes.append(_pack_rest(np.ascontiguousarray(octets[:, bits // 8]), bits % 8))
    return b"".join(planes)


@cache
def _planes(bits: int) -> list[tuple[int, int]]:
    """Return the first byte and bytes of the word of each plane, without the remaining bits."""
    out, at = [], 0
    for size in (4, 2, 1):
        if bits // 8 & size:
            out.append((at, size))
            at += size
    return out


def _column(octets: np.ndarray, at: int, size: int) -> np.ndarray:
    """Return the bytes `at` to `at + size` of each row of [n, width], as words [n]; a view, and at is a multiple of size."""
    return octets.view(f"<u{size}")[:, at // size]


@timed("serialise", current)
def unpack(data: bytes | bytearray | memoryview, bits: int, shape: Sequence[int]) -> Tensor:
    """Return the inverse of `pack`: int64 tensor of `shape`, canonical in Z_2^bits.

    Raises `WireError` when the number of bytes is not exactly the one that the shape and ring declare.
    """
    words = _unpacked(data, bits, math.prod(shape))
    owned = words.dtype == np.int64 and words.base is not None and bits < 64  # widened here, and nobody else's
    return torch.from_numpy(words if owned else words.astype(np.int64)).reshape(tuple(shape))


@timed("serialise", current)
def unpack_words(data: bytes | bytearray | memoryview, bits: int, shape: Sequence[int]) -> Tensor:
    """As `unpack`, in the narrowest signed integers that hold `bits`: congruent modulo 2^bits, not canonical."""
    width = word_bytes(bits)
    words = _unpacked(data, bits, math.prod(shape)).view(f"<i{width}")
    out = words if words.flags.writeable else words.copy()
    return torch.from_numpy(out.astype(f"i{width}", copy=False)).reshape(tuple(shape))


def _unpacked(data: bytes | bytearray | memoryview, bits: int, count: int) -> np.ndarray:
    """Return the canonical elements [count] as unsigned words of `word_bytes(bits)` bytes (signed ones for 64 bits)."""
    check_bits(bits)
    expected = packed_size(count, bits)
    if len(data) != expected:
        raise WireError(f"{count} elements of {bits} bits take {expected} bytes, got {len(data)}")
    if bits == 64:
        return np.frombuffer(data, dtype="<i8")
    if bits in _WORDS:
        return np.frombuffer(data, dtype=_WORDS[bits])
    raw = np.frombuffer(data, dtype=np.uint8)
    if bits < 8:
        return _unpack_rest(raw, count, bits)
    width = word_bytes(bits)
    whole, rest = divmod(bits, 8)
    octets = np.zeros((count, width), dtype=np.uint8)
    for at, size in _planes(bits):
        _column(octets, at, size)[:] = np.frombuffer(data, dtype=f"<u{size}", count=count, offset=at * count)
    if rest:
        octets[:, whole] = _unpack_rest(raw[whole * count :], count, rest)
    return octets.view("<i8" if width == 8 else f"<u{width}").reshape(-1)
