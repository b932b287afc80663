"""The layout of `mpc.packing`, made and read where the elements lie: nothing but bytes goes between device and host.

`pack_there` and `unpack_there` give what `pack` and `unpack` give, with operations that every device has. A view of bytes as
wider words must start at a multiple of their size in torch; where a plane does not, it is copied.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from mpc.bits import check_bits
from mpc.errors import WireError
from mpc.packing import packed_size, word_bytes

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_GROUP = 8  # so many elements of any number of bits end on a byte


@cache
def _steps(count: int, step: int, device: torch.device) -> Tensor:
    """Return 0, step, 2 step, ... on a device."""
    return torch.arange(0, count * step, step, device=device)


def _planes(bits: int) -> list[tuple[int, int]]:
    """Return the first byte and the bytes of the word of each plane."""
    if bits == 64:
        return [(0, 8)]
    out, at = [], 0
    for size in (4, 2, 1):
        if bits // 8 & size:
            out.append((at, size))
            at += size
    return out


def pack_there(x: Tensor, bits: int) -> Tensor:
    """Return int64 elements of Z_2^bits as uint8 [packed_size], on their device. Bits above `bits` are dropped."""
    check_bits(bits)
    flat = x.reshape(-1)
    planes = [(flat >> 8 * at if at else flat).to(_INTEGERS[size]).view(torch.uint8) for at, size in _planes(bits)]
    whole, rest = divmod(bits, 8)
    if rest:
        last = (flat >> 8 * whole if whole else flat) & ((1 << rest) - 1)
        missing = -last.numel() % _GROUP
        if missing:
            last = torch.cat([last, last.new_zeros((missing,))])
        words = (last.reshape(-1, _GROUP) << _steps(_GROUP, rest, x.device)).sum(-1)
        octets = words.view(torch.uint8).reshape(-1, 8)[:, :rest].reshape(-1)
        planes.append(octets[: packed_size(flat.numel(), rest)])
    return planes[0] if len(planes) == 1 else torch.cat(planes)


def _plane(data: Tensor, start: int, size: int, count: int) -> Tensor:
    """Return words of `size` bytes from byte `start` on, without a sign, as int64 [count]."""
    piece = data[start : start + size * count]
    if piece.storage_offset() % size:
        piece = piece.clone()
    if size == 1:
        return piece.to(torch.int64)
    words = piece.view(_INTEGERS[size]).to(torch.int64)
    return words if size == 8 else words & ((1 << 8 * size) - 1)


def _rest(data: Tensor, count: int, rest: int) -> Tensor:
    """Return the elements of `rest` < 8 bits, int64 [count]."""
    missing = -data.numel() % rest
    if missing:
        data = torch.cat([data, data.new_zeros((missing,))])
    words = (data.reshape(-1, rest).to(torch.int64) << _steps(rest, 8, data.device)).sum(-1)
    return ((words[:, None] >> _steps(_GROUP, rest, data.device)) & ((1 << rest) - 1)).reshape(-1)[:count]


def checked(data: Tensor, bits: int, shape: Sequence[int]) -> int:
    """Return the elements of a shape. Raises `WireError` when the number of bytes is not the one that it declares."""
    check_bits(bits)
    count = math.prod(shape)
    if data.numel() != packed_size(count, bits):
        raise WireError(f"{count} elements of {bits} bits take {packed_size(count, bits)} bytes, got {data.numel()}")
    return count


def unpack_there(data: Tensor, bits: int, shape: Sequence[int]) -> Tensor:
    """Return the inverse of `pack_there`: int64 of `shape`, canonical in Z_2^bits.

    Raises `WireError` when the number of bytes is not the one that the shape and ring declare."""
    count = checked(data, bits, shape)
    out: Tensor | None = None
    for at, size in _planes(bits):
        part = _plane(data, at * count, size, count)
        out = part if out is None else out | (part << 8 * at)
    whole, rest = divmod(bits, 8)
    if rest:
        part = _rest(data[whole * count :], count, rest)
        out = part if out is None else out | (part << 8 * whole)
    assert out is not None
    return out.reshape(tuple(shape))


def unpack_words_there(data: Tensor, bits: int, shape: Sequence[int]) -> Tensor:
    """As `unpack_there`, in the narrowest signed integers that hold `bits`: congruent modulo 2^bits."""
    return unpack_there(data, bits, shape).to(_INTEGERS[word_bytes(bits)])
