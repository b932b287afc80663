"""Ranks, top-k and order-preserving compaction on CrypTen shares; nothing is opened but values under fresh masks.

Few values (`PAIRS`): all pairs are compared at once, a value's rank is a sum of comparison bits. Many: the k-th largest is
found bit by bit by counting, then everything is compared with it and ties are settled by a running count.
Ties go to the earlier position everywhere; results are exact on the ring elements.

| function | rounds | bytes per element to each peer |
| --- | --- | --- |
| ranks of C | 8 (7 in 32 bits) | 31.7 (C - 1) / 2 (15.7) |
| top-k of C | 14 | + 2 + 5.5 k (12 from 2^15 values on) |
| keep k of n, by pairs | 14 | + 7.5 |
| keep k of n, by threshold over b bits | 14 b + 24 | 31.7 (b + 3) |
| compaction of n rows to k | 9 | 2 + 5.5 k + 8 (k + row) |

Leaks: nothing (docs/security.md, "Selection, crypten").
Sources: Escudero et al. 2020 (comparisons); Aggarwal, Mishra, Pinkas 2004 (k-th ranked element).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mpc.errors import RangeError
from protocols.crypten import arithmetic, comparison
from protocols.crypten.arithmetic import add_public
from protocols.crypten.binding.library import CryptenSession

PAIRS = 256  # up to so many values are ranked by all pairs


def check_budget(op: str, k: int, count: int) -> None:
    """Raise `RangeError` unless 1 <= k <= count."""
    if not 1 <= k <= count:
        raise RangeError(f"{op}: {k} of {count} values cannot be selected, the budget must be between 1 and {count}")


def _below(s: CryptenSession, x: Tensor, thresholds: Sequence[int], largest: int) -> Tensor:
    """Return [x < threshold] as additive shares [thresholds, *x.shape] for 0 <= x, threshold <= largest. 6 or 7 rounds."""
    return comparison.to_arithmetic(s, comparison.less_than(s, x, thresholds, 16 if largest < 1 << 14 else 32))


def _width(bits: int) -> int:
    """Return the bits in which differences of two values below 2^(bits-1) are compared."""
    return 32 if bits <= 31 else 64


def ranks(s: CryptenSession, x: Tensor, bits: int = 64) -> Tensor:
    """Return the rank of every value along the last axis, 0 for the largest, as integers: [..., C] -> [..., C].

    bits: 32 where all |x| stay below 2^30 ring units, which halves the bytes.
    """
    count = x.shape[-1]
    if count == 1:
        return x * 0
    i, j = torch.triu_indices(count, count, 1).unbind(0)
    if s.channel is not None:
        i, j = i.to(x.device), j.to(x.device)
    pairs = x[..., i] - x[..., j]
    loses = comparison.to_arithmetic(s, comparison.less_than(s, pairs, [0], bits)[0])  # i loses against a later j
    if x.is_meta or loses.is_meta:
        return s.without_content(x.shape)
    out = torch.zeros_like(x)
    out.index_add_(-1, i, loses).index_add_(-1, j, -loses)
    return add_public(s, out, torch.arange(count, device=x.device).expand(x.shape))


def top_k(s: CryptenSession, x: Tensor, k: int, bits: int) -> Tensor:
    """Return the one-hot rows, [..., C] -> [..., k, C]: row j is one-hot at the value of rank j; |x| < 2^(bits-1) in ring
    units."""
    count = x.shape[-1]
    check_budget("top-k", k, count)
    reached = _below(s, ranks(s, x, _width(bits)), range(1, k + 1), count)  # [k, ..., C]: rank <= j
    rows = torch.cat([reached[:1], reached[1:] - reached[:-1]])
    return rows.permute(*range(1, x.dim()), 0, x.dim())


def keep_largest(s: CryptenSession, x: Tensor, k: int, bits: int) -> Tensor:
    """Return [..., n] -> 0/1 [..., n] with exactly k ones, at the largest; |x| < 2^(bits-1) in ring units."""
    count = x.shape[-1]
    check_budget("keep", k, count)
    if k == count:
        return add_public(s, x * 0, 1)
    if count <= PAIRS:
        return _below(s, ranks(s, x, _width(bits)), [k], count)[0]
    return _by_threshold(s, x, k, bits)


def _by_threshold(s: CryptenSession, x: Tensor, k: int, bits: int) -> Tensor:
    """As `keep_largest`: the largest t that k values reach, bit by bit, then [x > t] and the first of those equal to it."""
    if not 2 <= bits <= 60:
        raise RangeError(f"keep: values of 2 to 60 bits can be compared, got {bits}")
    n = x.shape[-1]
    threshold = add_public(s, x[..., :1] * 0, -(1 << (bits - 1)))
    for place in range(bits - 1, -1, -1):
        candidate = add_public(s, threshold, 1 << place)
        smaller = comparison.less_than(s, x - candidate, [0], _width(bits))[0]
        below = comparison.to_arithmetic(s, smaller).sum(-1, keepdim=True)
        missed = _below(s, below, [n - k + 1], n)[0]  # [#(x < candidate) <= n - k]: k values reach the candidate
        threshold = threshold + (missed << place)
    difference = x - threshold
    below, at_most = comparison.to_arithmetic(s, comparison.less_than(s, difference, [0, 1], _width(bits)))
    equal = at_most - below
    above = add_public(s, -at_most, 1)
    taken = above.sum(-1, keepdim=True) + equal.cumsum(-1)  # of those equal, the first k - #above stay
    within = _below(s, taken, [k + 1], n)[0]
    return above + arithmetic.mul(equal, within)


def compact(s: CryptenSession, keep: Tensor, rows: Sequence[Tensor], k: int) -> list[Tensor]:
    """Return the k marked rows in their order: keep [B, n], rows [B, n, width] each -> [B, k, width]."""
    n = keep.shape[-1]
    check_budget("compaction", k, n)
    if k == n:
        return list(rows)
    reached = add_public(s, -_below(s, keep.cumsum(-1), range(1, k + 1), n), 1)  # [k, B, n]: count_i >= j + 1
    before = torch.cat([reached[..., :1] * 0, reached[..., :-1]], -1)
    matrix = (reached - before).permute(1, 0, 2)
    widths = [x.shape[-1] for x in rows]
    together = arithmetic.matmul(matrix, torch.cat(list(rows), -1))
    out, start = [], 0
    for width in widths:
        out.append(together[..., start : start + width])
        start += width
    return out
