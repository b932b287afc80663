"""Products of masked values: element-wise, matrix, any bilinear map with public structure. No round.

[x y] = m_x [y] - [lam_x] m_y + [lam_x lam_y]; the dealer deals the last term (the size of the *output*), so a product with
a weight or a cached value that was masked once costs nothing for it. Beaver 1991; Ben-Efraim et al. 2019.

Result: Shared, frac = frac_x + frac_y, in the smaller ring. The caller guarantees |x y| < 2^(bits - 1 - frac).
Offline: bits per output element for the last party. Error: none (exact in the ring). Leaks: nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mpc import ring
from protocols.masked.context import Context
from protocols.masked.wires import Masked, Shared

Bilinear = Callable[[Tensor, Tensor, int], Tensor]


def elementwise(a: Tensor, b: Tensor, bits: int) -> Tensor:
    """a * b with broadcasting."""
    return ring.reduce(a * b, bits)


def product(c: Context, op: str, x: Masked, y: Masked, f: Bilinear = elementwise) -> Shared:
    """The bilinear map f of two masked values; local."""
    bits = min(x.bits, y.bits)
    x, y = x.to_ring(bits), y.to_ring(bits)
    shape = f(c.blank(x.shape), c.blank(y.shape), bits).shape
    term = c.deal(op, shape, bits, lambda: f(x.lam, y.lam, bits))
    if not c.evaluating:
        return Shared(c.blank(shape), bits, x.frac + y.frac)
    own = y.m - y.lam if c.first else -y.lam
    out = f(x.m, ring.reduce(own, bits), bits) - f(x.lam, y.m, bits) + term
    return Shared(ring.reduce(out, bits), bits, x.frac + y.frac)


def multiply(c: Context, x: Masked, y: Masked) -> Shared:
    """x * y, element by element, broadcasting."""
    return product(c, "multiply", x, y)


def matmul(c: Context, x: Masked, y: Masked) -> Shared:
    """x @ y: [..., M, K] x [..., K, N]. The caller's bound must include the sum over K."""
    return product(c, "matmul", x, y, ring.matmul)


class FixedWeight:
    """A weight, masked once in Z_2^64 and reused for ever; what products need of it is kept ready.

    m: opened W + lam [in, out]; own: this party's share of W; at the dealer lam is the whole mask. Kept column-major, which
    makes a product with one row (a decode step) a single pass at memory speed.
    """

    def __init__(self, value: Masked, c: Context) -> None:
        def keep(t: Tensor) -> Tensor:
            return t.t().contiguous().t() if t.dim() == 2 and not t.is_meta else t

        self.m = keep(value.m)
        self.lam = keep(value.lam) if c.tape.dealing else c.blank(value.shape)
        own = value.m - value.lam if c.first else -value.lam
        self.own = keep(own) if c.evaluating else c.blank(value.shape)
        self.frac = value.frac

    @property
    def shape(self) -> torch.Size:
        """[in, out] (or [out] of a bias)."""
        return self.m.shape


def weight_product(c: Context, op: str, x: Masked, w: FixedWeight) -> Shared:
    """x @ W for a fixed weight: [..., in] -> [..., out], in x's ring."""
    shape = (*x.shape[:-1], w.shape[-1])
    bits = x.bits
    term = c.deal(op, shape, bits, lambda: ring.matmul(_rows(x.lam), w.lam, bits).reshape(shape))
    if not c.evaluating:
        return Shared(c.blank(shape), bits, x.frac + w.frac)
    online = ring.matmul(_rows(x.m), w.own, bits)
    ahead = ring.matmul(_rows(x.lam), w.m, bits)  # depends on the tape alone
    return Shared(ring.reduce((online - ahead).reshape(shape) + term, bits), bits, x.frac + w.frac)


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])
