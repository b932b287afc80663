"""The suite `crypten`: products, truncation, comparisons by carry trees over opened differences; rings Z_2^64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.vectors.independent.formats import Stream, U, Words, reduce, word
from tests.vectors.independent.world import Open, Steps, World, on_parties


@dataclass
class Opens:
    """Several openings in one round."""

    parts: list[Open]

    def bytes_of(self, sender: int, receiver: int) -> bytes:
        """Over one link."""
        return b"".join(p.bytes_of(sender, receiver) for p in self.parts)

    def result(self) -> list[Words]:
        """All of them."""
        return [p.result() for p in self.parts]


def public(w: World, x: Words, constant: Words | np.uint64) -> Words:
    """x plus a constant: party 0 adds."""
    shape = np.broadcast_shapes(x.shape[1:], np.shape(constant))
    out = np.stack([np.broadcast_to(share, shape) for share in x])
    out[0] += constant
    return out


# ---- products --------------------------------------------------------------------------------------------------------
def beaver(w: World, op: str, x: Words, y: Words, f: Callable[[Words, Words], Words]) -> Steps:
    """[f(x, y)] = [c] + f(e, [b]) + f([a], d) + f(e, d), e = x - a and d = y - b opened."""
    a, b = w.random(f"{op} a", x.shape[1:]), w.random(f"{op} b", y.shape[1:])
    value = f(a.sum(0, dtype=U), b.sum(0, dtype=U))
    c = w.deal(f"{op} c", value.shape, 64, value)
    e, d = yield Opens([Open(x - a, 64), Open(y - b, 64)])
    out = c + on_parties(lambda own_a, own_b: f(e, own_b) + f(own_a, d), a, b)
    out[0] += f(e, d)
    return out


def mul(w: World, x: Words, y: Words) -> Steps:
    """Element by element."""
    return (yield from beaver(w, "mul", x, y, np.multiply))


def matmul(w: World, x: Words, y: Words) -> Steps:
    """Matrices."""
    return (yield from beaver(w, "matmul", x, y, np.matmul))


def square(w: World, x: Words) -> Steps:
    """[x^2] = [r^2] + 2 e [r] + e^2."""
    r = w.random("square r", x.shape[1:])
    rr = w.deal("square rr", x.shape[1:], 64, r.sum(0, dtype=U) ** U(2))
    e = yield Open(x - r, 64)
    return public(w, rr + U(2) * r * e, e * e)


def matmul_fixed(w: World, x: Words, weight: Words, difference: Words, mask: Words) -> Steps:
    """[x W] = (x - a) [W] + [a] (W - b) + [a b]; mask: the shares of b, difference: the opened W - b."""
    a = w.random("fixed a", x.shape[1:])
    value = np.matmul(a.sum(0, dtype=U), mask.sum(0, dtype=U))
    ab = w.deal("fixed ab", value.shape, 64, value)
    e = yield Open(x - a, 64)
    return ab + on_parties(lambda own, own_a: np.matmul(e, own) + np.matmul(own_a, difference), weight, a)


def keep(w: World, op: str, x: Words) -> Steps:
    """(x - b opened, shares of b)."""
    mask = w.random(op, x.shape[1:])
    return (yield Open(x - mask, 64)), mask


@dataclass
class Cut:
    """x that loses `count` bits: its mask, shares of what is dealt of it, and what is opened."""

    count: int
    mask: Words
    upper: Words
    top: Words
    blinded: Words

    @staticmethod
    def deal(w: World, x: Words, count: int) -> Cut:
        """r, r >> t and msb(r); x + 2^62 + r."""
        r = w.random("truncation mask", x.shape[1:])
        mask = r.sum(0, dtype=U)
        upper = w.deal("truncation high part", x.shape[1:], 64, mask >> U(count))
        bits = next(b for b in (8, 16, 32, 64) if b >= count)
        top = w.deal("truncation top bit", x.shape[1:], bits, mask >> U(63))
        return Cut(count, mask, upper, top, public(w, x + r, U(1 << 62)))

    def value(self, w: World, m: Words) -> Words:
        """(m >> t) - 2^(62 - t) - [r >> t] + 2^(64 - t) (1 - msb(m)) [msb(r)]."""
        x = (((U(1) - (m >> U(63))) * self.top) << U(64 - self.count)) - self.upper
        return public(w, x, (m >> U(self.count)) - U(1 << (62 - self.count)))


def truncate_together(w: World, items: Sequence[tuple[Words, int]]) -> Steps:
    """Several values in one round."""
    cuts = [Cut.deal(w, x, count) if count else None for x, count in items]
    asked = [Open(cut.blinded, 64) for cut in cuts if cut]
    if not asked:
        return [x for x, _ in items]
    opened = iter((yield Opens(asked)))
    return [cut.value(w, next(opened)) if cut else x for cut, (x, _) in zip(cuts, items, strict=True)]


def truncate(w: World, x: Words, count: int) -> Steps:
    """One value."""
    return (yield from truncate_together(w, [(x, count)]))[0]


def rescale(w: World, x: Words, bits: int, wanted: int) -> Steps:
    """x with `wanted` instead of `bits` fraction bits."""
    if wanted >= bits:
        return x << U(wanted - bits)
    return (yield from truncate(w, x, bits - wanted))


# ---- comparisons -----------------------------------------------------------------------------------------------------
def spread(x: Words, width: int) -> Words:
    """Bit i of each word moves to the position that has the index bits of i in reverse."""
    index_bits = width.bit_length() - 1
    out = np.zeros_like(x)
    for i in range(width):
        to = int(f"{i:0{index_bits}b}"[::-1], 2)
        out |= ((x >> U(i)) & U(1)) << U(to)
    return out


def bit_and(w: World, left: Words, right: Words, bits: int) -> Steps:
    """left [parties, ...] AND each of right [parties, q, ...], XOR-shared words."""
    both = np.concatenate([left[:, None], right], 1)
    masks = w.random("and masks", both.shape[1:], bits, "xor")
    whole = np.bitwise_xor.reduce(masks, 0)
    product = w.deal("and product", right.shape[1:], bits, whole[:1] & whole[1:], "xor")
    opened = yield Open(both ^ masks, bits, "xor")
    return product ^ (opened[:1] & right) ^ (masks[:, :1] & opened[1:])


def less_than(w: World, x: Words, thresholds: Sequence[int], bits: int = 64, drop: int = 0) -> Steps:
    """XOR-shared [x < threshold], [parties, thresholds, ...]."""
    return (yield from less_than_together(w, [(x, thresholds, bits, drop)]))[0]


def less_than_together(w: World, items: Sequence[tuple[Words, Sequence[int], int, int]]) -> Steps:
    """Several comparisons in the rounds of the widest."""
    asked, spreads = [], []
    for x, _, bits, drop in items:
        flat = (x >> U(drop)).reshape(w.parties, -1)
        r = w.random("comparison mask", flat.shape[1:], bits)
        mask = reduce(r.sum(0, dtype=U), bits)
        spreads.append(w.deal("comparison bits", flat.shape[1:], bits, spread(mask, bits), "xor"))
        asked.append(Open(reduce(flat + r, bits), bits))
    parts = []
    for (_, thresholds, bits, drop), m, r_bits in zip(items, (yield Opens(asked)), spreads, strict=True):
        limits = np.array([word(t >> drop) for t in thresholds], U)[:, None]
        difference = (m[None] - limits).reshape(-1)
        parts.append(borrows(difference, np.tile(r_bits, len(thresholds)), bits))
    signs = yield from tree(w, parts, [bits for _, _, bits, _ in items])
    return [s.reshape(w.parties, len(t), *x.shape[1:]) for s, (x, t, _, _) in zip(signs, items, strict=True)]


def borrows(difference: Words, r_bits: Words, bits: int) -> tuple[Words, Words, Words]:
    """(generate, propagate, sign without the borrow) of difference - r, as XOR shares."""
    known = spread(reduce(difference, bits), bits)
    top = U(bits - 1)
    below = U((1 << (bits - 1)) - 1)
    generate, propagate, sign = ~known & r_bits & below, r_bits & below, (r_bits >> top) & U(1)
    propagate[0] ^= (~known & below) | (word(-1) << top)
    sign[0] ^= (known >> top) & U(1)
    return generate, propagate, sign


def tree(w: World, parts: Sequence[tuple[Words, Words, Words]], widths: Sequence[int]) -> Steps:
    """Halve the words until one bit is left; narrower comparisons join when the tree has come down to them."""
    order = sorted(range(len(parts)), key=lambda i: -widths[i])
    width = widths[order[0]]
    g = p = np.zeros((w.parties, 0), U)
    while width > 1:
        joining = [i for i in order if widths[i] == width]
        g = np.concatenate([g, *(parts[i][0] for i in joining)], 1)
        p = np.concatenate([p, *(parts[i][1] for i in joining)], 1)
        width //= 2
        mask = U((1 << width) - 1)
        right = np.stack([g & mask, p & mask], 1) if width > 1 else (g & mask)[:, None]
        update = yield from bit_and(w, (p >> U(width)) & mask, right, width)
        g, p = ((g >> U(width)) & mask) ^ update[:, 0], update[:, -1]
    out: list[Any] = [None] * len(parts)
    start = 0
    for i in order:
        sign = parts[i][2]
        out[i] = (g[:, start : start + sign.shape[1]] ^ sign) & U(1)
        start += sign.shape[1]
    return out


def _dealt_bit(w: World, shape: Sequence[int]) -> tuple[Words, Words, Words]:
    """(XOR shares of a dealt bit, its additive shares, the bit)."""
    rho = w.random("bit mask", shape, 1, "xor")
    whole = np.bitwise_xor.reduce(rho, 0)
    return rho, w.deal("bit mask as sum", shape, 64, whole), whole


def to_arithmetic(w: World, bit: Words) -> Steps:
    """Additive shares of XOR-shared bits."""
    rho, as_sum, _ = _dealt_bit(w, bit.shape[1:])
    opened = yield Open(bit ^ rho, 1, "xor")
    return public(w, as_sum * (U(1) - U(2) * opened), opened)


def to_arithmetic_under(w: World, condition: Words, bits: Words, others: Words) -> Steps:
    """Additive shares of the condition, of condition AND each of `bits`, of `others`."""
    under = bits.shape[1]
    both = np.concatenate([condition[:, None], bits, others], 1)
    rho, as_sum, whole = _dealt_bit(w, both.shape[1:])
    product = w.deal("bit mask product", bits.shape[1:], 64, whole[:1] & whole[1 : 1 + under])
    u = yield Open(both ^ rho, 1, "xor")
    sign = U(1) - U(2) * u
    plain = sign * as_sum
    part = slice(1, 1 + under)
    masked = u[:1] * plain[:, part] + u[part] * plain[:, :1] + sign[:1] * sign[part] * product
    masked = public(w, masked, u[:1] * u[part])
    plain = public(w, plain, u)
    return plain[:, 0], masked, plain[:, 1 + under :]


def select(w: World, bits: Words, x: Words) -> Steps:
    """bit x for each of XOR-shared bits [parties, q, ...]; and the bits as additive shares."""
    rho, as_sum, whole = _dealt_bit(w, bits.shape[1:])
    a = w.random("selection mask", x.shape[1:])
    rho_a = w.deal("selection product", bits.shape[1:], 64, whole * a.sum(0, dtype=U))
    u, e = yield Opens([Open(bits ^ rho, 1, "xor"), Open(x - a, 64)])
    sign = U(1) - U(2) * u
    product = u * x[:, None] + sign * (e * as_sum + rho_a)
    return product, public(w, sign * as_sum, u)


def complement(bit: Words) -> Words:
    """1 - bit of an XOR-shared bit."""
    out = bit.copy()
    out[0] ^= U(1)
    return out


# ---- zero-sharings ---------------------------------------------------------------------------------------------------
@dataclass
class Seeds:
    """A seed over each link, of its sender's choice."""

    links: dict[tuple[int, int], bytes]

    def bytes_of(self, sender: int, receiver: int) -> bytes:
        """The seed of a pair; the party with the higher index draws it."""
        return self.links[sender, receiver] if sender > receiver else b""

    def result(self) -> dict[tuple[int, int], bytes]:
        """All of them."""
        return self.links


Pairs = dict[tuple[int, int], Stream]


def agreed(w: World) -> Steps:
    """A generator of each pair of parties."""
    seeds = yield Seeds(w.next_messages())
    return {pair: Stream(seed) for pair, seed in seeds.items()}


def zero_sharing(w: World, shape: Sequence[int], kind: str = "sum") -> Steps:
    """The first one of a run."""
    return zeros(w, (yield from agreed(w)), shape, kind)


def zeros(w: World, pairs: Pairs, shape: Sequence[int], kind: str = "sum") -> Words:
    """Party i's part: the sum of its pairs' elements, + with higher parties, - with lower ones; or their XOR."""
    out = np.zeros((w.parties, *shape), U)
    for (upper, lower), stream in pairs.items():
        drawn = stream.elements(shape, 64)
        if kind == "xor":
            out[lower] ^= drawn
            out[upper] ^= drawn
        else:
            out[lower] += drawn
            out[upper] -= drawn
    return out
