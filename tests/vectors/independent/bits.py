"""Comparisons by one-time truth tables: less than zero, and borrows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from tests.vectors.independent.formats import U, Words, reduce, word
from tests.vectors.independent.world import Masked, Open, Shared, Steps, World

Term = tuple[int, frozenset[str]]
Truth = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Predicate:
    """digits: (lowest bit, width). bits: name -> (digit, truth of (m's, lam's digit)). terms: the
    answer, or what is added modulo 2 to the bit `flip`."""

    digits: list[tuple[int, int]]
    bits: dict[str, tuple[int, Truth]]
    terms: list[Term]
    flip: str | None = None

    @property
    def subsets(self) -> list[frozenset[str]]:
        """Products of mask bits, short ones first, then by name."""
        found = {frozenset(s) for _, m in self.terms for n in range(1, len(m) + 1) for s in combinations(sorted(m), n)}
        return sorted(found, key=lambda s: (len(s), sorted(s)))


def even(bits: int, most: int = 8) -> list[tuple[int, int]]:
    """Digits of at most so many bits, as even as can be, the wider ones low."""
    count = -(-bits // most)
    widths = [bits // count + int(i < bits % count) for i in range(count)]
    return [(sum(widths[:i]), width) for i, width in enumerate(widths)]


def _below(digits: int) -> tuple[dict[str, tuple[int, Truth]], list[Term]]:
    """[m < lam] of the lowest digits: lt_i + eq_i (what the digits below say)."""
    named: dict[str, tuple[int, Truth]] = {}
    terms: list[Term] = []
    for i in range(digits):
        named[f"lt{i}"] = (i, lambda m, lam: m < lam)
        if i:
            named[f"eq{i}"] = (i, lambda m, lam: m == lam)
        terms = [(1, frozenset({f"lt{i}"}))] + [(k, term | {f"eq{i}"}) for k, term in terms]
    return named, terms


def borrowing(bits: int) -> Predicate:
    """[m < lam], from digits of at most 6 bits."""
    digits = even(bits, 6)
    return Predicate(digits, *_below(len(digits)))


def negative(bits: int, most: int = 8) -> Predicate:
    """[x < 0]: s xor t borrow."""
    digits = even(bits, most)
    top, size = len(digits) - 1, 1 << digits[-1][1]

    def sign(m: np.ndarray, lam: np.ndarray) -> np.ndarray:
        return (m - lam) % size >= size // 2

    named: dict[str, tuple[int, Truth]] = {"s": (top, sign)}
    if top:
        named["t"] = (top, lambda m, lam: sign(m, lam) ^ sign(m - 1, lam))
    lower, borrowed = _below(top)
    return Predicate(digits, named | lower, [(k, term | {"t"}) for k, term in borrowed], "s")


def digit_bits(bits: int, result: int) -> int:
    """Bits of a sign's digits with which tables, products modulo 2^result and opened bits are fewest; of equals the most."""

    def moved(most: int) -> int:
        p = negative(bits, most)
        return sum(1 << width for _, width in p.digits) + (len(p.subsets) + 1) * result + len(p.bits)

    return min(range(8, 3, -1), key=moved)


