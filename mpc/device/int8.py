"""Products with a matrix of digits (`mpc.device.digits`) from torch's products of 8-bit integers, which tensor cores make.

With n digits of either factor, the products of digits that weigh 256^s together are [A_s | ... | A_0] @ [B_0; ...; B_s]:
digits of a column lie one behind the other, so the right factor of each is a part of the matrix as it lies. Results are
32-bit integers, shifted by 8 s and added up in words, which wrap: n products with n (n + 1) / 2 times the multiply-adds.

Exact: a product of two digits is at most 2^14, so L of them stay below 2^31 for L < 2^17. With K elements a column,
floor((2^17 - 1) / K) digits are multiplied at a time (all 8 for K <= 16 383), and of longer columns a piece.

CUDA wants more than 16 rows, and sizes that 8 divides; a column is padded when the matrix is made, and rows here, to a
multiple of 32: for 17 rows cuBLAS has given wrong results (pytorch/pytorch#107671).
"""

from __future__ import annotations

import logging
from functools import cache

import torch
from torch import Tensor

from mpc.device.digits import DEPTH, WIDTH, DigitMatrix, digits_of, padded

ROWS = 32
MOST = (1 << 17) - 1  # products of two digits in a sum


def reads(b: DigitMatrix) -> bool:
    """Whether the matrix lies as products of 8-bit integers read it: columns one behind the other from places that `DEPTH`
    divides on, and padded ones, too, within its memory."""
    *batch, depth, width, digit = b.digits.stride()
    count, columns, deep = b.digits.shape[-1], padded(b.shape[-1], WIDTH), padded(b.shape[-2], DEPTH)
    last = sum((size - 1) * step for size, step in zip(b.shape[:-2], batch, strict=True))
    end = b.start + last + (columns - 1) * width + (count - 1) * digit + deep
    aligned = all(step % DEPTH == 0 for step in (*batch, width, digit, b.start))
    return depth == 1 and aligned and end <= b.memory.numel()


def product(a: Tensor, b: DigitMatrix, left_bits: int = 64) -> Tensor:
    """Return a @ b modulo 256^n, not canonical: [..., M, K] x [..., K, N], n digits; leading axes: those of b, or a's alone.

    b: as `reads` wants it. left_bits: 0 <= a < 2^left_bits, public: digits that a has not are not multiplied."""
    if b.dim() == 2:
        rows = a.reshape(-1, a.shape[-1])
        return _one(rows, b, left_bits).reshape(*a.shape[:-1], b.shape[-1])
    left = a.expand(*b.shape[:-2], *a.shape[-2:])
    return torch.stack([product(x, b[i], left_bits) for i, x in enumerate(left.unbind(0))])


def _left(a: Tensor, count: int) -> Tensor:
    """Return the digits of [M, K], those of a weight side by side, the highest first: [M, count, K], padded by zeros."""
    rows, depth = a.shape
    out = torch.zeros((padded(rows, ROWS), count, padded(depth, DEPTH)), dtype=torch.int8, device=a.device)
    out[:rows, :, :depth] = digits_of(a, count).flip(-1).transpose(1, 2)
    return out


def _one(a: Tensor, b: DigitMatrix, left_bits: int) -> Tensor:
    (rows, depth), (width, count) = a.shape, b.digits.shape[1:]
    few = min(count, (left_bits + 1) // 8 + 1)
    left, deep = _left(a, few), padded(depth, DEPTH)
    strides = (b.digits.stride(1), b.digits.stride(2), 1)
    right = b.laid_out((padded(width, WIDTH), count, deep), strides)
    at_once = max(1, MOST // deep) if b.digits.stride(2) == deep else 1
    step = min(deep, MOST // DEPTH * DEPTH)
    out = torch.zeros((rows, width), dtype=torch.int64, device=a.device)
    for start in range(0, deep, step):
        cut = slice(start, start + step)
        for s in range(count):
            for first in range(max(0, s + 1 - few), s + 1, at_once):
                last = min(first + at_once, s + 1)
                x = left[:, few - 1 - s + first : few - 1 - s + last, cut].flatten(1)
                part = torch._int_mm(x, right[:, first:last, cut].flatten(1).t())
                out.add_(part[:rows, :width], alpha=1 << 8 * s)
    return out


def _largest(device: torch.device, rows: int) -> tuple[Tensor, Tensor]:
    """Return factors of the largest digits: [rows, 64], and column-major [64, 24]."""
    ends = torch.tensor([-128, 127, -128, -128, 1, 0, -1, 127], dtype=torch.int8)
    left, right = ends.repeat(rows, 8), ends.flip(0).repeat(24, 8)
    left[1::2] = -128
    right[::3] = -128
    return left.to(device), right.to(device).t()


@cache
def exact(device: torch.device) -> bool:
    """Whether torch multiplies 8-bit integers on a device, and exactly; tried once in a process. A log says so if not."""
    a, b = _largest(torch.device("cpu"), 64)
    expected = (a.to(torch.int64)[:, :, None] * b.to(torch.int64)[None]).sum(1)
    try:
        found = torch._int_mm(*_largest(device, 64))
        right, why = torch.equal(found.cpu().to(torch.int64), expected), "its results are wrong"
    except (AttributeError, RuntimeError) as error:  # no such operation in this build, or for this chip
        right, why = False, f"{type(error).__name__}: {error}".splitlines()[0]
    if not right:
        logging.getLogger(__name__).warning(
            "no products of 8-bit integers on %s (%s): they are made in float64, slower", device, why
        )
    return right
