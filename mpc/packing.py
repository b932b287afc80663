"""Bit-packed serialisation of ring elements: n elements of k bits take ceil(n k / 8) bytes, plus at most one byte.

Layout: k // 8 planes of whole bytes (least significant first, n bytes each), then one plane of the k % 8 remaining high
bits, packed little-endian. A plane is one vectorised copy, whatever k is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mpc.errors import WireError
from mpc.ring import check_bits


def packed_size(count: int, bits: int) -> int:
    """Bytes that `pack` gives for `count` elements of `bits` bits."""
    return count * (bits // 8) + -(-count * (bits % 8) // 8)


def pack(x: Tensor, bits: int) -> bytes:
    """Serialise int64 elements of Z_2^bits (any shape, row-major). Bits above `bits` are dropped."""
    check_bits(bits)
    words = np.ascontiguousarray(x.detach().cpu().numpy()).reshape(-1)
    if bits == 64:
        return words.astype("<i8", copy=False).tobytes()
    octets = words.astype("<i8", copy=False).view(np.uint8).reshape(-1, 8)
    whole, rest = divmod(bits, 8)
    planes = [octets[:, i].tobytes() for i in range(whole)]
    if rest:
        top = octets[:, whole]
        spread = np.unpackbits(top[:, None], axis=1, count=rest, bitorder="little")
        planes.append(np.packbits(spread, bitorder="little").tobytes())
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
    raw = np.frombuffer(data, dtype=np.uint8)
    octets = np.zeros((count, 8), dtype=np.uint8)
    whole, rest = divmod(bits, 8)
    for i in range(whole):
        octets[:, i] = raw[i * count : (i + 1) * count]
    if rest:
        spread = np.unpackbits(raw[whole * count :], count=count * rest, bitorder="little").reshape(count, rest)
        octets[:, whole] = np.packbits(spread, axis=1, bitorder="little")[:, 0]
    return torch.from_numpy(octets.view("<i8").astype(np.int64).reshape(tuple(shape)))
