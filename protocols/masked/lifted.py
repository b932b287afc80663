"""Element-wise products whose factors are lifted on the way: no opening before them, however small the factors' rings are.

For |x| < 2^(k - 2) a masked x is an integer that is linear in what the dealer knows. With the public c = m + 2^(k - 2)
modulo 2^k, w = 1 - msb(c), and t = msb(lam),

    x = (c - 2^(k - 2)) - lam + 2^k w t

since c has wrapped exactly where w t = 1 (`truncation.truncate_and_lift`). Where more is known of x than |x| < 2^(k - 2),
2^(k - 2) is less its lowest value (`Masked.starting`). A product of such x and y, or of x and a number
that the dealer knows, is a sum of public numbers times dealt ones: local, in any ring, up to 128 bits. So a value is opened
once, in the ring that its own range needs, and its product has the bits that the next step needs once it is cut.

Rounds: 0. Error: none (exact in the result's ring, which the caller chooses so that the result fits).
Offline, result of K bits, x of k and y of j: K + (K - k) of x and K + (K - j) of y, where they are smaller, 2 (K - k) where
the dealer knows how often x's shares of lam go around (`Masked.wraps`): then a party has its own of lam; of the product
of the masks K + (K - k) + (K - j) + (K - k - j); each where it is positive, per element.
Leaks: nothing, they are local (docs/security.md, "Products").
Sources: Beaver 1991; SIGMA (Gupta et al. 2024) for the lift.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mpc import ring
from mpc.ring import RING_BITS
from mpc.shape_tensor import broadcast
from mpc.wide import WIDE_BITS, Wide, Words, widened_unsigned
from protocols.masked.context import Context, require
from protocols.masked.shares import Masked, Shared, WideShared
from protocols.masked.wide import deal

Known = Callable[[], Words]
"""What the dealer knows: signed numbers, called at the dealer alone."""


Fresh = Callable[[Known], Words]
"""Gives what is taken from a sum in place of the products of masks and factors, which it gets."""


@dataclass(frozen=True)
class Factor:
    """A number that the dealer knows, with so many fraction bits."""

    known: Known
    frac: int


@dataclass(frozen=True, repr=False)
class Choice:
    """A bit that was opened masked: opened is the bit xor rho, public at a party; rho is whole at the dealer."""

    opened: Tensor
    rho: Tensor


@dataclass(frozen=True, repr=False)
class _Term:
    """A number that the dealer knows times a public one: -1, or 2^shift w with public bits w (None at other roles)."""

    name: str
    known: Known
    shift: int
    w: Tensor | None = None

    def times_public(self, x: Words) -> Words:
        """Return x times the public number."""
        if self.name == "mask":
            return -x
        return (x if self.w is None else _where(self.w, x)) << self.shift


@dataclass(frozen=True, repr=False)
class _Lifted:
    """x as a sum: public words (a tensor where signed words hold them), and terms of shape `shape`."""

    public: Words
    terms: tuple[_Term, ...]
    shape: torch.Size


def _lifted(c: Context, x: Masked, bits: int) -> _Lifted:
    def mask() -> Words:
        return widened_unsigned(x.lam, bits)

    if x.bits >= bits:  # it has wrapped alike, modulo 2^bits
        return _Lifted(x.m if bits <= RING_BITS else widened_unsigned(x.m, bits), (_Term("mask", mask, 0),), x.shape)
    w: Tensor | None = None
    public: Words = x.m
    if c.evaluating:
        offset = 1 << (x.bits - 2) if x.lowest is None else -x.lowest
        moved = ring.reduce(x.m + offset, x.bits)
        w = 1 - ring.shift_right(moved, x.bits - 1, x.bits)
        public = moved - offset if x.bits < RING_BITS or bits <= RING_BITS else Wide.of_unsigned(moved) + -offset
    top = _Term("top bit", lambda: ring.shift_right(x.lam, x.bits - 1, x.bits), x.bits, w)
    return _Lifted(public, (_Term("mask", mask, 0), top), x.shape)


def _where(w: Tensor, x: Words) -> Words:
    """Return x where the public bit w is set, else 0."""
    return x.map(lambda t: t * w) if isinstance(x, Wide) else x * w


def _multiplied(a: Words, b: Words, bits: int) -> Words:
    """Return the product modulo 2^bits or more."""
    if bits <= RING_BITS:
        return _low(a) * _low(b)
    return a * b if isinstance(a, Wide) else b * a if isinstance(b, Wide) else Wide.of(a) * b


def _low(x: Words) -> Tensor:
    return x.low if isinstance(x, Wide) else x


def _deal(c: Context, op: str, shape: Sequence[int], bits: int, value: Known, choice: Choice | None) -> Words:
    """Return what is dealt, as `wide.deal`; of a choice the entry that its opened bit names."""
    if choice is None:
        return deal(c, op, shape, bits, value)

    def entries() -> Words:
        found, rho = value(), choice.rho.to(torch.int64)
        first, second = -rho, rho - 1  # all ones where the entry holds the value
        if isinstance(found, Wide):
            return Wide(*(torch.stack([t & first, t & second]) for t in (found.low, found.high)))
        return torch.stack([found & first, found & second])

    both = deal(c, op, (2, *shape), bits, entries)
    if not c.evaluating:
        return both
    second = choice.opened != 0

    def read(t: Tensor) -> Tensor:
        return torch.where(second, t[1], t[0])

    return both.map(read) if isinstance(both, Wide) else read(both)


def _dealt(
    c: Context, op: str, shape: Sequence[int], bits: int, terms: Sequence[_Term], choice: Choice | None = None
) -> Words:
    """Deal the product of what terms hold in the ring that their public numbers leave; return it times these numbers."""
    left = bits - sum(term.shift for term in terms)

    def value() -> Words:
        total = terms[0].known()
        for term in terms[1:]:
            total = _multiplied(total, term.known(), bits)
        return total

    found = _deal(c, f"{op}: {' by '.join(term.name for term in terms)}", shape, left, value, choice)
    if not c.evaluating:
        return found
    found = Wide.of(found) if bits > RING_BITS and not isinstance(found, Wide) else found  # what is above is shifted out
    for term in terms:
        found = term.times_public(found)
    return found


def _joined(x: _Term, factor: _Term, bits: int) -> _Term:
    """Return a term times a factor whose public number is a power of two."""
    return _Term(x.name, lambda: _multiplied(x.known(), factor.known(), bits), x.shift + factor.shift, x.w)


def _pairs(x: _Lifted, y: _Lifted, bits: int) -> list[tuple[_Term, _Term]]:
    return [(a, b) for a in x.terms for b in y.terms if a.shift + b.shift < bits]


def sharing(x: Words, bits: int, frac: int) -> Shared | WideShared:
    """Return words as a sharing, wide where they are."""
    return WideShared(x, bits, frac) if isinstance(x, Wide) else Shared(x, bits, frac)


def blank(c: Context, shape: Sequence[int], bits: int, frac: int) -> Shared | WideShared:
    """Return what a role that does not evaluate holds."""
    word = c.blank(shape)
    return sharing(Wide(word, word) if bits > RING_BITS else word, bits, frac)


def _own_terms(c: Context, op: str, x: Masked, form: _Lifted, bits: int) -> Words:
    """Return this party's share of the terms of x: of its mask what it has, where the ring is no larger. Dealt once for
    all products of x in rings of so many bits or fewer."""
    if x.bits >= bits:
        return -x.lam if c.evaluating else c.blank(x.shape)
    if x.lifted is None or x.lifted[0] < bits:
        mask, top = form.terms
        wraps = x.wraps
        if wraps is None:
            first = _dealt(c, op, x.shape, bits, [mask])
        else:
            around = _dealt(c, op, x.shape, bits, [_Term("wraps", lambda: wraps, x.bits)])
            first = around - widened_unsigned(x.lam, bits) if c.evaluating else around  # type: ignore[operator]
        x.lifted = bits, first + _dealt(c, op, x.shape, bits, [top])  # type: ignore[operator]
    found: Words = x.lifted[1]
    return _low(found) if bits <= RING_BITS else found


def hold(c: Context, op: str, x: Masked, bits: int) -> None:
    """Deal at once what products of x need, in rings of so many bits or fewer; local."""
    _own_terms(c, op, x, _lifted(c, x, bits), bits)


def multiply(c: Context, op: str, x: Masked, y: Masked, bits: int) -> Shared | WideShared:
    """Return [x y] modulo 2^bits with the fraction bits of both, element by element, broadcasting; local."""
    require(2 <= bits <= WIDE_BITS, op, f"a product of {bits} bits does not fit {WIDE_BITS}")
    a, b = _lifted(c, x, bits), _lifted(c, y, bits)
    shape = broadcast(x.shape, y.shape)
    of_x, of_y = _own_terms(c, f"{op}, left", x, a, bits), _own_terms(c, f"{op}, right", y, b, bits)
    both = [_dealt(c, op, shape, bits, pair) for pair in _pairs(a, b, bits)]
    if not c.evaluating:
        return blank(c, shape, bits, x.frac + y.frac)
    total = _multiplied(of_x, b.public, bits) + _multiplied(of_y, a.public, bits)  # type: ignore[operator]
    for part in both:
        total = total + part  # type: ignore[operator]
    if c.first:
        total = total + _multiplied(a.public, b.public, bits)  # type: ignore[operator]
    return sharing(total, bits, x.frac + y.frac)


def dealt_bits(bits: int, x: Masked, y: Masked) -> int:
    """Return the bits that are dealt for an element of a product modulo 2^bits of two values that no other product has
    lifted."""
    of_one = sum(2 * bits - v.bits - (0 if v.wraps is None else v.bits) for v in (x, y) if v.bits < bits)
    return of_one + bits + sum(max(bits - less, 0) for less in (x.bits, y.bits, x.bits + y.bits))


def multiply_known(c: Context, op: str, x: Masked, known: Known, frac: int, bits: int) -> Shared | WideShared:
    """Return [x F] modulo 2^bits for numbers F that the dealer knows, of x's shape, `frac` fraction bits; local.

    Offline: 2 bits + (bits - x.bits) per element."""
    return sum_known(c, op, [(x, Factor(known, frac))], bits)


def sum_known(
    c: Context, op: str, terms: Sequence[tuple[Masked, Factor]], bits: int, bit: Choice | Fresh | None = None
) -> Shared | WideShared:
    """Return [bit sum_e x_e F_e] modulo 2^bits, for numbers F_e that the dealer knows and, perhaps, an opened bit; local.

    terms: all of one shape. The result has the fraction bits of the finest product; a factor of a product that has s_e fewer
    is dealt in a ring that is as much smaller. Offline: bits, all bits - s_e and all bits - s_e - x_e.bits per element;
    twice as much with a bit: what is dealt and 0, in an order that its mask names, one of which the opened bit reads. With
    `Fresh` in place of a bit, the products of masks and factors are not dealt, and [sum_e x_e F_e + R] is returned
    (`veiled`)."""
    require(2 <= bits <= WIDE_BITS, op, f"a product of {bits} bits does not fit {WIDE_BITS}")
    fresh, bit = (None, bit) if bit is None or isinstance(bit, Choice) else (bit, None)
    shape, frac = terms[0][0].shape, max(x.frac + factor.frac for x, factor in terms)
    forms = [_lifted(c, x, bits) for x, _ in terms]
    known = [_Term("factor", factor.known, frac - x.frac - factor.frac) for x, factor in terms]

    def masks() -> Words:
        products = [_multiplied(f.terms[0].known(), k.known(), bits) << k.shift for f, k in zip(forms, known, strict=True)]
        return functools.reduce(operator.add, products)

    factors = [_dealt(c, op, shape, bits, [k], bit) for k in known]
    if fresh is not None:
        of_masks = fresh(masks)
    else:
        of_masks = _deal(c, f"{op}: factor: mask", shape, bits, masks, bit)
    both = [_joined(top, k, bits) for form, k in zip(forms, known, strict=True) for top in form.terms[1:]]
    tops = [_dealt(c, f"{op}: factor", shape, bits, [term], bit) for term in both if term.shift < bits]
    if not c.evaluating:
        return blank(c, shape, bits, frac)
    parts: list[Any] = [_multiplied(f, form.public, bits) for f, form in zip(factors, forms, strict=True)]
    return sharing(functools.reduce(operator.add, [*parts, *tops]) - of_masks, bits, frac)


def lift(c: Context, x: Masked, bits: int, op: str = "lift") -> Shared | WideShared:
    """Return [x] modulo 2^bits; local."""
    form = _lifted(c, x, bits)
    terms = _own_terms(c, op, x, form, bits)
    if not c.evaluating:
        return blank(c, x.shape, bits, x.frac)
    return sharing(terms + form.public if c.first else terms, bits, x.frac)  # type: ignore[operator]


def add(x: Shared | WideShared, y: Shared | WideShared) -> Shared | WideShared:
    """Return [x + y] of two sharings of one ring."""
    if isinstance(x, WideShared):
        assert isinstance(y, WideShared)
        return x.add(y)
    assert isinstance(y, Shared)
    return x.add(y)


def finer(x: Shared | WideShared, frac: int) -> Shared | WideShared:
    """Return [x] with `frac` fraction bits, in a ring that is larger by what they are more; local."""
    up = frac - x.frac
    words = Wide.of(x.x) if isinstance(x, Shared) and x.bits + up > RING_BITS else x.x
    return sharing(words << up, x.bits + up, frac)


def plus_public(c: Context, x: Shared | WideShared, value: int) -> Shared | WideShared:
    """Return [x + value] for a public ring element (already scaled); local."""
    return sharing(x.x + value, x.bits, x.frac) if c.first else x


def square_sums(c: Context, op: str, x: Masked, bits: int) -> Shared:
    """Return the sums of squares over the last axis, [..., 1], modulo 2^bits of at most 64; local.

    Offline: bits + 2 (bits - x.bits) per element where x's ring is smaller, bits per row."""
    require(bits <= min(RING_BITS, 2 * x.bits), op, f"squares in a ring of {bits} bits of values in one of {x.bits}")
    form = _lifted(c, x, bits)
    own = _own_terms(c, op, x, form, bits)
    cross = [_dealt(c, op, x.shape, bits, form.terms)] if len(form.terms) > 1 else []
    rows = (*x.shape[:-1], 1)
    squares = deal(c, f"{op}: squares", rows, bits, lambda: (_low(form.terms[0].known()) ** 2).sum(-1, keepdim=True))
    if not c.evaluating:
        return Shared(c.blank(rows), bits, 2 * x.frac)
    public = _low(form.public)
    total = 2 * public * _low(own)
    for part in cross:
        total = total + 2 * _low(part)
    if c.first:
        total = total + public * public
    return Shared(total.sum(-1, keepdim=True) + _low(squares), bits, 2 * x.frac)
