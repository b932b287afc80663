"""Matrix products modulo 2^k from products of 8-bit integers, for which processors have instructions of their own (CPU).

Both factors are written with signed digits, x = sum_i d_i 256^i mod 2^(8 n) with -128 <= d_i < 128: exact for any x.
All products of digits that weigh 256^s add up within one product of matrices, with digits side by side along the inner axis:
[A_s | ... | A_0] @ [B_0; ...; B_s]. So k bits take n = k / 8 products with n (n + 1) / 2 times the multiply-adds, in int32.

Which instructions run does not depend on what is multiplied. A large product gives its thread's turn away (`mpc.turns`).
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cache

import numpy as np
import torch
from torch import Tensor

from mpc.pieced_matrix import PiecedMatrix
from mpc.shape_tensor import broadcast
from mpc.turns import waiting

_DEPTH = (1 << 14) - 1  # of a block: 8 digits x this x 2^14 stays below 2^31
_BLOCK = 1 << 22  # digits of a block of columns
_CACHED = 1 << 16  # elements that are taken apart at a time
_LEAST_COLUMNS = 64
_ASIDE = 1 << 26  # elements times elements of a product that other threads may compute beside: some 10 ms
_LEAST_GAIN = 6.0  # over float64, which takes three products where these are ten


def _digits(parts: Sequence[Tensor], count: int, descending: bool) -> Tensor:
    """Return the digits of [R, K] int32 or int64 as int8 [R, count K], those of all K side by side. parts: its columns.

    x + offset, offset = 128 (1 + 256 + ...), has x's digits plus 128 as its bytes: one by one they are shifted down and
    narrowed, a few rows at a time, which stay in the cache."""
    rows, depth, at = parts[0].shape[0], sum(part.shape[1] for part in parts), 0
    out = np.empty((rows, count, depth), np.int8)
    for part in parts:
        _digits_into(part.numpy(), out[:, :, at : at + part.shape[1]], descending)
        at += part.shape[1]
    return torch.from_numpy(out.reshape(rows, count * depth))


def _digits_into(words: np.ndarray, out: np.ndarray, descending: bool) -> None:
    """Write the digits of words [R, K] to [R, count, K]."""
    (rows, count, depth), wide = out.shape, words.dtype.type
    down, offset = wide(8), wide(int.from_bytes(b"\x80" * count, "little", signed=count == words.itemsize))
    step = max(1, _CACHED // max(1, depth))
    held = np.empty((min(step, rows), depth), words.dtype)
    for start in range(0, rows, step):
        part = words[start : start + step]
        rest = held[: len(part)]
        np.add(part, offset, out=rest)
        np.bitwise_xor(rest, offset, out=rest)
        for i in range(count):
            if i:
                np.right_shift(rest, down, out=rest)
            np.copyto(out[start : start + step, count - 1 - i if descending else i], rest, casting="unsafe")


def byte_matmul(a: Tensor, b: Tensor | PiecedMatrix, bits: int, left_bits: int = 64) -> Tensor:
    """Return `a @ b` modulo 2^bits, canonical. a: [..., M, K], b: [..., K, N], int64 on the CPU; either may be int32 where
    bits <= 32. Fastest where b is column-major, whole or in pieces. Exact on machines where `exact` is true. left_bits: 0
    <= a < 2^left_bits, public: what digits a has not is not multiplied."""
    few = min(-(-bits // 8), (left_bits + 1) // 8 + 1)
    if isinstance(b, PiecedMatrix):
        out = torch.empty((a.shape[0], b.shape[1]), dtype=torch.int64)
        with waiting() if math.prod(a.shape) * b.shape[1] >= _ASIDE else nullcontext():
            _one(a, [part.t() for part in b.parts], bits, out, few)
        return out
    if a.shape[-1] < 2:
        return (a.to(torch.int64) @ b.to(torch.int64)) & ((1 << bits) - 1 if bits < 64 else -1)
    batch = broadcast(a.shape[:-2], b.shape[:-2])
    out = torch.empty((*batch, a.shape[-2], b.shape[-1]), dtype=torch.int64)
    left, right = a.expand(*batch, *a.shape[-2:]), b.expand(*batch, *b.shape[-2:])
    large = math.prod(left.shape[-2:]) * right.shape[-1] >= _ASIDE
    for at in itertools.product(*(range(n) for n in batch)):
        with waiting() if large else nullcontext():
            _one(left[at], _cut(right[at].t()), bits, out[at], few)
    return out


def _cut(b: Tensor) -> list[Tensor]:
    """Return the columns of [N, K] in equal parts no deeper than a block."""
    depth = b.shape[1]
    size = -(-depth // -(-depth // _DEPTH))  # equal: torch's kernel is wrong for an inner length of 1
    return [b[:, start : min(start + size, depth)] for start in range(0, depth, size)]


def _blocks(parts: Sequence[Tensor]) -> list[list[Tensor]]:
    """Return parts [N, k] in groups that are no deeper together than a block."""
    out: list[list[Tensor]] = [[]]
    for part in parts:
        if out[-1] and sum(x.shape[1] for x in out[-1]) + part.shape[1] > _DEPTH:
            out.append([])
        out[-1].append(part)
    return out


def _one(a: Tensor, parts: Sequence[Tensor], bits: int, out: Tensor, few: int) -> None:
    """Multiply a [M, K], of `few` digits, by the parts [N, k] of b, [N, K] transposed, into out [M, N]."""
    count, columns, blocks = -(-bits // 8), parts[0].shape[0], _blocks(parts)
    depths = [sum(part.shape[1] for part in block) for block in blocks]
    left = [_digits([x], few, True) for x in torch.split(a, depths, 1)]
    step = max(_LEAST_COLUMNS, _BLOCK // (count * max(depths)))
    for start in range(0, columns, step):
        right = [_digits([part[start : start + step] for part in block], count, False) for block in blocks]
        total = np.zeros((a.shape[0], right[0].shape[0]), np.int32 if bits <= 32 else np.int64)
        for s in reversed(range(count)):
            used = min(s + 1, few)
            np.left_shift(total, 8, out=total)
            for digits, other in zip(left, right, strict=True):
                width = other.shape[1] // count
                first, second = digits[:, (few - used) * width :], other[:, (s + 1 - used) * width : (s + 1) * width]
                np.add(total, torch._int_mm(first, second.t()).numpy(), out=total)
        out[:, start : start + step] = torch.from_numpy(total)
    if bits < 64:
        out.bitwise_and_((1 << bits) - 1)


def _largest_digits() -> tuple[Tensor, Tensor]:
    """Return two matrices of -128 and 127 alone, [256, 2048] and column-major [2048, 512]."""
    ends = torch.tensor([-128, 127, -128, -128], dtype=torch.int8)
    return ends.repeat(256, 512), ends.flip(0).repeat(512, 512).t()


@cache
def exact() -> bool:
    """Whether torch multiplies 8-bit integers exactly on this machine: some processors without instructions for it cut
    sums of two products to 16 bits. Tried once in a process."""
    if not hasattr(torch, "_int_mm"):
        return False
    a, b = _largest_digits()
    pairs = ((a, b), (a, a.t()))
    try:
        return all(torch.equal(torch._int_mm(x, y).double(), x.double() @ y.double()) for x, y in pairs)
    except RuntimeError:  # no such kernel in this build
        return False


@cache
def pays() -> bool:
    """Whether `byte_matmul` is exact and fast here: products of 8-bit integers take much less time than those of float64.
    Tried once in a process; no result depends on it."""
    if not exact():
        return False

    def seconds(left: Tensor, right: Tensor, product: Callable[[Tensor, Tensor], Tensor]) -> float:
        best = float("inf")
        for _ in range(3):
            start = time.perf_counter()
            product(left, right)
            best = min(best, time.perf_counter() - start)
        return best

    a, b = _largest_digits()
    return seconds(a, b, torch._int_mm) * _LEAST_GAIN < seconds(a.double(), b.double(), torch.matmul)
