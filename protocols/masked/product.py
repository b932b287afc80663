"""Products of masked values: element-wise, matrix, any bilinear map with public structure. No round.

[x y] = [x] m_y - m_x [lam_y] + [lam_x lam_y]; the dealer deals the last term (the size of the *output*), so a product with
a weight or a cached value that was masked once costs nothing for it. Beaver 1991; Ben-Efraim et al. 2019.

Result: Shared, frac = frac_x + frac_y, in the smaller ring. The caller guarantees |x y| < 2^(bits - 1 - frac).
Offline: bits per output element for the last party. Error: none (exact in the ring).
Leaks: nothing, they are local (docs/security.md, "Products").
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mpc import joint_products, ring
from protocols.masked.context import Context, require
from protocols.masked.shares import Masked, Shared

Bilinear = Callable[[Tensor, Tensor, int], Tensor]


def elementwise(a: Tensor, b: Tensor, bits: int) -> Tensor:
    """Return a * b with broadcasting."""
    return ring.reduce(a * b, bits)


def product(c: Context, op: str, x: Masked, y: Masked, f: Bilinear = elementwise) -> Shared:
    """Return the bilinear map f of two masked values; local."""
    bits = min(x.bits, y.bits)
    shape = f(c.blank(x.shape), c.blank(y.shape), bits).shape
    term = c.deal(op, shape, bits, lambda: f(x.lam, y.lam, bits))
    if not c.evaluating:
        return Shared(c.blank(shape), bits, x.frac + y.frac)
    if x.m.numel() <= y.m.numel():  # a cached value is large, and read as it lies
        out = f(c.shared(x).x, y.m, bits) - f(x.m, y.lam, bits)
    else:
        out = f(x.m, c.shared(y).x, bits) - f(x.lam, y.m, bits)
    return Shared(out + term, bits, x.frac + y.frac)


def multiply(c: Context, x: Masked, y: Masked) -> Shared:
    """Return x * y, element by element, broadcasting."""
    return product(c, "multiply", x, y)


def matmul(c: Context, x: Masked, y: Masked) -> Shared:
    """Return x @ y: [..., M, K] x [..., K, N]. The caller's bound must include the sum over K."""
    return product(c, "matmul", x, y, ring.matmul)


class FixedWeight:
    """A weight, masked once in Z_2^64 and reused for ever; what products need of it is kept ready.

    m: opened W + lam, [in, out] or, one for each of several inputs, [E, in, out]; own: this party's share of W; at the
    dealer lam is the whole mask. Kept column-major, which makes a product with one row (a decode step) a single pass at
    memory speed. bits: the largest ring of its products; up to 32 bits m and own are kept in 32, half the memory and half
    the pass. Made by `protocols.masked.weights`; of matrices on a device, and over several ranks, by subclasses.
    """

    def __init__(self, m: Tensor, own: Tensor, lam: Tensor, frac: int, bits: int) -> None:
        self.m = m
        self.own = own
        self.lam = lam
        self.frac = frac
        self.bits = bits

    @property
    def shape(self) -> torch.Size:
        """[in, out], [E, in, out] (or [out] of a bias)."""
        return self.m.shape

    @property
    def bytes_here(self) -> int:
        """Return the bytes that a party's process keeps of it."""
        return self.m.nbytes + self.own.nbytes

    def times_own(self, rows: Tensor, bits: int, rows_bits: int = ring.RING_BITS) -> Tensor:
        """Return rows [..., in] times this party's share of W modulo 2^bits. rows_bits: as `left_bits` of `ring.matmul`."""
        return joint_products.matmul(rows, self.own, bits, rows_bits)

    def times_m(self, rows: Tensor, bits: int) -> Tensor:
        """Return rows [..., in] times W + lam modulo 2^bits."""
        return joint_products.matmul(rows, self.m, bits)

    def times_mask(self, rows: Tensor, bits: int, rows_bits: int = ring.RING_BITS) -> Tensor:
        """Return rows [..., in] times lam modulo 2^bits, at the dealer. rows_bits: as `left_bits` of `ring.matmul`."""
        return ring.matmul(rows, self.lam, bits, rows_bits)

    def put(self, rows: slice, m: Tensor, own: Tensor) -> None:
        """Fill some rows at a party."""
        self.m[rows], self.own[rows] = m, own

    def put_mask(self, rows: slice, lam: Tensor) -> None:
        """Fill some rows at the dealer."""
        self.lam[rows] = lam

    def whole(self) -> FixedWeight:
        """Return the weight with all of it here, in words."""
        return self

    def move(self, f: Callable[[Tensor], Tensor]) -> FixedWeight:
        """Return the same numbers in another shape or order, without a copy where f needs none."""
        return FixedWeight(f(self.m), f(self.own), f(self.lam), self.frac, self.bits)


def weight_product(c: Context, op: str, x: Masked, w: FixedWeight) -> Shared:
    """Return x @ W for a fixed weight: [..., in] -> [..., out], in x's ring; [E, n, in] x [E, in, out] -> [E, n, out].

    [x W] = m_x [W] + ([lam_x lam_W] - [lam_x] m_W); what stands in parentheses needs no input and is precomputed.
    """
    _check_weight(op, x, w)
    return weighted(c, op, x, w, c.deal(op, weighted_shape(x, w), x.bits, lambda: product_of_masks(x, w)))


def weighted_shape(x: Masked, w: FixedWeight) -> tuple[int, ...]:
    """Return the shape of x @ W."""
    return (*x.shape[:-1], w.shape[-1])


def _check_weight(op: str, x: Masked, w: FixedWeight) -> None:
    require(x.bits <= w.bits, op, f"a weight kept modulo 2^{w.bits} cannot be multiplied in a ring of {x.bits} bits")


def _times(x: Masked, w: FixedWeight, rows: Tensor, product: Callable[[Tensor, int], Tensor]) -> Tensor:
    flat = rows.reshape(-1, rows.shape[-1]) if len(w.shape) == 2 else rows
    return product(flat, x.bits).reshape(weighted_shape(x, w))


def product_of_masks(x: Masked, w: FixedWeight) -> Tensor:
    """Return lam_x @ lam_W, at the dealer."""
    return _times(x, w, x.lam, w.times_mask)


def weighted(c: Context, op: str, x: Masked, w: FixedWeight, term: Tensor) -> Shared:
    """Return x @ W as `weight_product`, with `term`, whatever it is, in place of [lam_x lam_W]; local."""
    _check_weight(op, x, w)
    shape = weighted_shape(x, w)
    precomputed = c.tape.precompute(op, shape, lambda: term - _times(x, w, x.lam, w.times_m))
    if not c.evaluating:
        return Shared(c.blank(shape), x.bits, x.frac + w.frac)
    return Shared(_times(x, w, x.m, w.times_own) + precomputed, x.bits, x.frac + w.frac)


def weight_multiply(c: Context, op: str, x: Masked, w: FixedWeight) -> Shared:
    """Return x * w for a fixed vector [n], element by element, x's last axis broadcast: [..., n], in x's ring."""
    shape, bits = torch.Size((*x.shape[:-1], w.shape[-1])), x.bits
    require(bits <= w.bits, op, f"a weight kept modulo 2^{w.bits} cannot be multiplied in a ring of {bits} bits")
    term = c.deal(op, shape, bits, lambda: elementwise(x.lam, w.lam, bits))
    precomputed = c.tape.precompute(op, shape, lambda: term - x.lam * w.m)
    if not c.evaluating:
        return Shared(c.blank(shape), bits, x.frac + w.frac)
    return Shared(x.m * w.own + precomputed, bits, x.frac + w.frac)
