"""Comparisons by one-time truth tables: less than zero, equality with zero, membership of [0, 2^n)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from tests.vectors.independent.formats import U, Words, reduce, word
from tests.vectors.independent.lookup import digit
from tests.vectors.independent.world import Masked, Open, Shared, Steps, World

Term = tuple[int, frozenset[str]]
Truth = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Predicate:
    """widths: of the digits, low to high. bits: name -> (digit, truth of (m's, lam's digit)). terms: the answer."""

    widths: list[int]
    bits: dict[str, tuple[int, Truth]]
    terms: list[Term]

    @property
    def subsets(self) -> list[frozenset[str]]:
        """Products of mask bits, short ones first, then by name."""
        found = {frozenset(s) for _, m in self.terms for n in range(1, len(m) + 1) for s in combinations(sorted(m), n)}
        return sorted(found, key=lambda s: (len(s), sorted(s)))


def even(bits: int, most: int = 8) -> list[int]:
    """Digits of at most so many bits, as even as can be, the wider ones low."""
    count = -(-bits // most)
    return [bits // count + int(i < bits % count) for i in range(count)]


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
    widths = even(bits, 6)
    return Predicate(widths, *_below(len(widths)))


def negative(bits: int) -> Predicate:
    """[x < 0]: a0 + (a1 - a0) borrow."""
    widths = even(bits)
    top, size = len(widths) - 1, 1 << widths[-1]
    named: dict[str, tuple[int, Truth]] = {"a0": (top, lambda m, lam: (m - lam) % size >= size // 2)}
    if top:
        named["a1"] = (top, lambda m, lam: (m - lam - 1) % size >= size // 2)
    lower, borrowed = _below(top)
    named |= lower
    terms: list[Term] = [(1, frozenset({"a0"}))]
    for k, term in borrowed:
        terms += [(k, term | {"a1"}), (-k, term | {"a0"})]
    return Predicate(widths, named, terms)


def zero(bits: int) -> Predicate:
    """[x = 0]: all digits are equal."""
    widths = even(bits)
    named = {f"eq{i}": (i, lambda m, lam: m == lam) for i in range(len(widths))}
    return Predicate(widths, named, [(1, frozenset(named))])


def member(bits: int, low_bits: int) -> Predicate:
    """[0 <= x < 2^low]: the higher digits are 0, without or with the low digit's borrow.

    The tables of the higher digits belong to lam >> low and (lam >> low) + 1, so their digits are given ready.
    """
    upper = even(bits - low_bits)
    named: dict[str, tuple[int, Truth]] = {"lt0": (0, lambda m, lam: m < lam)}
    for i in range(1, len(upper) + 1):
        for kind in "zn":
            named[f"{kind}{i}"] = (i, lambda m, lam: m == lam)
    z, n = (frozenset(f"{kind}{i}" for i in range(1, len(upper) + 1)) for kind in "zn")
    borrow = frozenset({"lt0"})
    return Predicate([low_bits, *upper], named, [(1, z), (-1, z | borrow), (1, n | borrow)])


class Bit:
    """Opened bits u = b ^ rho [names, ...] and the mask bits rho [parties, names, ...]; every b = u + (1 - 2 u) rho."""

    def __init__(self, w: World, predicate: Predicate, opened: Words, rho: Words) -> None:
        self.w, self.predicate, self.u, self.rho = w, predicate, opened, np.bitwise_xor.reduce(rho, 0)

    def _products(self) -> Words:
        names = list(self.predicate.bits)
        return np.stack(
            [np.prod(np.stack([self.rho[names.index(n)] for n in s]), 0, dtype=U) for s in self.predicate.subsets]
        )

    def _coefficients(self) -> tuple[Words, list[Words]]:
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

        return coefficient(frozenset()), [coefficient(s) for s in self.predicate.subsets]

    def _evaluate(self, op: str, bits: int, factor: Words | None) -> tuple[Words, Words]:
        """(the answer's public part, shares of the rest) times a factor that only the dealer knows."""
        value = self._products() if factor is None else self._products() * factor
        dealt = self.w.deal(op, value.shape, bits, value)
        constant, coefficients = self._coefficients()
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


def _ask(w: World, x: Masked, predicate: Predicate, digits: Callable[[str, int], Words]) -> Steps:
    """Tables over m's digits, their bits opened under rho. digits(name, place): the mask's digit for a bit's table."""
    widest = max(predicate.widths)
    size, word_bits = max(64, 1 << widest), 32 if widest <= 5 else 64
    starts = np.cumsum([0, *predicate.widths])
    tables, found = [], []
    for name, (place, truth) in predicate.bits.items():
        width = predicate.widths[place]
        lam = digits(name, place).astype(np.int64)[..., None]
        positions = np.arange(1 << width)
        bits = np.zeros((*x.shape, size), np.uint8)
        bits[..., : 1 << width] = truth(positions, lam)
        if name[0] == "a":  # beyond a sign digit's range its last entry goes on
            bits[..., 1 << width :] = bits[..., (1 << width) - 1, None]
        tables.append(np.packbits(bits, -1, bitorder="little").view("<u8").astype(U))
        found.append(digit(x.m, int(starts[place]), width, x.bits))
    value = np.stack(tables)
    dealt = w.deal("comparison tables", value.shape, word_bits, value, "xor")
    rho = w.random("mask bits", value.shape[:-1], 1)
    index = np.stack(found)
    words = np.take_along_axis(
        dealt, np.broadcast_to((index >> U(6)).astype(np.int64)[..., None], (*dealt.shape[:-1], 1)), -1
    )
    looked = (words[..., 0] >> (index & U(63))) & U(1)
    opened = yield Open(looked ^ rho, 1, "xor")
    return Bit(w, predicate, opened, rho)


def _own(x: Masked, predicate: Predicate) -> Callable[[str, int], Words]:
    starts = np.cumsum([0, *predicate.widths])
    return lambda name, place: digit(x.mask, int(starts[place]), predicate.widths[place], x.bits)


def less_than_zero(w: World, x: Masked) -> Steps:
    """[x < 0]."""
    predicate = negative(x.bits)
    return (yield from _ask(w, x, predicate, _own(x, predicate)))


def is_zero(w: World, x: Masked) -> Steps:
    """[x = 0]."""
    predicate = zero(x.bits)
    return (yield from _ask(w, x, predicate, _own(x, predicate)))


def borrow(w: World, x: Masked) -> Steps:
    """[m < lam]: the borrow out of these bits."""
    predicate = borrowing(x.bits)
    return (yield from _ask(w, x, predicate, _own(x, predicate)))


def within(w: World, x: Masked, low_bits: int) -> Steps:
    """[0 <= x < 2^low_bits]."""
    predicate = member(x.bits, low_bits)
    starts = np.cumsum([0, *predicate.widths[1:]])

    def digits(name: str, place: int) -> Words:
        if place == 0:
            return reduce(x.mask, low_bits)
        rest = (x.mask >> U(low_bits)) + U(int(name[0] == "n"))
        return reduce(rest >> U(int(starts[place - 1])), predicate.widths[place])

    return (yield from _ask(w, x, predicate, digits))
