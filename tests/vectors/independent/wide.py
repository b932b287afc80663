"""Lifted factors and rings of more than 64 bits, in Python's integers: arrays of objects [parties, ...]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.vectors.independent.formats import U, Words, pack
from tests.vectors.independent.linear import open_cut
from tests.vectors.independent.results import close, exact
from tests.vectors.independent.world import Masked, Open, Shared, Steps, World

Integers = np.ndarray[Any, Any]


def integers(x: Words) -> Integers:
    """Words as integers, not negative."""
    return x.astype(object)


def words(x: Integers, bits: int) -> Words:
    """Integers modulo 2^bits of at most 64."""
    return (x % (1 << bits)).astype(U)


@dataclass(frozen=True)
class Wide:
    """x [parties, ...]: shares modulo 2^bits, 64 < bits <= 128."""

    x: Integers
    bits: int
    frac: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the value."""
        return self.x.shape[1:]


def sharing(x: Integers, bits: int, frac: int) -> Shared | Wide:
    """Whichever holds the ring."""
    return Wide(x % (1 << bits), bits, frac) if bits > 64 else Shared(words(x, bits), bits, frac)


def deal(w: World, op: str, shape: Sequence[int], bits: int, value: Integers) -> Integers:
    """Low words; then, modulo 2^(bits - 64), what their sum leaves of the value."""
    if bits <= 64:
        return integers(w.deal(op, shape, bits, words(value, bits)))
    low = integers(w.deal(op, shape, 64, words(value, 64)))
    rest = (value - low.sum(0)) >> 64
    return low + (integers(w.deal(f"{op}, high", shape, bits - 64, words(rest, bits - 64))) << 64)


def random(w: World, op: str, shape: Sequence[int], bits: int) -> Integers:
    """Shares that are drawn: low words, then the rest."""
    low = integers(w.random(op, shape, min(bits, 64)))
    return low + (integers(w.random(f"{op}, high", shape, bits - 64)) << 64) if bits > 64 else low


# ---- lifted factors --------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Term:
    """What the dealer knows, the public number that it is times, and how often 2 divides that."""

    name: str
    known: Integers
    public: Integers | int
    shift: int


def form(x: Masked, bits: int, lowest: int | None = None) -> tuple[Integers, list[_Term]]:
    """x = public + the sum of the terms, modulo 2^bits. lowest: of x, if not -2^(k - 2)."""
    mask = integers(x.mask)
    if x.bits >= bits:
        return integers(x.m), [_Term("mask", mask, -1, 0)]
    offset = 1 << (x.bits - 2) if lowest is None else -lowest
    moved = (integers(x.m) + offset) % (1 << x.bits)
    no_wrap_seen = 1 - (moved >> (x.bits - 1))
    top = _Term("top bit", mask >> (x.bits - 1), no_wrap_seen << x.bits, x.bits)
    return moved - offset, [_Term("mask", mask, -1, 0), top]


def _own(w: World, op: str, x: Masked, terms: list[_Term], bits: int) -> Integers:
    if len(terms) == 1:
        return -integers(x.lam)
    if x.counted:
        wraps = deal(w, f"{op}: wraps", x.shape, bits - x.bits, integers(x.around)) << x.bits
        (top,) = terms[1:]
        carry = top.public * deal(w, f"{op}: {top.name}", x.shape, bits - x.bits, top.known)
        return np.asarray(wraps - integers(x.lam) + carry)
    found = [t.public * deal(w, f"{op}: {t.name}", x.shape, bits - t.shift, t.known) for t in terms]
    return np.asarray(found[0] + found[1])


def multiply(w: World, op: str, x: Masked, y: Masked, bits: int) -> Shared | Wide:
    """(public + terms) (public + terms)."""
    (a, left), (b, right) = form(x, bits), form(y, bits)
    out = _own(w, f"{op}, left", x, left, bits) * b
    out = out + _own(w, f"{op}, right", y, right, bits) * a
    for s in left:
        for t in right:
            if s.shift + t.shift < bits:
                name, value = f"{op}: {s.name} by {t.name}", s.known * t.known
                out = out + s.public * t.public * deal(w, name, value.shape, bits - s.shift - t.shift, value)
    out[0] += a * b
    return sharing(out, bits, x.frac + y.frac)


def multiply_known(w: World, op: str, x: Masked, factor: Integers, bits: int, lowest: int | None = None) -> Shared | Wide:
    """(public + terms) F."""
    public, terms = form(x, bits, lowest)
    out = deal(w, f"{op}: factor", x.shape, bits, factor) * public
    for t in terms:
        out = out + t.public * deal(w, f"{op}: factor: {t.name}", x.shape, bits - t.shift, t.known * factor)
    return sharing(out, bits, x.frac)


