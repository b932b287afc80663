"""Less-than-zero and the borrow of a masked value: one round, a few bits.

Any number of parties.

x = m - lam modulo 2^k is negative when its top bit is set. m and lam are cut into digits of a few bits. For every digit the
dealer deals the one-hot vector of lam's digit as XOR-shared *bits*; whatever is asked of a pair of digits is the parity of
some of them, which the public digit of m names, so a party reads it off its own bits:

* lower digits: lt = [m_i < lam_i] and eq = [m_i = lam_i]; the borrow into the top digit is lt + eq (lt' + eq' (...));
  over all digits that is [m < lam], the borrow of m - lam, from digits of at most 6 bits;
* top digit: the sign s without a borrow, and whether a borrow flips it (t); the answer is s xor t borrow.

A bit that was read is masked by a dealt random bit rho and opened: u = b xor rho is uniform. Every b = u + (1 - 2u) rho is
then linear in rho, and the answer is a polynomial in the rho's with *public* coefficients; the dealer deals arithmetic
shares of the products of rho's, in any ring. The mask of s is a factor 1 - 2 rho of all others, so s adds none of its own.
The same products times a mask lam_y give answer * y for a masked y in the same round.

Rounds 1; online 3, 5, 7 bits for 2, 3, 4 digits per element; error none. Leaks: nothing, opened
bits are uniform (docs/security.md, "Comparisons").
Offline: 2^w bits a digit of w bits, and of the sign 4, 10, 22 elements of its ring for 2, 3, 4 digits (`digit_bits`).
Ishai et al. 2013 (one-time truth tables); Boyle, Gilboa, Ishai 2019 (gates on masked inputs).
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import Literal

import torch
from torch import Tensor

from mpc import ring
from protocols.masked.context import BitOpening, Context, require
from protocols.masked.shares import Masked, Shared

MAX_DIGIT = 8
MIN_DIGIT = 4
BORROW_DIGIT = 6  # what a borrow out of 16 bits is cheapest with: 5 bits opened
WORD = 64  # bits of a word of a longer one-hot vector
Monomial = frozenset[str]
Kind = Literal["lt", "eq", "sign", "flips"] | tuple[int, int]
"""What is asked of m's digit and the mask's; (start, end): whether their difference modulo 2^width is from start to end."""
Places = dict[str, tuple[int, Kind]]
"""Names of bits -> the digit that each is read from, and what is asked of it."""


@dataclass(frozen=True)
class Digit:
    """A digit of the mask whose one-hot vector is dealt, and the digit of m that it is compared with: its bits."""

    low: int
    width: int


@dataclass(frozen=True)
class Form:
    """A predicate of x. digits: dealt, low to high; bits: what is read and opened, name -> (digit, kind), in order;
    polynomial: the answer in these bits, or its part that `flip`, a bit, is added to modulo 2; subsets: all products of mask
    bits that the polynomial needs."""

    digits: tuple[Digit, ...]
    bits: tuple[tuple[str, int, Kind], ...]
    polynomial: tuple[tuple[int, Monomial], ...]
    subsets: tuple[Monomial, ...]
    flip: str | None

    @staticmethod
    def of(
        digits: Sequence[Digit],
        bits: Places,
        polynomial: Sequence[tuple[int, Monomial]],
        flip: str | None = None,
    ) -> Form:
        """Return the form, with the subsets that follow from its polynomial."""
        subsets = {
            frozenset(s) for _, mono in polynomial for n in range(1, len(mono) + 1) for s in combinations(sorted(mono), n)
        }
        ordered = tuple(sorted(subsets, key=lambda s: (len(s), sorted(s))))
        return Form(tuple(digits), tuple((n, *at) for n, at in bits.items()), tuple(polynomial), ordered, flip)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the bits, in order."""
        return tuple(name for name, _, _ in self.bits)

    @property
    def products(self) -> int:
        """Elements that are dealt of an answer."""
        return len(self.subsets) + int(self.flip is not None)

    @property
    def table_bits(self) -> int:
        """Bits of all one-hot vectors."""
        return sum(1 << d.width for d in self.digits)

    @property
    def groups(self) -> dict[int, list[int]]:
        """Width -> the digits that have it, which are dealt as one entry."""
        return {w: [i for i, d in enumerate(self.digits) if d.width == w] for w in sorted({d.width for d in self.digits})}


