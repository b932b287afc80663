"""Truncation and lift. All but an exact floor is local; there is no failure event.

open_cut: a sharing is opened with fewer fraction bits. With two parties the low bits are cut from the shares, as unsigned
words: the ring shrinks along, so all that is lost is a carry, and with 2^t - 1 added first the result is floor(x / 2^t) +
Bernoulli(fraction): unbiased stochastic rounding, exact where nothing is cut off, error below one unit. t bits fewer cross
the wire, nothing is dealt. With more parties several carries would be lost; there the value is opened whole, then truncated.

truncate: m >> t and lam >> t are a masked value in the smaller ring 2^(bits - t): floor(x / 2^t) + Bernoulli(fraction), an
unbiased stochastic rounding with error below one unit in the last place. Offline: bits - t per element.

floor: what truncate gives, less [m mod 2^t < lam mod 2^t]: exactly floor(x / 2^t), for what is output. 1 round and a
comparison of the low t bits (5 bits online and 70 bytes offline for 16).

The rounding of the others is decided by m mod 2^t (or a share's low bits), which parties know: a truncation inside a program
is that of a functionality that tells them its coins. They say nothing of x by themselves.

truncate_and_lift: the same value as a sharing in any ring. For |x| < 2^(bits - 2), c = m + 2^(bits - 2) mod 2^bits wraps
exactly when msb(lam) = 1 and msb(c) = 0, so
[x >> t] = (c >> t) - 2^(bits - 2 - t) - [lam >> t] + (1 - msb(c)) 2^(bits - t) [msb(lam)].
Offline: to_bits + max(0, to_bits - bits + t) bits per element. SIGMA (Gupta et al. 2024), LLAMA (Gupta et al. 2022).

raise_ring: the same value, masked in a ring that is larger by j bits, for an opening of these j bits alone. Its mask is what
is there, lam >> t, and 2^(bits - t) mu above it, mu fresh and uniform modulo 2^j: together uniform. So of m' = (x >> t) +
lam' the low bits are known, and the high ones are those of c, which is public, and mu + (1 - msb(c)) msb(lam) modulo 2^j:
that is opened. 1 round, j bits per element to each other party. Offline: as for the lift. Where x was opened in this ring to
be raised, each party puts its share of mu above its share of lam: of the sum of the latter the dealer knows how often it
goes around 2^bits, w times, which mu is more by then. It deals [w] modulo 2^j in place of lam: 2 j bits.
Leaks: nothing of x. The rounding is [u < x mod 2^t] for a uniform u that parties know: the low bits of m, or of their own
shares in `open_cut` (docs/security.md, "Rounding").
"""

from __future__ import annotations

from torch import Tensor

from mpc import ring
from protocols.masked.comparison import borrows
from protocols.masked.context import Context, open_value, require
from protocols.masked.shares import Masked, Shared


def truncate(c: Context, x: Masked, count: int) -> Masked:
    """Return <x / 2^count> in the ring 2^(bits - count); local, `count` fraction bits fewer."""
    if count == 0:
        return x
    bits = x.bits - count
    require(bits >= 2, "truncate", f"{count} bits cannot be cut from a ring of {x.bits} bits")
    lam = c.deal("truncate", x.shape, bits, lambda: ring.shift_right(x.lam, count, x.bits))
    m = ring.shift_right(x.m, count, x.bits) if c.evaluating else x.m
    return Masked(m, lam, bits, x.frac - count)


async def floor(c: Context, x: Masked, cut: Masked) -> Shared:
    """Return [floor(x / 2^t)] in the ring of `cut`, which is what `truncate` has made of x with t bits fewer. 1 round; none
    if t = 0. Exact: equal x give equal results, whatever their masks are."""
    count = x.bits - cut.bits
    shared = c.shared(cut)
    if count == 0:
        return shared
    bit = (await borrows(c, x.to_ring(count))).share(cut.bits)
    return Shared(shared.x - bit.x, cut.bits, cut.frac)