class Bit:
    """Opened bits u = b ^ rho [names, ...] and the mask bits rho [parties, names, ...]; every b = u + (1 - 2 u) rho."""

    def __init__(self, w: World, predicate: Predicate, opened: Words, rho: Words) -> None:
        self.w, self.predicate, self.u, self.shares = w, predicate, opened, rho
        self.rho = np.bitwise_xor.reduce(rho, 0)

    def products(self) -> Words:
        """Products of mask bits; where a bit is added modulo 2, times 1 - 2 its mask, and that mask last."""
        names = list(self.predicate.bits)
        found = [np.prod(np.stack([self.rho[names.index(n)] for n in s]), 0, dtype=U) for s in self.predicate.subsets]
        if self.predicate.flip is not None:
            mask = self.rho[names.index(self.predicate.flip)]
            found = [*(product * (U(1) - U(2) * mask) for product in found), mask]
        return np.stack(found)

    def coefficients(self) -> tuple[Words, list[Words]]:
        """The answer's public part, and the public coefficient of each product."""
        names = list(self.predicate.bits)
        u = {n: self.u[i] for i, n in enumerate(names)}
        one = np.ones_like(self.u[0])

        def coefficient(subset: frozenset[str]) -> Words:
            out = np.zeros_like(one)
            for k, term in self.predicate.terms:
                if subset <= term:
                    part = one * word(k)
                    for n in term:
                        part = part * (U(1) - U(2) * u[n] if n in subset else u[n])
                    out += part
            return out

        constant, rest = coefficient(frozenset()), [coefficient(s) for s in self.predicate.subsets]
        if self.predicate.flip is None:
            return constant, rest
        # the bit is u + (1 - 2u) mask; b xor c = b + (1 - 2b) c
        other, turn = u[self.predicate.flip], U(1) - U(2) * u[self.predicate.flip]
        return other + turn * constant, [*(turn * r for r in rest), turn * (U(1) - U(2) * constant)]

    def _evaluate(self, op: str, bits: int, factor: Words | None) -> tuple[Words, Words]:
        """(the answer's public part, shares of the rest) times a factor that only the dealer knows."""
        value = self.products() if factor is None else self.products() * factor
        dealt = self.w.deal(op, value.shape, bits, value)
        constant, coefficients = self.coefficients()
        return constant, np.stack([sum(c * d for c, d in zip(coefficients, own, strict=True)) for own in dealt])

    def share(self, bits: int) -> Shared:
        """The bit, modulo 2^bits."""
        constant, out = self._evaluate("bit", bits, None)
        out[0] += constant
        return Shared(reduce(out, bits), bits, 0)

    def times(self, y: Masked) -> Shared:
        """bit y = m_y [bit] - [bit lam_y]."""
        bit = self.share(y.bits)
        constant, rest = self._evaluate("bit times mask", y.bits, y.mask)
        return Shared(reduce(y.m * bit.x - constant * y.lam - rest, y.bits), y.bits, y.frac)


def ask(w: World, x: Masked, predicate: Predicate) -> Steps:
    """One-hot vectors of lam's digits as bits; what is asked is the parity of those where it is true, opened under rho."""
    shares: dict[int, Words] = {}
    for width in sorted({width for _, width in predicate.digits}):
        members = [i for i, (_, of) in enumerate(predicate.digits) if of == width]
        size, word_bits = 1 << width, min(64, 1 << width)
        lam = [x.mask >> U(low) & U(size - 1) for low, _ in (predicate.digits[i] for i in members)]
        hot = (np.arange(size, dtype=U) == np.stack(lam)[..., None]).astype(np.uint8)
        padded = np.concatenate([hot, np.zeros((*hot.shape[:-1], max(64, size) - size), np.uint8)], -1)
        value = np.packbits(padded, -1, bitorder="little").view("<u8").astype(U)
        dealt = w.deal("comparison digits", value.shape, word_bits, value, "xor")
        for place, i in enumerate(members):
            shares[i] = np.unpackbits(
                np.ascontiguousarray(dealt[:, place]).astype("<u8").view(np.uint8), axis=-1, bitorder="little"
            )[..., :size]
    rho = w.random("mask bits", (len(predicate.bits), *x.shape), 1)
    looked = []
    for name, (place, truth) in predicate.bits.items():
        low, width = predicate.digits[place]
        m = ((x.m >> U(low)) & U((1 << width) - 1)).astype(np.int64)
        true = truth(m[..., None], np.arange(1 << width)).astype(np.uint8)
        # of lt, and of the sign where it holds for lam's digit 0, the others are read, and party 0 turns the result
        turned = np.ones_like(true[..., 0]) if name[:2] == "lt" else true[..., 0] if name == "s" else 0 * true[..., 0]
        own = ((shares[place] & (true ^ turned[..., None])).sum(-1) % 2).astype(U)
        own[0] ^= turned.astype(U)
        looked.append(own)
    opened = yield Open(np.stack(looked, 1) ^ rho, 1, "xor")
    return Bit(w, predicate, opened, rho)


def less_than_zero(w: World, x: Masked, most: int = 8) -> Steps:
    """[x < 0]."""
    return (yield from ask(w, x, negative(x.bits, most)))


def borrow(w: World, x: Masked) -> Steps:
    """[m < lam]: the borrow out of these bits."""
    return (yield from ask(w, x, borrowing(x.bits)))