def _digits(bits: int, most: int) -> list[Digit]:
    """Return digits of so many bits, as even as can be, the wider ones low."""
    count = -(-bits // most)
    base, extra = divmod(bits, count)
    out, low = [], 0
    for i in range(count):
        out.append(Digit(low, base + int(i < extra)))
        low += out[-1].width
    return out


def _borrow(digits: int) -> tuple[Places, list[tuple[int, Monomial]]]:
    """Return the bits to read for the borrow out of so many digits, with their places, and the borrow in them."""
    places: Places = {}
    borrow: list[tuple[int, Monomial]] = []
    for i in range(digits):  # low to high: borrow = lt_i + eq_i * borrow
        places[f"lt{i}"] = (i, "lt")
        if i:  # eq of the lowest digit is not needed
            places[f"eq{i}"] = (i, "eq")
        borrow = [(1, frozenset({f"lt{i}"}))] + [(k, mono | {f"eq{i}"}) for k, mono in borrow]
    return places, borrow


@cache
def borrow_form(bits: int) -> Form:
    """Return [m < lam] for an x = m - lam in a ring of so many bits."""
    digits = _digits(bits, BORROW_DIGIT)
    return Form.of(digits, *_borrow(len(digits)))


@cache
def sign_form(bits: int, most: int = MAX_DIGIT) -> Form:
    """Return [x < 0] in a ring of so many bits, from digits of at most `most` bits."""
    digits = _digits(bits, most)
    top = len(digits) - 1
    lower, borrow = _borrow(top)
    places: Places = {"s": (top, "sign")}
    if top:
        places["t"] = (top, "flips")
    return Form.of(digits, places | lower, [(k, mono | {"t"}) for k, mono in borrow], "s")


@cache
def digit_bits(bits: int, result: int) -> int:
    """Return the digits' bits with which signs in a ring of `bits` bits, shared modulo 2^result, move the fewest bytes.

    >>> digit_bits(20, 3), digit_bits(16, 64), digit_bits(8, 3)
    (6, 8, 7)
    """

    def moved(most: int) -> int:
        form = sign_form(bits, most)
        return form.table_bits + form.products * result + len(form.bits)

    return min(range(MAX_DIGIT, MIN_DIGIT - 1, -1), key=moved)


class Bit:
    """The result of a comparison before anyone has chosen a ring for it.

    opened: public bits [names, ...] at a party, each masked by rho (`form`): whole at the dealer, an XOR share at a party.
    """

    def __init__(self, c: Context, form: Form, opened: Tensor, rho: Tensor) -> None:
        self.c, self.form = c, form
        self.opened, self.rho = opened, rho  # [names, ...]

    @property
    def shape(self) -> torch.Size:
        """Shape of the comparison."""
        return self.rho.shape[1:]

    def products(self) -> Tensor:
        """Return what is dealt of the answer, [form.products, ...]: products of mask bits, signed by the flip's, and that
        one; at the dealer alone."""
        index = {name: i for i, name in enumerate(self.form.names)}
        out = []
        for subset in self.form.subsets:
            value: Tensor | None = None
            for name in subset:
                bit = self.rho[index[name]]
                value = bit if value is None else value & bit
            assert value is not None
            out.append(value)
        if self.form.flip is None:
            return torch.stack(out)
        flip = self.rho[index[self.form.flip]]
        return torch.stack([*(value * (1 - 2 * flip) for value in out), flip])

    def coefficients(self) -> tuple[Tensor, list[Tensor]]:
        """Return the public part, and the public coefficient of all that is dealt of the answer; at a party alone."""
        u = {name: self.opened[i] for i, name in enumerate(self.form.names)}
        sign = {name: 1 - 2 * value for name, value in u.items()}
        table: dict[Monomial, Tensor] = {}
        for k, mono in self.form.polynomial:
            names = sorted(mono)
            terms: dict[Monomial, Tensor | None] = {frozenset(): None}  # products over the names so far; None: one
            for name in names:
                grown: dict[Monomial, Tensor | None] = {}
                for chosen, term in terms.items():
                    grown[chosen] = u[name] if term is None else term * u[name]
                    grown[chosen | {name}] = sign[name] if term is None else term * sign[name]
                terms = grown
            for chosen, term in terms.items():
                assert term is not None
                if chosen in table:
                    table[chosen] = table[chosen] + term if k > 0 else table[chosen] - term
                else:
                    table[chosen] = term if k > 0 else -term
        constant, rest = table.get(frozenset()), [table[s] for s in self.form.subsets]
        if self.form.flip is None:
            assert constant is not None
            return constant, rest
        u_flip, turned = u[self.form.flip], sign[self.form.flip]  # u + (1 - 2u) (rho + (1 - 2 rho) the rest)
        if constant is None:
            return u_flip, [turned]
        return u_flip + turned * constant, [*(turned * value for value in rest), turned * (1 - 2 * constant)]

    def share(self, bits: int) -> Shared:
        """Return the bit as an arithmetic sharing modulo 2^bits; local. Offline: bits per product of mask bits."""
        c = self.c
        dealt = c.deal_table("bit", (self.form.products, *self.shape), bits, self.products)
        if not c.evaluating:
            return Shared(c.blank(self.shape), bits, 0)
        constant, coefficients = self.coefficients()
        # narrow words wrap modulo a power of two that the ring divides
        out = constant.to(dealt.dtype) if c.first else torch.zeros(self.shape, dtype=dealt.dtype, device=dealt.device)
        for coefficient, value in zip(coefficients, dealt, strict=True):
            out = out + coefficient * value
        return Shared(out.to(torch.int64), bits, 0)

    def times(self, y: Masked) -> Shared:
        """Return bit * y as a sharing in y's ring; local. y has the comparison's shape. Offline: twice `share`."""
        c = self.c
        bit = self.share(y.bits)
        dealt = c.deal("bit times mask", (self.form.products, *self.shape), y.bits, lambda: self.products() * y.lam)
        if not c.evaluating:
            return Shared(c.blank(self.shape), y.bits, y.frac)
        constant, coefficients = self.coefficients()
        masked_part = constant * y.lam
        for coefficient, value in zip(coefficients, dealt, strict=True):
            masked_part = masked_part + coefficient * value
        return Shared(y.m * bit.x - masked_part, y.bits, y.frac)


def _point(at: Tensor, width: int) -> Tensor:
    """Return the one-hot vectors of 2^width bits: int64 words [..., words]."""
    start = torch.arange(_words(width), device=at.device) * WORD
    offset = at[..., None] - start
    hit = (offset >= 0) & (offset < WORD)
    return torch.where(hit, torch.ones_like(offset) << (offset & (WORD - 1)), torch.zeros_like(offset))


def _words(width: int) -> int:
    return max(1, (1 << width) // WORD)


def _until(words: Tensor, width: int) -> Tensor:
    """Return the parities of all bits up to and with each: of a one-hot vector, [j >= its place]; [..., words] again."""
    out = words
    for step in range(min(width, WORD.bit_length() - 1)):
        out = out ^ (out << (1 << step))
    if words.shape[-1] == 1:
        return out
    before = torch.zeros_like(out[..., 0])
    parts = []
    for part in out.unbind(-1):
        parts.append(part ^ -before)
        before = before ^ ((part >> (WORD - 1)) & 1)
    return torch.stack(parts, -1)


def _bit_at(words: Tensor, place: Tensor) -> Tensor:
    """Return words whose lowest bit is bit place[...] of words [..., words]; what is above it says nothing."""
    if words.shape[-1] == 1:
        return words[..., 0] >> place
    return words.gather(-1, (place >> 6)[..., None])[..., 0] >> (place & (WORD - 1))


def _read(c: Context, words: Tensor, until: Tensor, m: Tensor, digit: Digit, kind: Kind) -> Tensor:
    """Return a party's share of what is asked of m's digit and the mask's, from its share of the one-hot vector, as the
    lowest bit of words."""
    size = 1 << digit.width
    place = ring.digit(m, digit.low, digit.width)
    across = (place + size // 2) & (size - 1)
    if isinstance(kind, tuple):
        parts = [_bit_at(words, (place - d) & (size - 1)) for d in range(*kind)]
        return functools.reduce(operator.xor, parts)
    if kind == "eq":
        return _bit_at(words, place)
    if kind == "flips":  # m - lam is 0 or the half: one less has another sign
        return _bit_at(words, place) ^ _bit_at(words, across)
    found = _bit_at(until, place)
    if kind == "lt":
        return found ^ 1 if c.first else found  # the place is not up to m
    found = found ^ _bit_at(until, across)  # m - lam below 0: the place is one of the next half
    return found ^ (place >> (digit.width - 1)) if c.first else found


async def ask(c: Context, x: Masked, form: Form) -> Bit:
    """Read and open a predicate's bits. 1 round."""
    dealt: dict[int, Tensor] = {}
    for width, members in form.groups.items():

        def made(width: int = width, members: list[int] = members) -> Tensor:
            found = [form.digits[i] for i in members]
            places = [ring.digit(x.lam, d.low, width) for d in found]
            return torch.stack([_point(place, width) for place in places])

        shape = (len(members), *x.shape, _words(width))
        vectors = c.deal_xor("comparison digits", shape, made, min(1 << width, WORD))
        dealt |= dict(zip(members, vectors.unbind(0), strict=True))
    opened_shape = (len(form.bits), *x.shape)
    rho = c.tape.random("mask bits", opened_shape, 1)
    if not c.evaluating:
        return Bit(c, form, await BitOpening(c.blank(opened_shape)), rho)
    until = {i: _until(words, form.digits[i].width) for i, words in dealt.items()}
    found = [_read(c, dealt[i], until[i], x.m, form.digits[i], kind) for _, i, kind in form.bits]
    opened = await BitOpening(((torch.stack(found) ^ rho) & 1).to(torch.uint8), torch.int8)
    return Bit(c, form, opened, rho)


async def less_than_zero(c: Context, x: Masked, most: int = MAX_DIGIT) -> Bit:
    """Return [x < 0] for x read as a signed number modulo 2^bits. 1 round. most: bits of a digit, see `digit_bits`."""
    require(2 <= x.bits <= 32, "less-than-zero", f"rings of 2 to 32 bits are supported, got {x.bits}")
    return await ask(c, x, sign_form(x.bits, most))


async def borrows(c: Context, x: Masked) -> Bit:
    """Return [m < lam] for x = m - lam modulo 2^bits: the borrow out of these bits. 1 round."""
    require(1 <= x.bits <= 32, "borrow", f"rings of 1 to 32 bits are supported, got {x.bits}")
    return await ask(c, x, borrow_form(x.bits))
