"""Products of matrices modulo 2^k on a device: of few rows in one kernel, of many by float64.

Of few rows a product is bound by what is read of the other matrix: 8 bytes an element, or 4 where it is kept in 32 bits. The
kernel multiplies whole words, which wrap, and needs no memory but for the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from mpc.device import triton_launch
from mpc.device.deferred import deferred, there
from mpc.shape_tensor import broadcast

MOST_ROWS = 8
RowKernel = Callable[[Tensor, Tensor], Tensor]

TEXT = """def run(
    a, b, out, M, N, K, inner, a0, a1, am, ak, b0, b1, bk, bn, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr
):
    batch = tl.program_id(1)
    first = batch // inner
    second = batch % inner
    m = tl.arange(0, BM)
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    left = a + first * a0 + second * a1
    right = b + first * b0 + second * b1
    total = tl.zeros([BM, BN], tl.int64)
    for start in range(0, K, BK):
        k = start + tl.arange(0, BK)
        x = tl.load(left + m[:, None] * am + k[None, :] * ak, mask=(m[:, None] < M) & (k[None, :] < K), other=0)
        inside = (k[:, None] < K) & (n[None, :] < N)
        y = tl.load(right + k[:, None].to(tl.int64) * bk + n[None, :].to(tl.int64) * bn, mask=inside, other=0)
        total += tl.sum(x.to(tl.int64)[:, :, None] * y.to(tl.int64)[None, :, :], 1)
    place = out + batch.to(tl.int64) * M * N + m[:, None] * N + n[None, :]
    tl.store(place, total, mask=(m[:, None] < M) & (n[None, :] < N))
"""


def by_triton(a: Tensor, b: Tensor) -> Tensor:
    """Return a @ b modulo 2^64: [..., M, K] x [..., K, N], leading axes broadcast, any strides; two leading axes at most."""
    batch = broadcast(a.shape[:-2], b.shape[:-2])
    rows, depth, columns = a.shape[-2], a.shape[-1], b.shape[-1]
    out = torch.empty((*batch, rows, columns), dtype=torch.int64, device=a.device)
    many = max(1, 1 << (rows - 1).bit_length())
    along = b.stride(-2) == 1  # columns lie one behind the other
    width, deep = (8, 128) if along else (64, 16)
    deep = max(16, deep // many)
    inner = batch[-1] if batch else 1
    grid = (-(-columns // width), math.prod(batch))
    numbers = (rows, columns, depth, inner, *_strides(a, batch), *_strides(b, batch))
    with triton_launch.on(a.device):
        triton_launch.kernel(TEXT)[grid](a, b, out, *numbers, BM=many, BN=width, BK=deep)
    return out


def _strides(x: Tensor, batch: tuple[int, ...]) -> list[int]:
    """Return four strides, 0 where an axis is repeated."""
    missing = len(batch) + 2 - x.dim()
    found = [0] * missing + [0 if size == 1 else step for size, step in zip(x.shape, x.stride(), strict=True)]
    return [0] * (4 - len(found)) + found


row_kernels: list[RowKernel] = [by_triton]
"""What multiplies few rows; the last one counts."""


def matmul(a: Tensor, b: Tensor, bits: int, by_limbs: Callable[[Tensor, Tensor, int], Tensor]) -> Tensor:
    """Return a @ b modulo 2^bits: [..., M, K] x [..., K, N] of a device."""
    left, right = there(a), there(b)
    kernel = row_kernels[-1]
    none = kernel is by_triton and not triton_launch.works(left.device)
    if none or left.shape[-2] > MOST_ROWS:
        found: Tensor = deferred(by_limbs(left, right, bits))
        return found
    if max(left.dim(), right.dim()) > 4:
        left, right = (t.flatten(0, -4) if t.dim() > 4 else t for t in (left, right))
    product: Tensor = deferred(kernel(left, right)).reshape(*broadcast(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1])
    return product if bits == 64 else product & ((1 << bits) - 1)