async def open_cut(c: Context, x: Shared, count: int, wraps: bool = False) -> Masked:
    """Return <x / 2^count> in the ring 2^(bits - count), `count` fraction bits fewer. 1 round, bits - count (two parties) or
    bits per element to each other party. Leaks as the module: the mask is fresh and uniform.

    wraps: as in `Context.opening`, where it is opened in the ring that it has then."""
    if count == 0:
        return await open_value(c, x, wraps)
    if c.parties > 2:
        return truncate(c, await open_value(c, x), count)
    left = x.bits - count
    require(left >= 2, "truncate", f"{count} bits cannot be cut from a ring of {x.bits} bits")
    if not c.evaluating:
        return await open_value(c, Shared(c.blank(x.shape), left, x.frac - count), wraps)
    own = x.x + ((1 << count) - 1) if c.first else x.x
    cut = ring.shift_right(ring.reduce(own, x.bits), count, x.bits)
    return await open_value(c, Shared(cut, left, x.frac - count), wraps)


def _moved(c: Context, x: Masked, offset: int | None) -> tuple[Tensor, int]:
    """Return the public m + offset modulo x's ring, whose top bit is clear wherever x may have wrapped, and the offset."""
    offset = 1 << (x.bits - 2) if offset is None else offset
    return (ring.reduce(x.m + offset, x.bits) if c.evaluating else x.m), offset


def _carry(c: Context, x: Masked, moved: Tensor, bits: int) -> Tensor:
    """Return this party's share modulo 2^bits of (1 - msb(moved)) msb(lam): whether x has wrapped."""
    top = c.deal("lift carry", x.shape, bits, lambda: ring.shift_right(x.lam, x.bits - 1, x.bits))
    return top * (1 - ring.shift_right(moved, x.bits - 1, x.bits)) if c.evaluating else c.blank(x.shape)


def truncate_and_lift(c: Context, x: Masked, count: int, bits: int, offset: int | None = None) -> Shared:
    """Return [x / 2^count] in the ring 2^bits, for -offset <= x < 2^(x.bits - 1) - offset ring units; local.

    offset: a multiple of 2^count; 2^(x.bits - 2) where it is not given."""
    kept = x.bits - count
    require(kept >= 2, "lift", f"{count} bits cannot be cut from a ring of {x.bits} bits")
    moved, offset = _moved(c, x, offset)
    wraps = x.wraps if count == 0 and bits > kept else None
    if wraps is not None:
        low = c.deal("lift wraps", x.shape, bits - kept, lambda: wraps)
    else:
        low = c.deal("lift", x.shape, bits, lambda: ring.shift_right(x.lam, count, x.bits))
    carry = _carry(c, x, moved, bits - kept) if bits > kept else None
    if not c.evaluating:
        return Shared(c.blank(x.shape), bits, x.frac - count)
    out = -low if wraps is None else (low << kept) - x.lam
    if c.first:
        out = out + ring.shift_right(moved, count, x.bits) - (offset >> count)
    if carry is not None:
        out = out + (carry << kept)
    return Shared(out, bits, x.frac - count)


async def raise_ring(c: Context, x: Masked, count: int, bits: int, offset: int | None = None) -> Masked:
    """Return <x / 2^count> in the ring 2^bits, larger than the 2^(x.bits - count) that are left, for x as in
    `truncate_and_lift`. 1 round, bits - x.bits + count bits per element to each other party."""
    kept = x.bits - count
    require(2 <= kept < bits, "lift", f"{count} bits cut from a ring of {x.bits} bits, to be raised to {bits}")
    moved, offset = _moved(c, x, offset)
    if count == 0 and x.wraps is not None:
        wraps, own = x.wraps, ring.reduce(x.lam, kept)
        dealt = c.deal("lift wraps", x.shape, bits - kept, lambda: wraps)
        above = await open_value(c, Shared(_carry(c, x, moved, bits - kept) + dealt, bits - kept, 0))
        high = above.lam + wraps if c.tape.dealing else above.lam
    else:
        own = c.deal("lift", x.shape, bits, lambda: ring.shift_right(x.lam, count, x.bits))
        above = await open_value(c, Shared(_carry(c, x, moved, bits - kept), bits - kept, 0))
        high = above.lam
    m = x.m
    if c.evaluating:
        m = ring.reduce(ring.shift_right(moved, count, x.bits) - (offset >> count) + (above.m << kept), bits)
    return Masked(m, lambda: ring.reduce(own + (high << kept), bits), bits, x.frac - count)


def lift(c: Context, x: Masked, bits: int) -> Shared:
    """Return [x] in the larger ring 2^bits, for |x| < 2^(x.bits - 2) ring units; local."""
    return truncate_and_lift(c, x, 0, bits)
