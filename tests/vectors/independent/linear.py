"""Products, fixed weights, truncation, lift, three-factor products."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.vectors.independent.formats import U, Words, high, reduce, word
from tests.vectors.independent.incremental import Tree, read
from tests.vectors.independent.world import Masked, Open, Shared, Steps, World, on_parties

Bilinear = Callable[[Words, Words], Words]


def product(w: World, op: str, x: Masked, y: Masked, f: Bilinear = np.multiply) -> Shared:
    """[f(x, y)] = (party 0: f(m_x, m_y)) - f([lam_x], m_y) - f(m_x, [lam_y]) + [f(lam_x, lam_y)]."""
    bits = min(x.bits, y.bits)
    value = f(x.mask, y.mask)
    term = w.deal(op, value.shape, bits, value)
    out = term - on_parties(lambda lx, ly: f(lx, y.m) + f(x.m, ly), x.lam, y.lam)
    out[0] += f(x.m, y.m)
    return Shared(reduce(out, bits), bits, x.frac + y.frac)


def multiply(w: World, x: Masked, y: Masked) -> Shared:
    """Element by element."""
    return product(w, "multiply", x, y)


def matmul(w: World, x: Masked, y: Masked) -> Shared:
    """Matrices."""
    return product(w, "matmul", x, y, np.matmul)


def weight_product(w: World, x: Masked, weight: Masked) -> Shared:
    """x W in x's ring, for a weight that was opened in Z_2^64."""
    return product(w, "linear", x, weight, np.matmul)


def gain(w: World, x: Masked, vector: Masked) -> Shared:
    """x * w in x's ring, for a vector that was opened in Z_2^64."""
    return product(w, "gain", x, vector)


def truncate(w: World, x: Masked, count: int) -> Masked:
    """m >> t and lam >> t."""
    if count == 0:
        return x
    bits = x.bits - count
    lam = w.deal("truncate", x.shape, bits, high(x.mask, count, x.bits))
    return Masked(high(x.m, count, x.bits), lam, bits, x.frac - count)


def open_cut(w: World, x: Shared, count: int) -> Steps:
    """Two parties cut their shares, party 0 after it has added 2^t - 1; more truncate what they opened."""
    if count == 0 or w.parties > 2:
        opened = yield from w.open(x)
        return truncate(w, opened, count)
    raised = x.plus_public(U((1 << count) - 1))
    return (yield from w.open(Shared(high(raised.x, count, x.bits), x.bits - count, x.frac - count)))


def truncate_and_lift(w: World, x: Masked, count: int, bits: int, offset: int | None = None) -> Shared:
    """[x >> t] = (c >> t) - (offset >> t) - [lam >> t] + 2^(b - t) (1 - msb(c)) [msb(lam)], c = m + offset mod 2^b."""
    kept = x.bits - count
    carry = bits - kept
    counted = x.counted and count == 0 and carry > 0
    if counted:
        low = x.lam - (w.deal("lift wraps", x.shape, carry, x.around) << U(kept))
    else:
        low = w.deal("lift", x.shape, bits, high(x.mask, count, x.bits))
    if carry > 0:
        top = w.deal("lift carry", x.shape, carry, high(x.mask, x.bits - 1, x.bits))
    offset = 1 << (x.bits - 2) if offset is None else offset
    moved = reduce(x.m + word(offset), x.bits)
    out = -low
    out[0] += high(moved, count, x.bits) - word(offset >> count)
    if carry > 0:
        out += ((U(1) - high(moved, x.bits - 1, x.bits)) * top) << U(kept)
    return Shared(reduce(out, bits), bits, x.frac - count)


def raise_ring(w: World, x: Masked, count: int, bits: int) -> Steps:
    """<x >> t> modulo 2^K: the high part of its mask is new, so mu + (1 - msb(c)) msb(lam) is all that is opened.

    Where x is counted, shares of mu stand above those of lam, whose sum goes around as often as is dealt."""
    kept = x.bits - count
    if x.counted and count == 0:
        low = x.lam
        more = w.deal("lift wraps", x.shape, bits - kept, x.around)
    else:
        low = w.deal("lift", x.shape, bits, high(x.mask, count, x.bits))
        more = np.zeros_like(x.lam)
    top = w.deal("lift carry", x.shape, bits - kept, high(x.mask, x.bits - 1, x.bits))
    offset = 1 << (x.bits - 2)
    moved = reduce(x.m + word(offset), x.bits)
    carry = (U(1) - high(moved, x.bits - 1, x.bits)) * top
    above = yield from w.open(Shared(reduce(carry + more, bits - kept), bits - kept, 0))
    m = high(moved, count, x.bits) - word(offset >> count) + (above.m << U(kept))
    return Masked(reduce(m, bits), reduce(low + (above.lam << U(kept)), bits), bits, x.frac - count)


def lift(w: World, x: Masked, bits: int) -> Shared:
    """[x] in a larger ring."""
    return truncate_and_lift(w, x, 0, bits)


