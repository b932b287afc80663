"""Attention to secretly chosen clusters by three-factor products: only results are opened, nothing of the cache's size.

With e the one-hot matrix of chosen clusters, q the queries, K and V the cached keys and values in clusters of s tokens:

* scores S[r,j,t] = sum_(i,c) e[j,i] q[r,c] K[i,t,c];
* values o[r,c] = sum_(j,i,t) e[j,i] p[r,j,t] V[i,t,c].

All factors are masked. Multiplied out, each is a sum over the subsets of factors replaced by their masks. Subsets of one
mask are local, the others are contracted by the dealer before they are dealt, so what is dealt does not grow with N s C n.

Where there are few clusters the scores of all of them are opened instead, and the choice is a product of two factors.

Both: local (0 rounds; the result is Shared). Offline elements a head, n chosen of N clusters: scores R n N C + R N s +
n s C + R n s; values R N s + R n N C + n s C + R C. Online: nothing here; e's opening costs n N ring elements a head, once
for all layers that share it. Valid range: results below 2^(bits - 1). Error: none (exact in the ring).
Leaks: nothing, they are local (docs/security.md, "Attention to chosen clusters").
Source: Beaver 1991 generalised to three factors (e.g. Ohata, Nuida 2020).
"""

from __future__ import annotations

import torch
from torch import Tensor

from mpc import ring
from protocols.masked.context import Context
from protocols.masked.product import product
from protocols.masked.shares import Masked, Shared


def _flat(x: Tensor) -> Tensor:
    """Flatten [G, N, s, C] to [G, N, s C]."""
    return x.reshape(*x.shape[:2], x.shape[2] * x.shape[3])


def _rows_by(a: Tensor, b: Tensor, bits: int) -> Tensor:
    """Return the sum_i a[g,j,i] b[g,i,t,c]: [G, n, N] x [G, N, s, C] -> [G, n, s, C]."""
    out = ring.matmul(a, _flat(b), bits)
    return out.reshape(*out.shape[:2], *b.shape[2:])


def _dots(q: Tensor, k: Tensor, bits: int) -> Tensor:
    """Return the sum_c q[g,r,c] k[g,i,t,c]: [G, R, C] x [G, N, s, C] -> [G, R, N, s]."""
    groups, clusters, size, channels = k.shape
    out = ring.matmul(q, k.reshape(groups, clusters * size, channels).transpose(1, 2), bits)
    return out.reshape(groups, q.shape[1], clusters, size)


def _choose(e: Tensor, x: Tensor, bits: int) -> Tensor:
    """Return the sum_i e[g,j,i] x[g,r,i,t]: [G, n, N] x [G, R, N, s] -> [G, R, n, s]."""
    return ring.matmul(e[:, None], x, bits)


def _outer(e: Tensor, q: Tensor, bits: int) -> Tensor:
    """Return e[g,j,i] q[g,r,c] -> [G, R, n, N, C]."""
    return ring.reduce(e[:, None, :, :, None] * q[:, :, None, None, :], bits)


def _spread(e: Tensor, p: Tensor, bits: int) -> Tensor:
    """Return the sum_j e[g,j,i] p[g,r,j,t]: [G, n, N] x [G, R, n, s] -> [G, R, N, s]."""
    return ring.matmul(e.transpose(1, 2)[:, None], p, bits)


def _weigh(u: Tensor, v: Tensor, bits: int) -> Tensor:
    """Return the sum_(i,t) u[g,r,i,t] v[g,i,t,c]: [G, R, N, s] x [G, N, s, C] -> [G, R, C]."""
    groups, rows = u.shape[:2]
    return ring.matmul(u.reshape(groups, rows, -1), v.reshape(groups, -1, v.shape[-1]), bits)


def _weigh_chosen(p: Tensor, ev: Tensor, bits: int) -> Tensor:
    """Return the sum_(j,t) p[g,r,j,t] ev[g,j,t,c]: [G, R, n, s] x [G, n, s, C] -> [G, R, C]."""
    return _weigh(p, ev, bits)


