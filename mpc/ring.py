"""Arithmetic in Z_2^k on int64 tensors.

An element of Z_2^k (1 <= k <= 64) is held in a `torch.int64`; for k < 64 its canonical form is 0 <= x < 2^k, for k = 64 it
is the two's-complement word itself. int64 addition and multiplication wrap modulo 2^64 on every device, so +, -, * need
no care; only `reduce` brings a result back to canonical form. A product of matrices does need care: CUDA has no int64
matrix multiplication at all and the CPU's is several times slower than its floating-point one. `matmul` therefore splits
its operands into signed limbs whose products are exact in float64, or into bytes where that is faster. What a device does
is in `mpc.device.products`.
"""

from __future__ import annotations

import math
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor

from mpc.bits import RING_BITS as RING_BITS
from mpc.byte_matmul import byte_matmul
from mpc.byte_matmul import pays as byte_matmul_pays
from mpc.device import products
from mpc.device.deferred import there
from mpc.device.digits import DigitMatrix
from mpc.pieced_matrix import PiecedMatrix
from mpc.shape_tensor import broadcast
from mpc.turns import waiting

_EXACT = 53  # a float64 holds every integer below 2^53
_FEW_ROWS = 12
_LIMB_ENTRIES = 1 << 22  # elements of a factor that is split into limbs at a time
_SMALL = 1 << 18  # multiply-adds
_ASIDE = 1 << 24  # elements of a matrix that other threads may compute beside: some 10 ms
_DEEP = 256  # inner length from which bytes pay in rings above 32 bits ...
_DEEP_ENOUGH = 64  # ... and where there are as many rows


def reduce(x: Tensor, bits: int) -> Tensor:
    """Return the canonical form of x in Z_2^bits. Any shape; int64 in, int64 out.

    >>> reduce(torch.tensor([5, -1, 19]), 4)
    tensor([ 5, 15,  3])
    """
    return x if bits == RING_BITS or x.is_meta else torch.bitwise_and(x, (1 << bits) - 1)


def signed(x: Tensor, bits: int) -> Tensor:
    """Return the representative of x in [-2^(bits-1), 2^(bits-1)), as int64."""
    shift = RING_BITS - bits
    return x if shift == 0 or x.is_meta else (x << shift) >> shift


def shift_right(x: Tensor, count: int, bits: int) -> Tensor:
    """Return floor(x / 2^count) of the canonical (unsigned) x in Z_2^bits: the top `bits - count` bits."""
    if count == 0 or x.is_meta:
        return x
    if count >= bits:
        return torch.zeros_like(x)
    if bits == RING_BITS:
        return (x >> count) & ((1 << (RING_BITS - count)) - 1)
    return x >> count


def digit(x: Tensor, low: int, width: int) -> Tensor:
    """Return bits low .. low + width of words, at most 63 of them.

    >>> digit(torch.tensor([-1, 0b1101100]), 2, 3)
    tensor([7, 3])
    """
    if x.is_meta:
        return x
    return (x >> low if low else x) & ((1 << width) - 1)


def _limbs(x: Tensor, width: int, count: int) -> list[Tensor]:
    """Return the signed limbs l_i in [-2^(width-1), 2^(width-1)) with x = sum l_i 2^(width i) mod 2^64, as float64."""
    out = []
    half = 1 << (width - 1)
    for _ in range(count):
        low = ((x + half) & ((1 << width) - 1)) - half
        out.append(low.to(torch.float64))
        x = (x - low) >> width
    return out


