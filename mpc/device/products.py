"""Products of matrices modulo 2^k on a device, in the way that `way` chooses by rows and by what the device can do:

* few rows: one kernel that reads the other matrix once, which is what such a product is bound by: words, 8 bytes or 4 an
  element, or of digits (`mpc.device.digits`) as many bytes as the ring has, recombined in registers. It multiplies whole
  words, which wrap, and needs no memory but for the result;
* more rows of a matrix of digits: products of 8-bit integers (`mpc.device.int8`);
* all others: exact products of limbs in float64, of digits made into words a piece at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from mpc.device import int8, triton_launch
from mpc.device.deferred import deferred, there
from mpc.device.digits import DigitMatrix
from mpc.shape_tensor import broadcast

MOST_ROWS = 8
Matrix = Tensor | DigitMatrix
RowKernel = Callable[[Tensor, Matrix], Tensor]
Limbs = Callable[[Tensor, Matrix, int], Tensor]
Way = Literal["rows", "int8", "float64"]

TEXT = """def run(
    a, b, out, M, N, K, inner, a0, a1, am, ak, b0, b1, bk, bn, bd,
    D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr
):
    batch = tl.program_id(1).to(tl.int64)
    first = batch // inner
    second = batch % inner
    m = tl.arange(0, BM)
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    left = a + first * a0 + second * a1
    right = b + first * b0 + second * b1
    total = tl.zeros([BM, BN], WORD)
    for start in range(0, K, BK):
        k = start + tl.arange(0, BK)
        x = tl.load(left + m[:, None] * am + k[None, :] * ak, mask=(m[:, None] < M) & (k[None, :] < K), other=0)
        inside = (k[:, None] < K) & (n[None, :] < N)
        place = right + k[:, None].to(tl.int64) * bk + n[None, :].to(tl.int64) * bn
        y = tl.zeros([BK, BN], WORD)
        for d in tl.static_range(D):
            y = (y << 8) + tl.load(place + (D - 1 - d) * bd, mask=inside, other=0).to(WORD)
        total += tl.sum(x.to(WORD)[:, :, None] * y[None, :, :], 1)
    place = out + batch * M * N + m[:, None] * N + n[None, :]
    tl.store(place, total.to(tl.int64), mask=(m[:, None] < M) & (n[None, :] < N))
"""
WORDS, HALVES = (TEXT.replace("WORD", f"tl.int{bits}") for bits in (64, 32))


def by_triton(a: Tensor, b: Matrix) -> Tensor:
    """Return a @ b, [..., M, K] x [..., K, N], leading axes broadcast, any strides; two leading axes at most.

    Modulo 2^64 for words; for n digits modulo 2^(8 n), and nothing can be said of what lies above."""
    batch = broadcast(a.shape[:-2], b.shape[:-2])
    rows, depth, columns = a.shape[-2], a.shape[-1], b.shape[-1]
    out = torch.empty((*batch, rows, columns), dtype=torch.int64, device=a.device)
    digits = b.digits if isinstance(b, DigitMatrix) else b[..., None]
    count, text = digits.shape[-1], HALVES if isinstance(b, DigitMatrix) and digits.shape[-1] <= 4 else WORDS
    many = max(1, 1 << (rows - 1).bit_length())
    along = digits.stride(-3) == 1  # columns lie one behind the other
    width, deep = (8, max(32, 128 // many)) if along else (64, 16)
    inner = batch[-1] if batch else 1
    grid = (-(-columns // width), math.prod(batch))
    numbers = (rows, columns, depth, inner, *_strides(a, batch), *_strides(digits[..., 0], batch), digits.stride(-1))
    with triton_launch.on(a.device):
        triton_launch.kernel(text)[grid](a, digits, out, *numbers, D=count, BM=many, BN=width, BK=deep)
    return out


def _strides(x: Tensor, batch: tuple[int, ...]) -> list[int]:
    """Return four strides, 0 where an axis is repeated."""
    missing = len(batch) + 2 - x.dim()
    found = [0] * missing + [0 if size == 1 else step for size, step in zip(x.shape, x.stride(), strict=True)]
    return [0] * (4 - len(found)) + found


def by_torch(a: Tensor, b: Matrix) -> Tensor:
    """Return what `by_triton` must, by torch's own product of integers, which the host alone has."""
    words = b.words() if isinstance(b, DigitMatrix) else b
    return a.to(torch.int64) @ words.to(torch.int64)


row_kernels: list[RowKernel] = [by_triton]
"""What multiplies few rows; the last one counts."""


def way(a: Tensor, b: Matrix) -> Way:
    """Return how a product of [..., M, K] and [..., K, N] is computed: by shapes, and by what works on the device."""
    kernel = row_kernels[-1] is not by_triton or triton_launch.works(a.device)
    if a.shape[-2] <= MOST_ROWS and kernel:
        return "rows"
    return "int8" if isinstance(b, DigitMatrix) and int8.reads(b) and int8.exact(b.device) else "float64"


def matmul(a: Tensor, b: Matrix, bits: int, by_limbs: Limbs, left_bits: int = 64) -> Tensor:
    """Return a @ b modulo 2^bits: [..., M, K] x [..., K, N] of a device. left_bits: 0 <= a < 2^left_bits, public."""
    left, right = there(a), (b.lowest(bits) if isinstance(b, DigitMatrix) else there(b))
    how = way(left, right)
    if how == "float64":
        found: Tensor = deferred(by_limbs(left, right, bits))
        return found
    if isinstance(right, DigitMatrix) and how == "int8":
        product = int8.product(left, right, left_bits)
    else:
        product = row_kernels[-1](*_flat(left, right))
    shape = (*broadcast(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1])
    whole: Tensor = deferred(product).reshape(shape)
    return whole if bits == 64 else whole & ((1 << bits) - 1)


def _flat(a: Tensor, b: Matrix) -> tuple[Tensor, Matrix]:
    """Return factors of at most two leading axes."""
    if isinstance(b, DigitMatrix) or max(a.dim(), b.dim()) <= 4:
        return a, b
    return (a.flatten(0, -4) if a.dim() > 4 else a), (b.flatten(0, -4) if b.dim() > 4 else b)
