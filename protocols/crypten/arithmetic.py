"""Products and truncation.

Products of two secrets are CrypTen's Beaver protocols (Beaver 1991). A product with a fixed secret reuses the secret's
mask (Ben-Efraim et al. 2019). Truncation is ours: CrypTen's two-party one is wrong by about 2^(64-f) with probability
|x|/2^63 per element, ours never is.

Leaks: nothing (docs/security.md, "Products and truncation"); the rounding is [u < x mod 2^t] for the low bits u of what is
opened (docs/security.md, "Rounding").
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from crypten.mpc.primitives import ArithmeticSharedTensor, beaver
from torch import Tensor

from mpc import ring
from mpc.errors import RangeError
from protocols.crypten.binding.library import CryptenSession, current_session, plain, wrapped
from protocols.crypten.value import CryptenWeight

TRUNCATION_LIMIT = 62


def _tensor(x: Tensor) -> object:
    return ArithmeticSharedTensor.from_shares(wrapped(x), precision=0)


def _unseen(op: str, x: Tensor, y: Tensor) -> Tensor:
    """Deal (or count) the triple of a Beaver product where there is nothing to compute, and count the opening."""
    s = current_session()
    c = s.provider.generate_additive_triple(x.shape, y.shape, op)[2]
    s.open_together([(x, 64, "sum"), (y, 64, "sum")])
    return plain(c.share)


def mul(x: Tensor, y: Tensor) -> Tensor:
    """Return the element-wise product, broadcasting, no truncation. 1 round, 8 bytes per element of x and of y."""
    if x.is_meta:
        return _unseen("mul", x, y)
    return plain(beaver.mul(_tensor(x), _tensor(y)).share)


def square(x: Tensor) -> Tensor:
    """Return x^2, no truncation. 1 round, 8 bytes per element."""
    if x.is_meta:
        s = current_session()
        s.provider.square(x.shape)
        return s.open(x)
    return plain(beaver.square(_tensor(x)).share)


def matmul(x: Tensor, y: Tensor) -> Tensor:
    """Return the matrix product [..., M, K] x [..., K, N], no truncation. 1 round, 8 bytes per element of x and of y."""
    if x.is_meta:
        return _unseen("matmul", x, y)
    return plain(beaver.matmul(_tensor(x), _tensor(y)).share)


def matmul_fixed(s: CryptenSession, x: Tensor, weights: Sequence[CryptenWeight]) -> list[Tensor]:
    """Return x [..., K] times each fixed secret W_j [K, N_j], no truncation. 1 round, 8 bytes per element of x.

    The dealer draws a mask a for x and deals a b_j, with b_j the mask of W_j: x - a is opened, then
    [x W] = (x - a) [W] + [a] (W - b) + [a b]. One opening serves all weights.
    """
    a = s.tape.random("fixed a", x.shape)
    shapes = [(*x.shape[:-1], w.shape[-1]) for w in weights]

    def product(w: CryptenWeight) -> Tensor:
        assert w.mask is not None
        return ring.matmul(a, w.mask)

    ab = [
        s.held(s.tape.dependent("fixed ab", shape, lambda w=w: product(w)))  # type: ignore[misc]
        for shape, w in zip(shapes, weights, strict=True)
    ]
    a = s.held(a)
    opened = s.open(x - a)
    if s.channel is None:
        return ab
    out = []
    for w, c in zip(weights, ab, strict=True):
        difference = w.difference if w.difference is not None else w.share
        out.append(ring.matmul(opened, w.share) + ring.matmul(a, difference) + c)
    return out


def truncate_together(s: CryptenSession, items: Sequence[tuple[Tensor, int]]) -> list[Tensor]:
    """Return x / 2^t for each (x, t): floor or floor + 1, the nearer one more often (unbiased), never anything else.

    Any number of parties; |x| < 2^62, 0 <= t < 62. 1 round for all, 8 bytes per element.

    The dealer deals r uniform in Z_2^64, r >> t and the highest bit of r. u = x + 2^62 lies in [0, 2^63). m = u + r is
    opened, which is uniform whatever x is. u + r passes 2^64 exactly when r's highest bit is set and m's is not, hence
    u >> t = (m >> t) - (r >> t) + 2^(64-t) msb(r) (1 - msb(m)), less one where the low bits of m are below those of r.
    Of 2^(64-t) msb(r) only msb(r) mod 2^t counts, so that bit is dealt in
    Z_2^8, Z_2^16, Z_2^32 or Z_2^64.
    """
    blinded = [Blinded.deal(s, x, count) if count else None for x, count in items]
    if not any(blinded):
        return [x for x, _ in items]
    opened = iter(s.open_together([(b.share, 64, "sum") for b in blinded if b is not None]))
    return [x if b is None else b.truncated(s, next(opened)) for (x, _), b in zip(items, blinded, strict=True)]


class Blinded(NamedTuple):
    """x that is to lose its `dropped` low bits, under its mask; see `truncate_together`. mask: as the tape gives it; high,
    top: its bits from `dropped` on, and its highest bit; share: of x + 2^62 + mask, to be opened."""

    dropped: int
    mask: Tensor
    high: Tensor
    top: Tensor
    share: Tensor

    @staticmethod
    def deal(s: CryptenSession, x: Tensor, count: int) -> Blinded:
        """Blind a value with a fresh mask. Local. Raises `RangeError` for a count that no truncation can drop."""
        if not 0 < count < TRUNCATION_LIMIT:
            raise RangeError(f"a truncation drops 0 to {TRUNCATION_LIMIT - 1} bits, got {count}")
        r = s.tape.random("truncation mask", x.shape)
        high = s.held(s.tape.dependent("truncation high part", x.shape, lambda: ring.shift_right(r, count, 64)))
        ring_bits = next(bits for bits in (8, 16, 32, 64) if bits >= count)
        top = s.held(s.tape.dependent("truncation top bit", x.shape, lambda: ring.shift_right(r, 63, 64), bits=ring_bits))
        share = x + s.held(r)
        return Blinded(count, r, high, top, share + (1 << 62) if s.party == 0 else share)

    def truncated(self, s: CryptenSession, m: Tensor) -> Tensor:
        """Return x / 2^dropped, one more where the low bits of the opened m are below those of the mask. Local."""
        part = ((m >= 0).to(torch.int64) * self.top << (64 - self.dropped)) - self.high
        if s.party == 0:
            part = part + (ring.shift_right(m, self.dropped, 64) - (1 << (62 - self.dropped)))
        return part


def truncate(s: CryptenSession, x: Tensor, count: int) -> Tensor:
    """Return x / 2^count, see `truncate_together`. 1 round and 8 bytes per element (none when count is 0)."""
    return truncate_together(s, [(x, count)])[0]


def rescale(s: CryptenSession, x: Tensor, fraction_bits: int, wanted: int) -> Tensor:
    """Return x with `wanted` instead of `fraction_bits` fraction bits: exact upwards, a truncation downwards."""
    if wanted >= fraction_bits:
        return x << (wanted - fraction_bits)
    return truncate(s, x, fraction_bits - wanted)


def add_public(s: CryptenSession, x: Tensor, constant: int | Tensor) -> Tensor:
    """Return x plus a public ring element."""
    return x + constant if s.party == 0 else x