def limb_matmul(a: Tensor, b: Tensor | DigitMatrix, bits: int = RING_BITS) -> Tensor:
    """Return `a @ b` modulo 2^bits by exact float64 products of limbs; the same code on CPU and CUDA.

    a: [..., M, K], b: [..., K, N], int64; b may be int32 where bits <= 32, or digits. With limbs of w signed bits a dot
    product of length K stays below 2^(2w - 2 + log2 K), so w = (53 + 2 - ceil(log2 K)) // 2 is exact; limb pairs of a
    weight of 2^bits or more vanish. A large b is split along K, so that its limbs take little memory.
    """
    depth = a.shape[-1]
    step = max(1, _LIMB_ENTRIES // max(1, math.prod(b.shape[:-2]) * b.shape[-1]))
    if depth > step:
        cuts = [slice(start, start + step) for start in range(0, depth, step)]
        whole = limb_matmul(a[..., cuts[0]], b[..., cuts[0], :], bits)
        for cut in cuts[1:]:
            whole += limb_matmul(a[..., cut], b[..., cut, :], bits)
        return reduce(whole, bits)
    words = there(b.words()) if isinstance(b, DigitMatrix) else b
    width = min((_EXACT + 2 - math.ceil(math.log2(max(depth, 1)))) // 2, 32)
    count = -(-bits // width)
    left, right = _limbs(a, width, count), _limbs(words.to(torch.int64), width, count)
    out: Tensor | None = None
    for total in range(count):
        part: Tensor | None = None
        for i in range(total + 1):
            term = (left[i] @ right[total - i]).to(torch.int64)
            part = term if part is None else part + term
        assert part is not None
        part = part << (width * total)
        out = part if out is None else out + part
    assert out is not None
    return reduce(out, bits)


def _few_rows(a: Tensor, b: Tensor) -> Tensor:
    """Return `a @ b` modulo 2^64 (2^32 for int32 b), few rows: one pass over a matrix b that lies by columns, else one for
    each row, in the order in which it lies in memory.

    a: [..., M, K], b: [..., K, N] with neighbouring elements along K or along N; leading axes broadcast. torch's own integer
    product walks through a row-major b column by column, which takes several times as long.
    """
    by_columns = b.stride(-2) == 1
    matrix = b.transpose(-1, -2).numpy() if by_columns else b.numpy()
    if by_columns and a.dim() == b.dim() == 2 and len(a) > 1:
        return torch.from_numpy(_dots_of_rows(matrix, a.to(b.dtype).numpy()).T).to(torch.int64)
    dots = _dots if by_columns else _weighted_rows
    with waiting() if b.numel() >= _ASIDE else nullcontext():
        rows = [torch.from_numpy(dots(matrix, row.numpy())).to(torch.int64) for row in a.to(b.dtype).unbind(-2)]
    return rows[0][..., None, :] if len(rows) == 1 else torch.stack(rows, -2)


def _dots(columns: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Multiply [..., N, K] by [..., K] to [..., N]."""
    return np.asarray(np.einsum("...nk,...k->...n", columns, row))


def _dots_of_rows(columns: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Multiply [N, K] by rows [R, K] to [N, R], while a column is in the cache."""
    return np.asarray(np.einsum("nk,rk->nr", columns, rows))


def _weighted_rows(matrix: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Multiply [..., K, N] by [..., K] to [..., N]."""
    return np.asarray(np.einsum("...kn,...k->...n", matrix, row))


def inner(a: Tensor, b: Tensor, bits: int = RING_BITS) -> Tensor:
    """Return the sum over i and c of a[g, j, i, c] b[g, i, t, c] modulo 2^bits: [G, n, N, C] x [G, N, s, C] -> [G, n, s]."""
    if a.device.type == "cpu":
        return reduce(torch.from_numpy(np.einsum("gjic,gitc->gjt", a.numpy(), b.numpy())), bits)
    groups, count, clusters, channels = a.shape
    right = b.permute(0, 1, 3, 2).reshape(groups, clusters * channels, b.shape[2])
    return matmul(a.reshape(groups, count, clusters * channels), right, bits)


def _small(a: Tensor, b: Tensor) -> bool:
    """Whether splitting the factors into limbs, dozens of passes over small tensors, would take longer than the product."""
    products = math.prod(broadcast(a.shape[:-2], b.shape[:-2])) * a.shape[-2] * a.shape[-1] * b.shape[-1]
    return products <= _SMALL


Matrix = Tensor | DigitMatrix | PiecedMatrix


def matmul(a: Tensor, b: Matrix, bits: int = RING_BITS, left_bits: int = RING_BITS) -> Tensor:
    """Return `a @ b` modulo 2^bits. a: [..., M, K], b: [..., K, N], int64, any device; b may be int32 where bits <= 32,
    digits, and a matrix [K, N] in pieces (a: [M, K]). left_bits: 0 <= a < 2^left_bits, public; it makes a product of few
    bits faster where bytes are multiplied.

    Vectors and short left factors on the CPU use integer kernels (they are bound by memory there), and so do small
    products; larger ones `byte_matmul` where the processor has instructions for it, else `limb_matmul`. A device's ways are
    in `mpc.device.products`. All are exact. For shape tensors only the shape is computed.
    """
    if isinstance(b, PiecedMatrix):
        return _matmul_pieced(a, b, bits, left_bits)
    if a.device.type != "cpu" or isinstance(b, DigitMatrix):
        return _matmul_there(a, b, bits, left_bits)
    rows = a.shape[-2] if a.dim() > 1 else 1
    ordered = b.dim() > 1 and (b.stride(-1) == 1 or b.stride(-2) == 1)
    short = rows < _FEW_ROWS
    if short and ordered:
        out = _few_rows(a if a.dim() > 1 else a[None], b)
        return reduce(out if a.dim() > 1 else out[..., 0, :], bits)
    small = short or b.dim() == 1 or _small(a, b)
    deep = a.shape[-1] >= (_DEEP_ENOUGH if rows >= _DEEP_ENOUGH else _DEEP)
    if small:
        return reduce(torch.matmul(a, b.to(torch.int64)), bits)
    return byte_matmul(a, b, bits, left_bits) if (bits <= 32 or deep) and byte_matmul_pays() else limb_matmul(a, b, bits)


def _matmul_pieced(a: Tensor, b: PiecedMatrix, bits: int, left_bits: int) -> Tensor:
    """As `matmul`, a: [M, K]."""
    if a.shape[-2] < _FEW_ROWS:
        with waiting() if math.prod(b.shape) >= _ASIDE else nullcontext():
            return reduce(b.times(a, _few_rows), bits)
    if byte_matmul_pays():
        return byte_matmul(a, b, bits, left_bits)
    return reduce(b.times(a, lambda piece, part: limb_matmul(piece, part, bits)), bits)


def _matmul_there(a: Tensor, b: Tensor | DigitMatrix, bits: int, left_bits: int) -> Tensor:
    """As `matmul`, on a device, of shape tensors, or of digits."""
    if isinstance(b, DigitMatrix):
        out = products.matmul(a if a.dim() > 1 else a[None], b, bits, limb_matmul, left_bits)
        return out if a.dim() > 1 else out.squeeze(-2)
    if a.device.type == "meta":
        return torch.matmul(a, b)
    left, right = (a[None] if a.dim() == 1 else a), (b[:, None] if b.dim() == 1 else b)
    out = products.matmul(left, right, bits, limb_matmul)
    out = out.squeeze(-1) if b.dim() == 1 else out
    return out.squeeze(-2 if b.dim() > 1 else -1) if a.dim() == 1 else out