def chosen_scores(c: Context, e: Masked, q: Masked, k: Masked) -> Shared:
    """Return the scores of the chosen clusters: e [G, n, N], q [G, R, C], k [G, N, s, C] -> [G, R, n, s] in the smallest
    ring.

    The keys may be in a larger ring; they are not copied into the smaller one.
    """
    bits = min(e.bits, q.bits, k.bits)
    e, q = e.to_ring(bits), q.to_ring(bits)
    groups, count, clusters = e.shape
    rows, size, channels = q.shape[1], k.shape[2], k.shape[3]
    frac = q.frac + k.frac
    out_shape = (groups, rows, count, size)
    eq = c.deal("chosen query", (groups, rows, count, clusters, channels), bits, lambda: _outer(e.lam, q.lam, bits))
    qk = c.deal("query times keys", (groups, rows, clusters, size), bits, lambda: _dots(q.lam, k.lam, bits))
    ek = c.deal("chosen keys", (groups, count, size, channels), bits, lambda: _rows_by(e.lam, k.lam, bits))
    eqk = c.deal("chosen scores", out_shape, bits, lambda: _choose(e.lam, _dots(q.lam, k.lam, bits), bits))
    if not c.evaluating:
        return Shared(c.blank(out_shape), bits, frac)
    public = _dots(q.m, k.m, bits)
    # [q k] for all clusters, then m_e times it
    products = qk - _dots(q.m, k.lam, bits) - _dots(q.lam, k.m, bits)
    out = _choose(e.m, ring.reduce(products + public if c.first else products, bits), bits)
    out = out - _choose(e.lam, public, bits)
    # eq m_k: sum over clusters and channels
    out = out + torch.stack([ring.inner(eq[:, r], k.m, bits) for r in range(rows)], 1)
    out = out + _dots(q.m, ek, bits) - eqk
    return Shared(ring.reduce(out, bits), bits, frac)


def picked_scores(c: Context, e: Masked, s: Masked) -> Shared:
    """Return the scores of the chosen clusters from everybody's: e [G, n, N], masked scores s [G, R, N, t] -> [G, R, n, t];
    local.

    Offline: R n t ring elements a head, no more. The scores of all clusters must have been opened for it.
    """
    return product(c, "picked scores", e, s, _choose)


def chosen_values(c: Context, e: Masked, p: Masked, v: Masked) -> Shared:
    """Return the weighted sum of the chosen clusters' values: e [G, n, N], p [G, R, n, s], v [G, N, s, C] -> [G, R, C].

    The values may be in a larger ring; they are not copied into the smaller one.
    """
    bits = min(e.bits, p.bits, v.bits)
    e, p = e.to_ring(bits), p.to_ring(bits)
    groups, count, clusters = e.shape
    rows, size, channels = p.shape[1], v.shape[2], v.shape[3]
    frac = p.frac + v.frac
    out_shape = (groups, rows, channels)
    ep = c.deal("chosen weights", (groups, rows, clusters, size), bits, lambda: _spread(e.lam, p.lam, bits))

    def weighted() -> Tensor:  # sum_t p[r,j,t] v[i,t,c]: [G, R, n, N, C]
        flat = v.lam.permute(0, 2, 1, 3).reshape(groups, 1, size, clusters * channels)
        return ring.matmul(p.lam, flat, bits).reshape(groups, rows, count, clusters, channels)

    pv = c.deal("weighted values", (groups, rows, count, clusters, channels), bits, weighted)
    ev = c.deal("chosen values", (groups, count, size, channels), bits, lambda: _rows_by(e.lam, v.lam, bits))
    epv = c.deal("chosen sum", out_shape, bits, lambda: _weigh(_spread(e.lam, p.lam, bits), v.lam, bits))
    if not c.evaluating:
        return Shared(c.blank(out_shape), bits, frac)
    public = _spread(e.m, p.m, bits)
    share = (public if c.first else torch.zeros_like(public)) - _spread(e.lam, p.m, bits) - _spread(e.m, p.lam, bits) + ep
    out = _weigh(ring.reduce(share, bits), v.m, bits) - _weigh(public, v.lam, bits)
    out = out + _weigh_chosen(p.m, ev, bits) - epv
    left = e.m.reshape(groups, 1, 1, count * clusters)
    out = out + ring.matmul(left, pv.reshape(groups, rows, count * clusters, channels), bits)[:, :, 0]
    return Shared(ring.reduce(out, bits), bits, frac)