def output(w: World, x: Shared) -> Shared:
    """[x] made fresh by a dealt sharing of zero."""
    zero = w.deal("zero", x.shape, x.bits, np.zeros(x.shape, U))
    return Shared(reduce(x.x + zero, x.bits), x.bits, x.frac)


# ---- chosen clusters -------------------------------------------------------------------------------------------------
def _spread(e: Words, p: Words) -> Words:
    return np.einsum("gji,grjt->grit", e, p)


def picked_scores(w: World, e: Masked, s: Masked) -> Shared:
    """sum_i e[j,i] s[r,i,t]."""
    return product(w, "picked scores", e, s, lambda a, b: np.einsum("gji,grit->grjt", a, b))


def spread_weights(w: World, e: Masked, p: Masked) -> Shared:
    """sum_j e[j,i] p[r,j,t]."""
    return product(w, "spread weights", e, p, _spread)


def picked_by_rank(w: World, ranks: Masked, s: Masked, count: int, bits: int) -> tuple[Shared, Shared]:
    """sum_i [rank_i = j] s[r,i,t], and [rank_i = j]: payloads 1 and the masks of a cluster's scores at the rank's mask."""
    groups, rows, clusters, size = s.shape

    def by_cluster(t: Words) -> Words:
        return np.moveaxis(t, -3, -2).reshape(*t.shape[:-4], groups * clusters, rows * size)

    payloads = np.concatenate([np.ones((groups * clusters, 1), U), by_cluster(s.mask)], -1)[None]
    found = read(w, ranks, Tree([ranks.bits], range(count), 1 + rows * size, bits), payloads)[:, 0]
    ones, masks = found[..., :1], found[..., 1:]  # [parties, clusters, count, ...]
    picked = (ones * by_cluster(s.m)[:, None] - masks).reshape(2, groups, clusters, count, rows, size).sum(2, dtype=U)
    e = ones[..., 0].reshape(2, groups, clusters, count).transpose(0, 1, 3, 2)
    return Shared(reduce(np.moveaxis(picked, 3, 2), s.bits), s.bits, s.frac), Shared(reduce(e, bits), bits, 0)


def chosen_scores(w: World, e: Masked, q: Masked, k: Masked) -> Shared:
    """sum_(i,c) e[j,i] q[r,c] k[i,t,c], three factors multiplied out."""
    return _three(
        w,
        (e, q, k),
        "gji,grc,gitc->grjt",
        {
            (0, 1): ("chosen query", "gji,grc->grjic", "grjic,gitc->grjt"),
            (1, 2): ("query times keys", "grc,gitc->grit", "grit,gji->grjt"),
            (0, 2): ("chosen keys", "gji,gitc->gjtc", "gjtc,grc->grjt"),
        },
        "chosen scores",
    )


def chosen_values(w: World, e: Masked, p: Masked, v: Masked) -> Shared:
    """sum_(j,i,t) e[j,i] p[r,j,t] v[i,t,c], three factors multiplied out."""
    return _three(
        w,
        (e, p, v),
        "gji,grjt,gitc->grc",
        {
            (0, 1): ("chosen weights", "gji,grjt->grit", "grit,gitc->grc"),
            (1, 2): ("weighted values", "grjt,gitc->grjic", "grjic,gji->grc"),
            (0, 2): ("chosen values", "gji,gitc->gjtc", "gjtc,grjt->grc"),
        },
        "chosen sum",
    )


def _three(
    w: World,
    factors: tuple[Masked, Masked, Masked],
    whole: str,
    pairs: dict[tuple[int, int], tuple[str, str, str]],
    last: str,
) -> Shared:
    """x y z = (m_x - lam_x) (m_y - lam_y) (m_z - lam_z): dealt are the three products of two masks, and that of all."""
    bits = min(f.bits for f in factors)
    cut = [f.to(bits) for f in factors]
    m, masks = [f.m for f in cut], [f.mask for f in cut]
    out = np.zeros((w.parties, *np.einsum(whole, *m).shape), U)
    for (a, b), (op, inner, outer) in pairs.items():
        value = np.einsum(inner, masks[a], masks[b])
        dealt = w.deal(op, value.shape, bits, value)
        out += on_parties(lambda d, o=outer, rest=m[3 - a - b]: np.einsum(o, d, rest), dealt)
    value = np.einsum(whole, *masks)
    out -= w.deal(last, value.shape, bits, value)
    for i in range(3):
        mixed = [on_parties(lambda lam, i=i: np.einsum(whole, *(lam if j == i else m[j] for j in range(3))), cut[i].lam)]
        out -= mixed[0]
    out[0] += np.einsum(whole, *m)
    return Shared(reduce(out, bits), bits, cut[1].frac + cut[2].frac)


def reveal(x: Shared) -> Steps:
    """A value that is public by argument, opened in the clear."""
    return (yield Open(x.x, x.bits))
