"""Less-than-zero, equality with zero, membership of [0, 2^n) and the borrow of a masked value: one round, a few bits.

Any number of parties.

x = m - lam modulo 2^k is negative when its top bit is set. m is cut into digits of at most 8 bits. For every digit the
dealer deals XOR-shared one-time truth tables indexed by the *public* digit of m:

* lower digits: lt = [m_i < lam_i] and eq = [m_i = lam_i]; the borrow into the top digit is lt + eq (lt' + eq' (...));
  over all digits that is [m < lam], the borrow of m - lam, from digits of at most 6 bits;
* top digit: the sign without (a0) and with (a1) a borrow; the answer is a0 + (a1 - a0) borrow. For membership the digits
  above the n low bits are 0 without (z) or with (n) the low digit's borrow: z z' ... (1 - borrow) + n n' ... borrow.
  For equality m_i = lam_i in every digit.

A looked-up bit is masked by a dealt random bit rho and opened: u = b xor rho is uniform. Every b = u + (1 - 2u) rho is then
linear in rho, and the answer is a polynomial in the rho's with *public* coefficients; the dealer deals arithmetic shares of
the products of rho's, in any ring. The same products times a mask lam_y give answer * y for a masked y in the same round.
Where a round costs less than the bytes of these products (31 of them for two digits and a borrow), `Bit.alone` looks the
answer up by the opened bits in a second one-time table, masks and opens it: one rho is left.

Rounds 1 (`alone`: 1 more); online 3, 5, 7 bits for 2, 3, 4 digits per element (equality: a bit a digit); error none.
Leaks: nothing, opened bits are uniform (docs/security.md, "Comparisons").
Offline: 64 bits a bit for digits of 6 bits, 32 for narrower ones, 256 for digits of 8.
Ishai et al. 2013 (one-time truth tables); Boyle, Gilboa, Ishai 2019 (gates on masked inputs).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations

import torch
from torch import Tensor

from protocols.masked.context import BitOpening, Context, require
from protocols.masked.shares import Masked, Shared

MAX_DIGIT = 8
BORROW_DIGIT = 6  # what a borrow out of 16 bits is cheapest with: 70 bytes dealt, 5 bits opened
Monomial = frozenset[str]


@dataclass(frozen=True)
class Form:
    """A predicate of x. widths: of m's digits, low to high; names: the bits that are looked up and opened, in order; places:
    each one's digit; polynomial: the answer in these bits; subsets: all products of mask bits that it needs."""

    widths: tuple[int, ...]
    names: tuple[str, ...]
    places: tuple[int, ...]
    polynomial: tuple[tuple[int, Monomial], ...]
    subsets: tuple[Monomial, ...]

    @staticmethod
    def of(widths: Sequence[int], places: dict[str, int], polynomial: Sequence[tuple[int, Monomial]]) -> Form:
        """Return the form, with the subsets that follow from its polynomial."""
        subsets = {
            frozenset(s) for _, mono in polynomial for n in range(1, len(mono) + 1) for s in combinations(sorted(mono), n)
        }
        ordered = tuple(sorted(subsets, key=lambda s: (len(s), sorted(s))))
        return Form(tuple(widths), tuple(places), tuple(places.values()), tuple(polynomial), ordered)

    @property
    def truth(self) -> tuple[bool, ...]:
        """The predicate of all assignments to the bits, the first name's the lowest."""
        out = []
        for u in range(1 << len(self.names)):
            true = {name for i, name in enumerate(self.names) if u >> i & 1}
            out.append(sum(k for k, mono in self.polynomial if mono <= true) == 1)
        return tuple(out)

    @property
    def words(self) -> int:
        """64-bit words of a truth table; all are as long as the widest digit's."""
        return max(1, (1 << max(self.widths)) // 64)

    @property
    def word_bits(self) -> int:
        """Bits of a word that are dealt: 32 where no digit has more than 5 bits."""
        return 32 if max(self.widths) <= 5 else 64


SINGLE = Form.of([1], {"bit": 0}, [(1, frozenset({"bit"}))])


def _widths(bits: int, most: int = MAX_DIGIT) -> list[int]:
    count = -(-bits // most)
    base, extra = divmod(bits, count)
    return [base + int(i < extra) for i in range(count)]


def _borrow(digits: int) -> tuple[dict[str, int], list[tuple[int, Monomial]]]:
    """Return the bits to look up for the borrow out of so many digits, with their places, and the borrow in them."""
    places: dict[str, int] = {}
    borrow: list[tuple[int, Monomial]] = []
    for i in range(digits):  # low to high: borrow = lt_i + eq_i * borrow
        places[f"lt{i}"] = i
        if i:  # eq of the lowest digit is not needed
            places[f"eq{i}"] = i
        borrow = [(1, frozenset({f"lt{i}"}))] + [(k, mono | {f"eq{i}"}) for k, mono in borrow]
    return places, borrow


@cache
def borrow_form(bits: int) -> Form:
    """Return [m < lam] for an x = m - lam in a ring of so many bits."""
    widths = _widths(bits, BORROW_DIGIT)
    return Form.of(widths, *_borrow(len(widths)))


@cache
def sign_form(bits: int, most: int = MAX_DIGIT) -> Form:
    """Return [x < 0] in a ring of so many bits, from digits of at most `most`."""
    widths = _widths(bits, most)
    top = len(widths) - 1
    lower, borrow = _borrow(top)
    places = ({"a0": top, "a1": top} if top else {"a0": top}) | lower
    polynomial = [(1, frozenset({"a0"}))]
    for k, mono in borrow:
        polynomial += [(k, mono | {"a1"}), (-k, mono | {"a0"})]
    return Form.of(widths, places, polynomial)


@cache
def zero_form(bits: int) -> Form:
    """Return [x = 0] in a ring of so many bits."""
    widths = _widths(bits)
    places = {f"eq{i}": i for i in range(len(widths))}
    return Form.of(widths, places, [(1, frozenset(places))])


@cache
def within_form(bits: int, low_bits: int) -> Form:
    """Return [0 <= x < 2^low_bits] in a ring of so many bits; the low bits are one digit."""
    high = _widths(bits - low_bits)
    places: dict[str, int] = {"lt0": 0}
    for i in range(1, len(high) + 1):
        places |= {f"z{i}": i, f"n{i}": i}
    without, with_borrow = (frozenset(f"{kind}{i}" for i in range(1, len(high) + 1)) for kind in "zn")
    borrow = frozenset({"lt0"})
    return Form.of([low_bits, *high], places, [(1, without), (-1, without | borrow), (1, with_borrow | borrow)])


class Bit:
    """The result of a comparison before anyone has chosen a ring for it."""

    def __init__(self, c: Context, form: Form, opened: Tensor, rho: Tensor) -> None:
        self._c, self._form, self._rho = c, form, rho  # [names, ...]
        self._opened = opened

    @property
    def shape(self) -> torch.Size:
        """Shape of the comparison."""
        return self._rho.shape[1:]

    @property
    def count(self) -> int:
        """Products of mask bits that the predicate needs."""
        return len(self._form.subsets)

    def products(self) -> Tensor:
        """Return the products of mask bits, [subsets, ...]; at the dealer alone."""
        index = {name: i for i, name in enumerate(self._form.names)}
        out = []
        for subset in self._form.subsets:
            value: Tensor | None = None
            for name in subset:
                bit = self._rho[index[name]]
                value = bit if value is None else value & bit
            assert value is not None
            out.append(value)
        return torch.stack(out)

    def coefficients(self) -> tuple[Tensor, list[Tensor]]:
        """Return the public part, and the public coefficient of every product of mask bits; at a party alone."""
        u = {name: self._opened[i] for i, name in enumerate(self._form.names)}
        sign = {name: 1 - 2 * value for name, value in u.items()}
        table: dict[Monomial, Tensor] = {}
        for k, mono in self._form.polynomial:
            names = sorted(mono)
            terms: dict[Monomial, Tensor | None] = {frozenset(): None}  # products over the names so far; None: one
            for name in names:
                grown: dict[Monomial, Tensor | None] = {}
                for chosen, term in terms.items():
                    grown[chosen] = u[name] if term is None else term * u[name]
                    grown[chosen | {name}] = sign[name] if term is None else term * sign[name]
                terms = grown
            for chosen, found in terms.items():
                term = torch.ones_like(self._opened[0]) if found is None else found
                if chosen in table:
                    table[chosen] = table[chosen] + term if k > 0 else table[chosen] - term
                else:
                    table[chosen] = term if k > 0 else -term
        return table[frozenset()], [table[s] for s in self._form.subsets]

    def share(self, bits: int) -> Shared:
        """Return the bit as an arithmetic sharing modulo 2^bits; local. Offline: bits per product of mask bits."""
        c = self._c
        dealt = c.deal_table("bit", (len(self._form.subsets), *self.shape), bits, self.products)
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
        c = self._c
        bit = self.share(y.bits)
        dealt = c.deal("bit times mask", (len(self._form.subsets), *self.shape), y.bits, lambda: self.products() * y.lam)
        if not c.evaluating:
            return Shared(c.blank(self.shape), y.bits, y.frac)
        constant, coefficients = self.coefficients()
        masked_part = constant * y.lam
        for coefficient, value in zip(coefficients, dealt, strict=True):
            masked_part = masked_part + coefficient * value
        return Shared(y.m * bit.x - masked_part, y.bits, y.frac)

    def part(self, form: Form) -> Bit:
        """Return another predicate in some of the bits that were opened."""
        places = [self._form.names.index(name) for name in form.names]

        def taken(t: Tensor) -> Tensor:
            return self._c.blank((len(places), *self.shape)) if t.is_meta else t[places]

        return Bit(self._c, form, taken(self._opened), taken(self._rho))

    def opposite(self) -> Bit:
        """Return 1 less the bit."""
        form = self._form
        polynomial = [(1, frozenset[str]()), *((-k, mono) for k, mono in form.polynomial)]
        places = dict(zip(form.names, form.places, strict=True))
        return Bit(self._c, Form.of(form.widths, places, polynomial), self._opened, self._rho)

    async def alone(self) -> Bit:
        """Return the same predicate as a bit of its own, one product of mask bits in place of all: the opened bits index a
        one-time table of 2^names bits, whose entry is opened. 1 round, 1 bit. Offline: 2^names bits."""
        c, names = self._c, len(self._form.names)
        words, word_bits = max(1, (1 << names) // 64), min(64, 1 << names)

        def table() -> Tensor:
            place = _number(self._rho)
            return _turned(self._form.truth, names, place.device)[place]

        dealt = c.deal_xor("table of a predicate", (*self.shape, words), table, word_bits)
        rho = c.tape.random("mask bits", self.shape, 1)
        if not c.evaluating or dealt.is_meta or self._opened.is_meta:
            return Bit(c, SINGLE, await BitOpening(c.blank((1, *self.shape))), rho.reshape(1, *self.shape))
        place = _number(self._opened)
        word = dealt.gather(-1, (place >> 6)[..., None])[..., 0]
        opened = await BitOpening((((word >> (place & 63)) & 1) ^ rho)[None], torch.int8)
        return Bit(c, SINGLE, opened, rho[None])


def _number(bits: Tensor) -> Tensor:
    """Return the numbers whose bits are [bits, ...], the lowest first."""
    out = bits[0].to(torch.int64)
    for i in range(1, bits.shape[0]):
        out = out | (bits[i].to(torch.int64) << i)
    return out


@cache
def _turned(truth: tuple[bool, ...], names: int, device: torch.device) -> Tensor:
    """Return the tables by the mask bits rho: int64 words [2^names, words], bit u of which is truth[u xor rho]."""
    u = torch.arange(1 << names)
    bits = torch.tensor(truth)[u[:, None] ^ u].to(torch.int64)
    count = min(64, 1 << names)
    return (bits.reshape(1 << names, -1, count) << torch.arange(count)).sum(-1).to(device)


def prefix_table(bound: Tensor, words: int) -> Tensor:
    """Return the tables of [j < bound]: int64 words [..., words] whose bit j is set for j < bound."""
    start = torch.arange(words, device=bound.device) * 64
    inside = (bound[..., None] - start).clamp(0, 64)
    partial = (torch.ones_like(inside) << (inside & 63)) - 1
    return torch.where(inside == 64, torch.full_like(inside, -1), partial)


def _point(at: Tensor, words: int) -> Tensor:
    """Return the tables of [j = at]."""
    start = torch.arange(words, device=at.device) * 64
    offset = at[..., None] - start
    hit = (offset >= 0) & (offset < 64)
    return torch.where(hit, torch.ones_like(offset) << (offset & 63), torch.zeros_like(offset))


def _lower_tables(lam: Tensor, form: Form, digits: int) -> dict[str, Tensor]:
    """Return the truth tables of lt and eq for the lowest digits of masks lam: [..., words] each."""
    out: dict[str, Tensor] = {}
    offset = 0
    for i, width in enumerate(form.widths[:digits]):
        digit = (lam >> offset) & ((1 << width) - 1)
        out[f"lt{i}"] = prefix_table(digit, form.words)
        if i > 0:
            out[f"eq{i}"] = _point(digit, form.words)
        offset += width
    return out


def _borrow_tables(lam: Tensor, form: Form) -> dict[str, Tensor]:
    """Return the truth tables of `borrow_form` for masks lam: [..., words] each."""
    return _lower_tables(lam, form, len(form.widths))


def _sign_tables(lam: Tensor, form: Form) -> dict[str, Tensor]:
    """Return the truth tables of `sign_form` for masks lam: [..., words] each."""
    out = _lower_tables(lam, form, len(form.widths) - 1)
    width = form.widths[-1]
    top = (lam >> sum(form.widths[:-1])) & ((1 << width) - 1)
    for name, borrow in (("a0", 0), ("a1", 1)):
        start = (top + borrow) & ((1 << width) - 1)  # x >= 0 for m in [start, start + half), x < 0 for the next half
        half = 1 << (width - 1)
        low = (start + half) & ((1 << width) - 1)
        negative = prefix_table(start, form.words) ^ prefix_table(low, form.words)
        out[name] = torch.where((low > start)[..., None], ~negative, negative)
    return out


def _zero_tables(lam: Tensor, form: Form) -> dict[str, Tensor]:
    """Return the truth tables of `zero_form` for masks lam: [..., words] each."""
    out: dict[str, Tensor] = {}
    offset = 0
    for i, width in enumerate(form.widths):
        out[f"eq{i}"] = _point((lam >> offset) & ((1 << width) - 1), form.words)
        offset += width
    return out


def _within_tables(lam: Tensor, form: Form) -> dict[str, Tensor]:
    """Return the truth tables of `within_form` for masks lam: [..., words] each."""
    low, *high = form.widths
    out = {"lt0": prefix_table(lam & ((1 << low) - 1), form.words)}
    for kind, borrow in (("z", 0), ("n", 1)):
        rest = (lam >> low) + borrow
        for i, width in enumerate(high, 1):
            out[f"{kind}{i}"] = _point(rest & ((1 << width) - 1), form.words)
            rest = rest >> width
    return out


async def _ask(c: Context, x: Masked, form: Form, tables: Callable[[Tensor, Form], dict[str, Tensor]]) -> Bit:
    """Look up and open a predicate's bits. 1 round."""
    shape = (len(form.names), *x.shape)

    def made() -> Tensor:
        found = tables(x.lam, form)
        return torch.stack([found[name] for name in form.names])

    dealt = c.deal_xor("comparison tables", (*shape, form.words), made, form.word_bits)
    rho = c.tape.random("mask bits", shape, 1)
    if not c.evaluating:
        return Bit(c, form, await BitOpening(c.blank(shape)), rho)
    octets = dealt.view(torch.uint8).reshape(*shape, 8 * form.words)  # little-endian, as everywhere here
    digits: list[tuple[Tensor, Tensor]] = []  # the octet's position, the bit in it
    offset = 0
    for width in form.widths:
        digit = (x.m >> offset) & ((1 << width) - 1)
        digits.append(((digit >> 3)[..., None], (digit & 7).to(torch.uint8)))
        offset += width
    found = []
    for place, table in zip(form.places, octets, strict=True):
        octet, bit = digits[place]
        found.append((table.gather(-1, octet)[..., 0] >> bit) & 1)
    opened = await BitOpening(torch.stack(found) ^ rho.to(torch.uint8), torch.int8)
    return Bit(c, form, opened, rho)


async def less_than_zero(c: Context, x: Masked, most: int = MAX_DIGIT) -> Bit:
    """Return [x < 0] for x read as a signed number modulo 2^bits, from digits of at most `most` bits. 1 round."""
    require(2 <= x.bits <= 32, "less-than-zero", f"rings of 2 to 32 bits are supported, got {x.bits}")
    return await _ask(c, x, sign_form(x.bits, most), _sign_tables)


async def borrows(c: Context, x: Masked) -> Bit:
    """Return [m < lam] for x = m - lam modulo 2^bits: the borrow out of these bits. 1 round."""
    require(1 <= x.bits <= 32, "borrow", f"rings of 1 to 32 bits are supported, got {x.bits}")
    return await _ask(c, x, borrow_form(x.bits), _borrow_tables)


async def is_zero(c: Context, x: Masked) -> Bit:
    """Return [x = 0] for x modulo 2^bits. 1 round."""
    require(1 <= x.bits <= 32, "equality", f"rings of 1 to 32 bits are supported, got {x.bits}")
    return await _ask(c, x, zero_form(x.bits), _zero_tables)


async def within(c: Context, x: Masked, low_bits: int) -> Bit:
    """Return [0 <= x < 2^low_bits] for x read modulo 2^bits. 1 round."""
    require(
        0 < low_bits <= MAX_DIGIT and low_bits < x.bits <= 32,
        "within",
        f"intervals of 1 to {MAX_DIGIT} bits in a ring of up to 32 are supported, got {low_bits} bits in one of {x.bits}",
    )
    return await _ask(c, x, within_form(x.bits, low_bits), _within_tables)