def veiled_sum(w: World, op: str, terms: Sequence[tuple[Masked, Integers, int]], rings: tuple[int, int]) -> Steps:
    """<sum of x F 2^s, cut>: (public + terms) F with a random number of each party in place of masks times F. terms: (x, F,
    s). rings: before it is cut, and by how much it is."""
    bits, count = rings
    forms = [form(x, bits) for x, _, _ in terms]
    out: Any = 0
    for (public, _), (x, factor, s) in zip(forms, terms, strict=True):
        out = out + (deal(w, f"{op}: factor", x.shape, bits - s, factor) * public << s)
    fresh = random(w, f"{op}: veil", terms[0][0].shape, bits)
    out = out - fresh
    for (_, known), (x, factor, s) in zip(forms, terms, strict=True):
        for t in known[1:]:
            if s + t.shift < bits:
                out = out + (
                    t.public * deal(w, f"{op}: factor: {t.name}", x.shape, bits - t.shift - s, t.known * factor) << s
                )
    masks: Any = sum(known[0].known * factor << s for (_, known), (_, factor, s) in zip(forms, terms, strict=True))
    left, veil = bits - count, (masks - fresh.sum(0)) % (1 << bits)
    if w.parties == 2:
        out[0] += 1 << (count - 1)
        m = yield Open(words(out % (1 << bits) >> count, left), left)
    elif bits > 64:
        m = words((yield _Open(out % (1 << bits), bits)) >> count, left)
    else:
        m = (yield Open(words(out, bits), bits)) >> U(count)
    return Masked(m, w.deal("veil", m.shape, left, words(veil >> count, left)), left, 0)


def lift(w: World, x: Masked, bits: int, op: str = "lift", lowest: int | None = None) -> Shared | Wide:
    """public + terms."""
    public, terms = form(x, bits, lowest)
    out = _own(w, op, x, terms, bits)
    out[0] += public
    return sharing(out, bits, x.frac)


def square_sums(w: World, x: Masked, bits: int) -> Shared:
    """Public squares, twice public times terms, twice the product of both terms, and the sum of the masks' squares."""
    public, terms = form(x, bits)
    out = 2 * public * _own(w, "squares", x, terms, bits)
    if len(terms) > 1:
        mask, top = terms
        cross = deal(w, "squares: mask by top bit", x.shape, bits - x.bits, mask.known * top.known)
        out = out + 2 * mask.public * top.public * cross
    out[0] += public * public
    squares = (terms[0].known ** 2).sum(-1, keepdims=True)
    rows = out.sum(-1, keepdims=True) + deal(w, "squares: squares", squares.shape, bits, squares)
    return Shared(words(rows, bits), bits, 2 * x.frac)


# ---- openings --------------------------------------------------------------------------------------------------------
@dataclass
class _Open:
    """Everybody's share to everybody: low words, then high ones."""

    shares: Integers
    bits: int

    def bytes_of(self, sender: int, receiver: int) -> bytes:
        """Over one link."""
        x = self.shares[sender]
        return pack(words(x, 64), 64) + pack(words(x >> 64, self.bits - 64), self.bits - 64)

    def result(self) -> Integers:
        """What everybody knows then."""
        return np.asarray(self.shares.sum(0) % (1 << self.bits))


def cut(w: World, x: Shared | Wide, count: int) -> Steps:
    """[x / 2^count], opened between; what fits a word stays as it is."""
    return x if isinstance(x, Shared) else (yield from cut_masked(w, x, count)).shared


def cut_masked(w: World, x: Wide, count: int) -> Steps:
    """<x / 2^count>."""
    left, frac = x.bits - count, x.frac - count
    if w.parties == 2:
        raised = x.x.copy()
        raised[0] += (1 << count) - 1
        kept = Shared(words(raised % (1 << x.bits) >> count, left), left, frac)
        return (yield from open_cut(w, kept, 0))
    lam = random(w, "open", x.shape, x.bits)
    m = yield _Open((x.x + lam) % (1 << x.bits), x.bits)
    mask = lam.sum(0) % (1 << x.bits) >> count
    short = w.deal("truncate", x.shape, left, words(mask, left))
    return Masked(words(m >> count, left), short, left, frac)


# ---- programs of the vectors -----------------------------------------------------------------------------------------
def known_factor(w: World, x: Masked, bits: int, count: int) -> Steps:
    """A number that the dealer makes of the mask, and x times it."""
    factor = integers(x.mask) % 256 - 128
    found = yield from cut(w, multiply_known(w, "known", x, factor, bits), count)
    return [found, Shared(w.deal("number", x.shape, 16, words(factor, 16)), 16, 0)]


def veiled_factor(w: World, x: Masked, bits: int, count: int) -> Steps:
    """The same, opened behind a veil."""
    factor = integers(x.mask) % 256 - 128
    found = yield from veiled_sum(w, "known", [(x, factor, 0)], (bits, count))
    cut_off = Masked(found.m, found.lam, found.bits, x.frac - count)
    return [cut_off.shared, Shared(w.deal("number", x.shape, 16, words(factor, 16)), 16, 0)]


def judge_known(x: np.ndarray, bits: int, count: int, most: float = 1.0) -> Any:
    """x times the number that was opened beside it, less than `most` units of what is left off."""

    def check(found: Sequence[np.ndarray]) -> None:
        assert set(np.unique(found[1])) <= set(range(-128, 128))
        assert (np.abs(found[0] - x * found[1]) < most * 2.0**count).all()

    return check


def square_of_mask(w: World, x: Masked, bits: int, count: int) -> Steps:
    """Dealt wide, then cut."""
    value = integers(x.mask) ** 2
    return (yield from cut(w, Wide(deal(w, "wide", x.shape, bits, value), bits, 0), count))


def judge_product(x: np.ndarray, y: np.ndarray, bits: int, count: int) -> Any:
    """Exact where nothing was cut; else below a unit, as far as float64 can tell."""
    return close(x * y, np.maximum(2.0**count, np.abs(x * y) * 2.0**-50)) if count else exact(x * y)
