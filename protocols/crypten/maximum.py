"""Maximum and its position over the last axis, by a tree of comparisons.

CrypTen's maximum costs 622 bytes per element and 100 rounds at 1 024 elements, half of it for an arg-max that is thrown
away; this one 40 bytes (exact) or 24 bytes (32-bit comparisons) per element and 8 or 7 rounds per level.

Leaks: nothing (docs/security.md, "Maximum, crypten").
"""

from __future__ import annotations

import torch
from torch import Tensor

from mpc.errors import RangeError
from protocols.crypten import comparison
from protocols.crypten.arithmetic import add_public
from protocols.crypten.binding.library import CryptenSession


def _larger(s: CryptenSession, a: Tensor, b: Tensor, bits: int, drop: int) -> Tensor:
    """Return max(a, b). log2(bits) + 2 rounds."""
    smaller = comparison.less_than(s, a - b, [0], bits, drop)
    chosen, _ = comparison.select(s, smaller, b - a)
    return a + chosen[0]


def maximum(s: CryptenSession, x: Tensor, mask: Tensor | None = None, bits: int = 64, drop: int = 0) -> Tensor:
    """Return the maximum over the last axis, [..., n] -> [..., 1]; over the positions where the public bool `mask` [..., n]
    is True.

    A row without a True position gives an arbitrary value. bits, drop: see `less_than`; exact with drop 0, otherwise the
    result is an element that is below the maximum by at most ceil(log2 n) parties 2^drop. Differences |a - b| / 2^drop must
    stay below 2^(bits-1). ceil(log2 n) (log2(bits) + 2) rounds.
    """
    while x.shape[-1] > 1:
        half = x.shape[-1] // 2
        a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
        if mask is None:
            merged = _larger(s, a, b, bits, drop)
        else:
            keep_a, keep_b, keep_rest = mask[..., :half], mask[..., half : 2 * half], mask[..., 2 * half :]
            merged = torch.where(keep_a.to(x.device), a, b)
            both = (keep_a & keep_b).reshape(-1).nonzero()[:, 0]
            both = both if x.is_meta else both.to(x.device)
            if both.numel():
                flat = merged.reshape(-1).clone()
                flat[both] = _larger(s, a.reshape(-1)[both], b.reshape(-1)[both], bits, drop)
                merged = flat.reshape(merged.shape)
            mask = torch.cat([keep_a | keep_b, keep_rest], dim=-1)
        x = torch.cat([merged, rest], dim=-1)
    return x


def argmax(s: CryptenSession, x: Tensor) -> Tensor:
    """Return the one-hot of the maximum over the last axis (0 fraction bits); ties go to the earlier position.

    The position is appended as low bits, so all elements differ: one tree, then one comparison per element.
    |x| < 2^(61 - p) in ring units with p = ceil(log2 n). 8 ceil(log2 n) + 8 rounds, 71 bytes per element.
    """
    count = x.shape[-1]
    position_bits = max(count - 1, 1).bit_length()
    if position_bits > 40:
        raise RangeError(f"an arg-max over {count} elements leaves too few bits for their values")
    rank = torch.arange(count - 1, -1, -1, dtype=torch.int64, device=x.device)
    ranked = add_public(s, x << position_bits, rank)
    top = maximum(s, ranked)
    below = comparison.to_arithmetic(s, comparison.less_than(s, ranked - top, [0]))[0]
    return add_public(s, -below, 1)
