"""Products with cached secrets, which are masked once: a key or value is opened (masked) when it joins the cache, never
again.

CrypTen opens both factors of every product, so that a decode step opens the whole cache twice (12.6 MB a layer for GPT-2
with 1 024 cached tokens). Here only the new factor is opened, as for weights (`arithmetic.matmul_fixed`), and the choice of
clusters is a factor of its own: the algebra is that of `protocols.masked.gather`, with m = x - b for CrypTen's mask b.

Security as for weights: x - b with a fresh uniform b that no party knows, opened once (Ben-Efraim et al. 2019). The dealer
deals products of masks. Rings Z_2^64 throughout.
Leaks: nothing (docs/security.md, "Masked factors").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from mpc import ring
from mpc.ring import RING_BITS
from protocols.crypten import ranges
from protocols.crypten.binding.library import CryptenSession
from protocols.crypten.value import CryptenValue, CryptenWeight
from protocols.masked import tokens
from protocols.masked.context import Context
from protocols.masked.gather import chosen_scores, chosen_values
from protocols.masked.product import multiply, product
from protocols.masked.shares import Masked, Shared


class _Roles:
    """What the masked products ask of their context, from a CrypTen session."""

    def __init__(self, s: CryptenSession) -> None:
        self.s = s
        self.tape = s.tape
        self.parties = s.parties
        self.prefer = "auto"  # CrypTen's suite has no such option
        self.device = s.device
        self.evaluating = s.channel is not None
        self.first = s.channel is not None and s.party == 0

    def deal(self, op: str, shape: Sequence[int], bits: int, value: Callable[[], Tensor]) -> Tensor:
        """Return a value computed from masks, shared modulo 2^64."""
        dealt = self.s.tape.dependent(op, tuple(shape), value if self.s.dealing else None, bits)
        return self.s.held(dealt)

    def deal_table(self, op: str, shape: Sequence[int], bits: int, value: Callable[[], Tensor]) -> Tensor:
        """As `deal`, for what is looked up: a party gets it in narrow words."""
        dealt = self.s.tape.table(op, tuple(shape), value if self.s.dealing else None, bits)
        return self.s.held(dealt)

    def blank(self, shape: Sequence[int]) -> Tensor:
        """Return a tensor nobody reads."""
        return self.s.without_content(shape)

    def shared(self, x: Masked) -> Shared:
        """Return this party's share of a masked value; local."""
        return Shared(x.m - x.lam if self.first else -x.lam, x.bits, x.frac)


def _context(s: CryptenSession) -> Context:
    return cast(Context, cast(Any, _Roles(s)))


def mask_for_reuse(s: CryptenSession, x: CryptenValue, kind: str | None = None, limit: int = 0) -> CryptenWeight:
    """Return x, masked for all its products: x - b is opened. 1 round, 8 bytes per element.

    kind, limit: of range flags for x, see `Ranges.watch`; none for a choice.
    """
    mask = s.tape.random("cache mask", x.shape)
    difference = s.open(x.share - s.held(mask))
    if kind is not None:
        ranges.watch(s, kind, difference, mask, x.fraction_bits, limit)
    if s.channel is None:
        return CryptenWeight(x.share, x.fraction_bits, 0, None, mask if s.dealing else None)
    return CryptenWeight(x.share, x.fraction_bits, s.party, difference, None)


def opened_indices(s: CryptenSession, index: Tensor, size: int) -> Masked:
    """Return indices [T] into a table of `size` rows, masked modulo 2^w. 1 round, w bits each; see
    `protocols.masked.tokens`."""
    bits = tokens.index_bits(size)
    mask = s.tape.random("index mask", index.shape, bits)
    return Masked(s.open(index + s.held(mask), bits), mask, bits, 0)


def one_hot_rows(s: CryptenSession, index: Masked, cut: slice, size: int) -> Tensor:
    """Return the one-hot rows of some masked indices, [n, size] modulo 2^64. Local."""
    return tokens.one_hot_rows(_context(s), Masked(index.m[cut], index.lam[cut], index.bits, 0), size, RING_BITS).x


