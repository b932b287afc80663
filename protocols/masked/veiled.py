"""Products that are cut as they are opened, whose masks come with them: only what is left of a mask is dealt.

What a product of masked values lacks is the product of their masks (`product`). It need not be dealt to be opened: let
every party add a fresh uniform r_i in its place. Then the shares s_i add up to z + R, with the product z and R = sum r_i -
lam_x lam_y, which the dealer knows, and each s_i is uniform to all others. So s_i may be sent, or any part of its bits, and
R, cut alike, is the mask of what is opened. The same holds of masked values times numbers that the dealer knows
(`lifted.sum_known`), where R = sum_e lam_e F_e - sum r_i, and in rings of up to 128 bits:

* Two parties send c_i = s_i >> t, party 0 after it has added 2^(t - 1) to s_0; m = c_0 + c_1 modulo 2^(K - t), lam = R >> t.
  With y = z + 2^(t - 1), and a and b the low t bits of s_0 and s_1, m - lam is floor(y / 2^t) - k for k = floor((a + b - (y
  mod 2^t)) / 2^t), -1, 0 or 1. a and b are uniform: it is z / 2^t + 2^-(t + 1) on average, with a variance of 1/4 whatever
  z is (`open_cut`: 1/6 on average), and less than 3/2 off. K - t bits are sent, K - t dealt.
* More parties send s_i whole; m = (s_0 + ...) >> t, lam = R >> t: floor(z / 2^t) + Bernoulli(fraction), as `truncate`. K
  bits are sent, K - t dealt.

So t bits an element are not dealt (of more parties, K). No value is exact once it is cut: 0 may become a unit or -1.

A veil is used once: a `Veiled` is opened, and cannot be read in another way. Between product and opening it is added to
other sharings and multiplied by odd numbers, which keep r_i uniform.

Rounds: 0, and 1 to open. Error: 3/2 units (more parties: 1).
Leaks: nothing. What is sent is uniform, and the rounding is that of a functionality that tells party 0 its a and party 1
its b, the low bits of its own share, of which the other knows nothing (docs/security.md, "Veiled products").
Sources: `product`; SIGMA (Gupta et al. 2024), where masks of products are derived; `truncation`.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mpc import wide
from mpc.ring import RING_BITS
from mpc.wide import Wide, Words
from protocols.masked import lifted
from protocols.masked.context import MOST_OF_WRAPS, Context, Opening, require
from protocols.masked.lifted import Factor, Known
from protocols.masked.product import Bilinear, FixedWeight, product_of_masks, weighted, weighted_shape
from protocols.masked.shares import Masked, Shared, WideShared
from protocols.masked.wide import WideOpening, random


@dataclass(frozen=True)
class Veiled:
    """[x + R] modulo 2^bits, x with `frac` fraction bits. x: this party's share, congruent; veil: R, called at the dealer
    alone."""

    x: Words
    bits: int
    frac: int
    veil: Known

    def __repr__(self) -> str:
        return f"Veiled(shape={list(self.shape)}, ring=2^{self.bits}, fraction bits={self.frac})"

    @property
    def shape(self) -> torch.Size:
        """Public shape."""
        return self.x.shape

    def times_odd(self, factor: int, frac: int) -> Veiled:
        """Return it times a public odd integer that has `frac` fraction bits, in the same ring of at most 64 bits."""
        require(factor % 2 == 1, "veiled", f"a factor of {factor} is even: what is sent would not be uniform")
        require(self.bits <= RING_BITS, "veiled", f"a ring of {self.bits} bits, at most {RING_BITS}")

        return Veiled(_word(self.x) * factor, self.bits, self.frac + frac, lambda: _word(self.veil()) * factor)

    def add(self, other: Shared) -> Veiled:
        """Return it plus a sharing of its shape, in its ring of at most 64 bits and with its fraction bits."""
        fits = RING_BITS >= other.bits >= self.bits and other.frac == self.frac
        require(fits, "veiled", f"{other} is not added in a ring of {self.bits} bits with {self.frac} fraction bits")
        return Veiled(self.x + other.x, self.bits, self.frac, self.veil)

    def to_ring(self, bits: int) -> Veiled:
        """Return it modulo a smaller power of two, of at most 64 bits as it was."""
        require(bits <= self.bits <= RING_BITS, "veiled", f"a ring of {self.bits} bits is not read modulo 2^{bits}")
        return Veiled(self.x, bits, self.frac, self.veil)

    def without(self, c: Context) -> Shared:
        """Return [x], for what is not opened next; local. Offline: bits per element. R is the mask of nothing then."""
        require(self.bits <= RING_BITS, "veiled", f"a ring of {self.bits} bits, at most {RING_BITS}")
        dealt = c.deal("unveiled", tuple(self.shape), self.bits, lambda: _word(self.veil()))
        return Shared(_word(self.x) - dealt, self.bits, self.frac)


def _word(x: Words) -> Tensor:
    return x.low if isinstance(x, Wide) else x


def product(c: Context, op: str, x: Masked, y: Masked, f: Bilinear) -> Veiled:
    """Return the bilinear map f of two masked values, as `product.product`, behind a veil; local."""
    bits = min(x.bits, y.bits)
    shape = f(c.blank(x.shape), c.blank(y.shape), bits).shape
    fresh = c.tape.random(op, tuple(shape), bits)

    def veil() -> Tensor:
        return fresh - f(x.lam, y.lam, bits)

    if not c.evaluating:
        return Veiled(c.blank(shape), bits, x.frac + y.frac, veil)
    if x.m.numel() <= y.m.numel():  # as in `product`
        out = f(c.shared(x).x, y.m, bits) - f(x.m, y.lam, bits)
    else:
        out = f(x.m, c.shared(y).x, bits) - f(x.lam, y.m, bits)
    return Veiled(out + fresh, bits, x.frac + y.frac, veil)


def weight_product(c: Context, op: str, x: Masked, w: FixedWeight) -> Veiled:
    """Return x @ W, as `product.weight_product`, behind a veil; local."""
    fresh = c.tape.random(op, weighted_shape(x, w), x.bits)
    found = weighted(c, op, x, w, fresh)
    return Veiled(found.x, found.bits, found.frac, lambda: fresh - product_of_masks(x, w))


def sum_known(c: Context, op: str, terms: Sequence[tuple[Masked, Factor]], bits: int) -> Veiled:
    """Return sum_e x_e F_e modulo 2^bits, as `lifted.sum_known`, behind a veil; local. Offline: `bits` less per element."""
    veils: list[Known] = []

    def fresh(masks: Known) -> Words:
        found = random(c, f"{op}: veil", terms[0][0].shape, bits)
        veils.append(lambda: masks() - found)  # type: ignore[operator]
        return found

    found = lifted.sum_known(c, op, terms, bits, fresh)
    return Veiled(found.x, bits, found.frac, veils[0])


def _cut(c: Context, x: Veiled, count: int) -> Words:
    """Return what this party sends of its share."""
    if c.parties > 2 or not c.evaluating:
        return x.x
    own = x.x
    if c.first and isinstance(own, Wide):
        own = own + (Wide.of(own.low * 0 + 1) << (count - 1))
    elif c.first:
        own = own + (1 << (count - 1))
    return wide.shifted(wide.reduce(own, x.bits), count, x.bits)


async def _opened_whole(x: Veiled, none: Tensor) -> Words:
    """Return x + R."""
    if isinstance(x.x, Wide):
        return await WideOpening(WideShared(x.x, x.bits, x.frac), Wide(none, none))
    return (await Opening(Shared(x.x, x.bits, x.frac), none)).m


async def open_cut(c: Context, x: Veiled, count: int, wraps: bool = False) -> Masked:
    """Return <x / 2^count> in the ring 2^(bits - count) of at most 64 bits, `count` fraction bits fewer. 1 round, bits -
    count (two parties) or bits per element to each other party; bits - count dealt.

    wraps: as in `Context.opening`."""
    left, frac, shape = x.bits - count, x.frac - count, tuple(x.shape)
    require(count >= 1 and 2 <= left <= RING_BITS, "veiled", f"{count} bits cut from a ring of {x.bits} bits")
    sent, none = _cut(c, x, count), torch.zeros((), dtype=torch.int64, device=c.device)
    if c.parties == 2:
        word = sent.low if isinstance(sent, Wide) else sent  # wide: of a role that does not evaluate
        m = (await Opening(Shared(word, left, frac), none)).m
    else:
        whole = await _opened_whole(x, none)
        m = wide.shifted(whole, count, x.bits) if c.evaluating else c.blank(shape)

    def mask() -> Tensor:
        return wide.shifted(wide.reduce(x.veil(), x.bits), count, x.bits)

    if not wraps or left > MOST_OF_WRAPS:
        return Masked(m, c.deal("veil", shape, left, mask), left, frac)
    shares = c.tape.dependent_shares("veil", shape, mask if c.tape.dealing else None, left)
    if not c.tape.dealing:
        return Masked(m, shares[0], left, frac, wraps=c.blank(shape))
    total = functools.reduce(operator.add, shares)
    return Masked(m, total & ((1 << left) - 1), left, frac, wraps=total >> left)
