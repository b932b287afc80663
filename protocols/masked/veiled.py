"""Products that are cut as they are opened, whose masks come with them: only what is left of a mask is dealt.

What a product of masked values lacks is the product of their masks (`product`). It need not be dealt to be opened: let
every party add a fresh uniform r_i in its place. Then the shares s_i add up to z + R, with the product z and R = sum r_i -
lam_x lam_y, which the dealer knows, and each s_i is uniform to all others. So s_i may be sent, or any part of its bits, and
R, cut alike, is the mask of what is opened:

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

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mpc import ring
from protocols.masked.context import Context, Opening, require
from protocols.masked.product import Bilinear
from protocols.masked.shares import Masked, Shared


@dataclass(frozen=True)
class Veiled:
    """[x + R] modulo 2^bits, x with `frac` fraction bits. x: this party's share, congruent; veil: R, called at the dealer
    alone."""

    x: Tensor
    bits: int
    frac: int
    veil: Callable[[], Tensor]

    def times_odd(self, factor: int, frac: int) -> Veiled:
        """Return it times a public odd integer that has `frac` fraction bits, in the same ring."""
        require(factor % 2 == 1, "veiled", f"a factor of {factor} is even: what is sent would not be uniform")
        return Veiled(self.x * factor, self.bits, self.frac + frac, lambda: self.veil() * factor)

    def add(self, other: Shared) -> Veiled:
        """Return it plus a sharing of its shape, in its ring and with its fraction bits."""
        fits = other.bits >= self.bits and other.frac == self.frac
        require(fits, "veiled", f"{other} is not added in a ring of {self.bits} bits with {self.frac} fraction bits")
        return Veiled(self.x + other.x, self.bits, self.frac, self.veil)


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


async def open_cut(c: Context, x: Veiled, count: int) -> Masked:
    """Return <x / 2^count> in the ring 2^(bits - count), `count` fraction bits fewer. 1 round, bits - count (two parties) or
    bits per element to each other party; bits - count dealt."""
    left, frac = x.bits - count, x.frac - count
    require(count >= 1 and left >= 2, "veiled", f"{count} bits cut from a ring of {x.bits} bits")
    two = c.parties == 2
    sent = x.x
    if two and c.evaluating:
        sent = ring.shift_right(ring.reduce(sent + (1 << (count - 1)) if c.first else sent, x.bits), count, x.bits)
    opened = await Opening(Shared(sent, left if two else x.bits, frac), torch.zeros((), dtype=torch.int64, device=c.device))
    lam = c.deal("veil", x.x.shape, left, lambda: ring.shift_right(ring.reduce(x.veil(), x.bits), count, x.bits))
    m = opened.m if two or not c.evaluating else ring.shift_right(opened.m, count, x.bits)
    return Masked(m, lam, left, frac)