def joined(parts: Sequence[CryptenWeight], dim: int) -> CryptenWeight:
    """Return cached values one behind the other; local."""
    first = parts[0]
    differences = [p.difference for p in parts if p.difference is not None]
    masks = [p.mask for p in parts if p.mask is not None]
    return CryptenWeight(
        torch.cat([p.share for p in parts], dim),
        first.fraction_bits,
        first.party,
        torch.cat(differences, dim) if differences else None,
        torch.cat(masks, dim) if masks else None,
    )


def _masked(s: CryptenSession, x: CryptenValue) -> Masked:
    """Return the masked form of a cached value."""
    assert isinstance(x, CryptenWeight)
    if s.channel is None:
        lam = -x.mask if x.mask is not None else s.without_content(x.shape)
        return Masked(s.without_content(x.shape), lam, RING_BITS, x.fraction_bits)
    assert x.difference is not None
    own = x.difference - x.share if s.party == 0 else -x.share
    return Masked(x.difference, own, RING_BITS, x.fraction_bits)


def _opened(s: CryptenSession, values: Sequence[CryptenValue]) -> list[Masked]:
    """Return fresh masked forms of several values: 1 round, 8 bytes per element; cached values need none."""
    fresh = [x for x in values if not isinstance(x, CryptenWeight)]
    masks = [s.tape.random("factor mask", x.shape) for x in fresh]
    items = [(x.share - s.held(mask), RING_BITS, "sum") for x, mask in zip(fresh, masks, strict=True)]
    opened = iter(zip(s.open_together(items) if items else [], masks, strict=True))
    out = []
    for x in values:
        if isinstance(x, CryptenWeight):
            out.append(_masked(s, x))
        else:
            m, mask = next(opened)
            out.append(Masked(m, -mask, RING_BITS, x.fraction_bits))
    return out


def matmul(s: CryptenSession, x: CryptenValue, y: CryptenWeight) -> Tensor:
    """Return x [..., M, K] times a cached y [..., K, N], no truncation. 1 round, 8 bytes per element of x."""
    a, b = _opened(s, [x, y])
    return product(_context(s), "cached product", a, b, ring.matmul).x


def squares(s: CryptenSession, x: CryptenWeight) -> Tensor:
    """Return the sum over rows of each channel's square of a cached value, [G, n, C] -> [G, C], no truncation. 0 rounds."""
    a = _masked(s, x)
    return product(_context(s), "squares", a, a, lambda m, n, bits: ring.reduce((m * n).sum(1), bits)).x


def mul_watched(s: CryptenSession, x: CryptenValue, y: CryptenValue, kinds: Sequence[str | None], limit: int) -> Tensor:
    """Return x y, element by element, no truncation. 1 round, 8 bytes per element of x and of y. kinds: of flags for x and
    y."""
    masks = [s.tape.random("factor mask", v.shape) for v in (x, y)]
    opened = s.open_together([(v.share - s.held(m), RING_BITS, "sum") for v, m in zip((x, y), masks, strict=True)])
    factors = []
    for v, m, mask, kind in zip((x, y), opened, masks, kinds, strict=True):
        if kind is not None:
            ranges.watch(s, kind, m, mask, v.fraction_bits, limit)
        factors.append(Masked(m, -mask, RING_BITS, v.fraction_bits))
    return multiply(_context(s), *factors).x


def scores_of_chosen(s: CryptenSession, chosen: CryptenWeight, q: CryptenValue, k: CryptenValue) -> Tensor:
    """Return the scores of the chosen clusters [G, R, n, s], no truncation. 1 round, 8 bytes per element of q.

    chosen: [G, n, N] one-hot (0 fraction bits), masked (`mask_for_reuse`); q [G, R, C]; k cached [G, N, s, C].
    """
    mq, mk = _opened(s, [q, k])
    return chosen_scores(_context(s), _masked(s, chosen), mq, mk).x


def values_of_chosen(s: CryptenSession, chosen: CryptenWeight, p: CryptenValue, v: CryptenValue) -> Tensor:
    """Return the sum over the chosen clusters of p [G, R, n, s] times v cached [G, N, s, C]: [G, R, C], no truncation.

    1 round, 8 bytes per element of p.
    """
    mp, mv = _opened(s, [p, v])
    return chosen_values(_context(s), _masked(s, chosen), mp, mv).x
