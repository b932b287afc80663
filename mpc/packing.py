"""Bit-packed serialisation of ring elements: n elements of k bits take ceil(n k / 8) bytes, plus at most one byte.

Layout: little-endian words for k = 8, 16, 32 and 64. Otherwise k // 8 planes of whole bytes (least significant first, n
bytes each), then one plane of the k % 8 remaining high bits, packed little-endian. A plane is one vectorised copy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mpc.errors import WireError
from mpc.ring import check_bits

_WORDS = {8: "u1", 16: "<u2", 32: "<u4"}


def packed_size(count: int, bits: int) -> int:
    """Bytes that `pack` gives for `count` elements of `bits` bits."""
    return count * (bits // 8) + -(-count * (bits % 8) // 8)


def _pack_rest(octets: np.ndarray, rest: int) -> bytes:
    """The low `rest` < 8 bits of each byte, back to back, little-endian."""
    if rest == 1:
        return np.packbits(octets & 1, bitorder="little").tobytes()
    if rest == 2:
        padded = np.zeros(-(-octets.size // 4) * 4, dtype=np.uint8)
        padded[: octets.size] = octets & 3
        return (padded[0::4] | padded[1::4] << 2 | padded[2::4] << 4 | padded[3::4] << 6).tobytes()
    if rest == 4:
        even = octets if octets.size % 2 == 0 else np.append(octets, np.uint8(0))
        return ((even[0::2] & 15) | (even[1::2] << 4)).tobytes()
    spread = np.unpackbits(octets[:, None], axis=1, count=rest, bitorder="little")
    return np.packbits(spread, bitorder="little").tobytes()


def _unpack_rest(raw: np.ndarray, count: int, rest: int) -> np.ndarray:
    """Inverse of `_pack_rest`: uint8 [count]."""
    if rest == 1:
        return np.unpackbits(raw, count=count, bitorder="little")
    if rest == 4:
        out = np.empty(raw.size * 2, dtype=np.uint8)
        out[0::2], out[1::2] = raw & 15, raw >> 4
        return out[:count]
    if rest == 2:
        out = np.empty((raw.size, 4), dtype=np.uint8)
        for i in range(4):
            out[:, i] = raw >> 2 * i & 3
        return out.reshape(-1)[:count]
    spread = np.unpackbits(raw, count=count * rest, bitorder="little").reshape(count, rest)
    return np.packbits(spread, axis=1, bitorder="little")[:, 0]


def pack(x: Tensor, bits: int) -> bytes:
    """Serialise int64 elements of Z_2^bits (any shape, row-major). Bits above `bits` are dropped."""
    check_bits(bits)
    words = np.ascontiguousarray(x.detach().cpu().numpy()).reshape(-1)
    if bits == 64:
        return words.astype("<i8", copy=False).tobytes()
    if bits in _WORDS:
        return words.astype(_WORDS[bits]).tobytes()
    octets = words.astype("<i8", copy=False).view(np.uint8).reshape(-1, 8)
    whole, rest = divmod(bits, 8)
    planes = [octets[:, i].tobytes() for i in range(whole)]
    if rest:
        planes.append(_pack_rest(np.ascontiguousarray(octets[:, whole]), rest))
    return b"".join(planes)


def unpack(data: bytes | memoryview, bits: int, shape: Sequence[int]) -> Tensor:
    """Inverse of `pack`: int64 tensor of `shape`, canonical in Z_2^bits.

    Raises `WireError` when the number of bytes is not exactly the one that the shape and ring declare.
    """
    check_bits(bits)
    count = math.prod(shape)
    expected = packed_size(count, bits)
    if len(data) != expected:
        raise WireError(f"{count} elements of {bits} bits take {expected} bytes, got {len(data)}")
    if bits == 64:
        return torch.from_numpy(np.frombuffer(data, dtype="<i8").astype(np.int64)).reshape(tuple(shape))
    if bits in _WORDS:
        return torch.from_numpy(np.frombuffer(data, dtype=_WORDS[bits]).astype(np.int64)).reshape(tuple(shape))
    raw = np.frombuffer(data, dtype=np.uint8)
    if bits < 8:
        return torch.from_numpy(_unpack_rest(raw, count, bits).astype(np.int64)).reshape(tuple(shape))
    width = 1 if bits <= 8 else 2 if bits <= 16 else 4 if bits <= 32 else 8
    whole, rest = divmod(bits, 8)
    used = whole + (rest > 0)
    octets = np.empty((count, width), dtype=np.uint8)
    for i in range(whole):
        octets[:, i] = raw[i * count : (i + 1) * count]
    if rest:
        octets[:, whole] = _unpack_rest(raw[whole * count :], count, rest)
    octets[:, used:] = 0
    words = octets.view("<i8" if width == 8 else f"<u{width}").reshape(-1)
    return torch.from_numpy(words.astype(np.int64, copy=False)).reshape(tuple(shape))
