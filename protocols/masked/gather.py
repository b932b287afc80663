"""Attention to secretly chosen clusters by three-factor products: only results are opened, nothing of the cache's size.

With e the one-hot matrix of chosen clusters, q the queries, K and V the cached keys and values in clusters of s tokens:

* scores S[r,j,t] = sum_(i,c) e[j,i] q[r,c] K[i,t,c];
* values o[r,c] = sum_(j,i,t) e[j,i] p[r,j,t] V[i,t,c].

All factors are masked. Multiplied out, each is a sum over the subsets of factors replaced by their masks. Subsets of one
mask are local, the others are contracted by the dealer before they are dealt, so what is dealt does not grow with N s C n.

The other way is in two steps of two factors, with an opening between them: the scores of all clusters are opened, and e
picks some of them (`picked_scores`); weights are spread over all clusters by e, zero where nothing was chosen, opened, and
weigh the values as any weights do (`spread_weights`). Little is dealt for it, and a round more is taken.

Where e's rows are those of masked ranks, two parties need not wait for e to be opened (`picked_by_rank`): a point function
of a rank's mask with payloads 1 and the masks of the cluster's scores, read at the ranks 0 to n - 1, gives column i of e and
its products with the cluster's scores.

All: local (0 rounds; the result is Shared). Offline elements a head, n chosen of N clusters: scores R n N C + R N s +
n s C + R n s; values R N s + R n N C + n s C + R C; picked R n s; spread R N s; of ranks 16 ceil(log2 N) bytes and R s + 1
elements a cluster, to each party. Online: nothing here; e's opening costs n N ring elements a head, once for all layers that
share it. Valid range: results below 2^(bits - 1). Error: none (exact in the ring).
Leaks: nothing, they are local (docs/security.md, "Attention to chosen clusters").
Sources: Beaver 1991 generalised to three factors (e.g. Ohata, Nuida 2020); Boyle, Gilboa, Ishai 2016 for point functions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mpc import ring
from mpc.wide import Wide, Words
from protocols.masked import idpf
from protocols.masked.context import Context
from protocols.masked.dealing import choose_dealing, key_cost, table_cost
from protocols.masked.forms import Form, by_bytes
from protocols.masked.product import product
from protocols.masked.shares import Masked, Shared


@dataclass(frozen=True)
class Sizes:
    """Public: G groups with R queries each choose n of N clusters of s tokens; keys and values have C channels."""

    groups: int
    rows: int
    count: int
    clusters: int
    size: int
    channels: int

    @property
    def chosen(self) -> int:
        """Elements of e."""
        return self.groups * self.count * self.clusters

    @property
    def tokens(self) -> int:
        """Scores, or weights, of all clusters."""
        return self.groups * self.rows * self.clusters * self.size

    @property
    def taken(self) -> int:
        """Scores, or weights, of the chosen clusters."""
        return self.groups * self.rows * self.count * self.size

    @property
    def contracted(self) -> int:
        """Elements that are dealt of e with a query or weights, and with keys or values."""
        return self.channels * (self.rows * self.chosen + self.groups * self.count * self.size)

    def score_forms(self, bits: int, parties: int) -> list[Form]:
        """Return what scores of a choice that is known cost: products of three factors, or those of all clusters opened."""
        dealt = self.tokens + self.taken
        return [
            by_bytes("products", 0, 0, (dealt + self.contracted) * bits / 8),
            by_bytes("opened", 1, self.tokens * bits * (parties - 1) / 8, dealt * bits / 8),
        ]

    def value_forms(self, bits: int, parties: int) -> list[Form]:
        """Return what weighted values cost: products of three factors, or weights spread over all clusters and opened."""
        dealt = self.tokens + self.groups * self.rows * self.channels
        return [
            by_bytes("products", 0, 0, (dealt + self.contracted) * bits / 8),
            by_bytes("opened", 1, self.tokens * bits * (parties - 1) / 8, dealt * bits / 8),
        ]

    def pick_forms(self, ranks: Masked, bits: int, parties: int) -> list[Form]:
        """Return what the scores of a new choice cost: by e once it is opened, or with two parties by its ranks."""
        elements = self.groups * self.clusters
        keys = parties == 2 and choose_dealing(elements, ranks.bits, bits, parties) == "dpf"
        cost = (key_cost if keys else table_cost)(elements, ranks.bits, bits)
        forms = [Form("rows", 1, 0, cost.dealt_bytes + self.taken * bits / 8, cost.party, cost.dealer)]
        if parties == 2:
            tree = rank_points(ranks, self.count, self.rows * self.size, bits)
            # seconds as for `zero_test.points_form`
            work, dealing = 3e-4 + elements * tree.work * 2.7e-8, 6e-4 + elements * (1e-6 + 5e-8 * tree.depth)
            forms.append(Form("ranks", 0, 0, 2 * tree.key_bytes(elements), work, dealing))
        return forms


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
    """Return the scores of the chosen clusters from those of all: e [G, n, N], s [G, R, N, t] -> [G, R, n, t]; local."""
    return product(c, "picked scores", e, s, _choose)


def rank_points(ranks: Masked, count: int, size: int, bits: int) -> idpf.Points:
    """Return the point functions of `picked_by_rank`, for `size` scores a cluster."""
    return idpf.Points((ranks.bits,), 0, count - 1, 1 + size, bits)


def picked_by_rank(c: Context, ranks: Masked, count: int, s: Masked, bits: int) -> tuple[Shared, Shared]:
    """Return the scores of the clusters with the first `count` ranks and the one-hot rows e [G, n, N], modulo 2^bits: ranks
    [G, N], s [G, R, N, t] -> [G, R, n, t]; local, two parties."""
    groups, rows, clusters, size = s.shape
    tree = rank_points(ranks, count, rows * size, bits)

    def by_cluster(t: Tensor) -> Tensor:
        return t.transpose(1, 2).reshape(groups, clusters, 1, rows * size)

    def payloads() -> Tensor:
        lam = by_cluster(s.lam).reshape(1, groups * clusters, rows * size)
        return torch.cat([torch.ones_like(lam[..., :1]), lam], -1)

    found = idpf.read_narrow(c, ranks, tree, payloads, _all_points)
    if not c.evaluating:
        scores, e = c.blank((groups, rows, count, size)), c.blank((groups, count, clusters))
    else:
        hot, hot_lam = found[..., :1], found[..., 1:]  # [G, N, count, ...]
        picked = (hot * by_cluster(s.m) - hot_lam).sum(1)
        scores = ring.reduce(picked, s.bits).reshape(groups, count, rows, size).transpose(1, 2)
        e = ring.reduce(hot[..., 0].transpose(1, 2), bits)
    return Shared(scores, s.bits, s.frac), Shared(e, bits, 0)


def _all_points(share: Words, m: Tensor, cut: slice) -> Words:
    """Return every payload of every point of the only level, [elements, points, values]."""
    assert not isinstance(share, Wide)
    return share[0].transpose(0, 1)


def spread_weights(c: Context, e: Masked, p: Masked) -> Shared:
    """Return the weights of all clusters' tokens, 0 where a cluster is not chosen: e [G, n, N], p [G, R, n, s] ->
    [G, R, N, s]; local."""
    bits = min(e.bits, p.bits)
    return product(c, "spread weights", e.to_ring(bits), p.to_ring(bits), _spread)


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
