"""Less-than-zero on a masked value: one round, a handful of bits, for any ring and any number of parties.

x = m - lam modulo 2^k is negative when its top bit is set. m is cut into digits of at most 8 bits. For every digit the
dealer deals XOR-shared one-time truth tables indexed by the *public* digit of m:

* lower digits: lt = [m_i < lam_i] and eq = [m_i = lam_i]; the borrow into the top digit is lt + eq (lt' + eq' (...));
* top digit: the sign without (a0) and with (a1) a borrow; the answer is a0 + (a1 - a0) borrow.

A looked-up bit is masked by a dealt random bit rho and opened: u = b xor rho is uniform. Every b = u + (1 - 2u) rho is then
linear in rho, and the answer is a polynomial in the rho's with *public* coefficients; the dealer deals arithmetic shares of
the products of rho's, in any ring. The same products times a mask lam_y give answer * y for a masked y in the same round.

Rounds 1; online (3, 5, 7 bits for 2, 3, 4 digits) per element; error none; leaks nothing (opened bits are uniform).
Ishai et al. 2013 (one-time truth tables); Boyle, Gilboa, Ishai 2019 (gates on masked inputs).
"""

from __future__ import annotations

from functools import cache
from itertools import combinations

import torch
from torch import Tensor

from protocols.masked.context import BitOpening, Context, require
from protocols.masked.wires import Masked, Shared

MAX_DIGIT = 8
Monomial = frozenset[str]


@cache
def plan(bits: int) -> tuple[tuple[int, ...], tuple[tuple[int, Monomial], ...], tuple[Monomial, ...]]:
    """Digit widths (low to high), the answer's polynomial, and all products of mask bits that it needs."""
    count = -(-bits // MAX_DIGIT)
    base, extra = divmod(bits, count)
    widths = tuple(base + int(i < extra) for i in range(count))
    borrow: list[tuple[int, Monomial]] = []
    for i in range(count - 1):  # low to high: borrow = lt_i + eq_i * borrow
        borrow = [(1, frozenset({f"lt{i}"}))] + [(k, mono | {f"eq{i}"}) for k, mono in borrow]
    poly = [(1, frozenset({"a0"}))]
    for k, mono in borrow:
        poly += [(k, mono | {"a1"}), (-k, mono | {"a0"})]
    subsets = {frozenset(s) for _, mono in poly for n in range(1, len(mono) + 1) for s in combinations(sorted(mono), n)}
    return widths, tuple(poly), tuple(sorted(subsets, key=lambda s: (len(s), sorted(s))))


def variables(bits: int) -> list[str]:
    """The names of the bits that are looked up and opened, in order. eq of the lowest digit is not needed."""
    widths, _, _ = plan(bits)
    names = ["a0", "a1"] if len(widths) > 1 else ["a0"]
    for i in range(len(widths) - 1):
        names += [f"lt{i}"] + ([f"eq{i}"] if i > 0 else [])
    return names


class Bit:
    """The result of a comparison before anyone has chosen a ring for it."""

    def __init__(self, c: Context, bits: int, opened: Tensor, rho: Tensor) -> None:
        self._c, self._bits, self._rho = c, bits, rho  # [variables, ...]
        self._names = variables(bits)
        self._opened = opened

    @property
    def shape(self) -> torch.Size:
        """Shape of the comparison."""
        return self._rho.shape[1:]

    def _products(self) -> Tensor:
        _, _, subsets = plan(self._bits)
        index = {name: i for i, name in enumerate(self._names)}
        out = []
        for subset in subsets:
            value: Tensor | None = None
            for name in subset:
                bit = self._rho[index[name]]
                value = bit if value is None else value & bit
            assert value is not None
            out.append(value)
        return torch.stack(out)

    def _coefficients(self) -> tuple[Tensor, list[Tensor]]:
        """Public part, and the public coefficient of every product of mask bits."""
        _, poly, subsets = plan(self._bits)
        u = {name: self._opened[i] for i, name in enumerate(self._names)}
        sign = {name: 1 - 2 * value for name, value in u.items()}
        table: dict[Monomial, Tensor] = {}
        for k, mono in poly:
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
        return table[frozenset()], [table[s] for s in subsets]

    def share(self, bits: int) -> Shared:
        """The bit as an arithmetic sharing modulo 2^bits; local. Offline: bits per product of mask bits."""
        c = self._c
        _, _, subsets = plan(self._bits)
        dealt = c.deal_table("bit", (len(subsets), *self.shape), bits, self._products)
        if not c.evaluating:
            return Shared(c.blank(self.shape), bits, 0)
        constant, coefficients = self._coefficients()
        # narrow words wrap modulo a power of two that the ring divides
        out = constant.to(dealt.dtype) if c.first else torch.zeros(self.shape, dtype=dealt.dtype, device=dealt.device)
        for coefficient, value in zip(coefficients, dealt, strict=True):
            out = out + coefficient * value
        return Shared(out.to(torch.int64), bits, 0)

    def times(self, y: Masked) -> Shared:
        """bit * y as a sharing in y's ring; local. y has the comparison's shape. Offline: twice `share`."""
        c = self._c
        _, _, subsets = plan(self._bits)
        bit = self.share(y.bits)
        dealt = c.deal("bit times mask", (len(subsets), *self.shape), y.bits, lambda: self._products() * y.lam)
        if not c.evaluating:
            return Shared(c.blank(self.shape), y.bits, y.frac)
        constant, coefficients = self._coefficients()
        masked_part = constant * y.lam
        for coefficient, value in zip(coefficients, dealt, strict=True):
            masked_part = masked_part + coefficient * value
        return Shared(y.m * bit.x - masked_part, y.bits, y.frac)


def _prefix(bound: Tensor, words: int) -> Tensor:
    """Tables of [j < bound]: int64 words [..., words] whose bit j is set for j < bound."""
    start = torch.arange(words, device=bound.device) * 64
    inside = (bound[..., None] - start).clamp(0, 64)
    partial = (torch.ones_like(inside) << (inside & 63)) - 1
    return torch.where(inside == 64, torch.full_like(inside, -1), partial)


def _point(at: Tensor, words: int) -> Tensor:
    """Tables of [j = at]."""
    start = torch.arange(words, device=at.device) * 64
    offset = at[..., None] - start
    hit = (offset >= 0) & (offset < 64)
    return torch.where(hit, torch.ones_like(offset) << (offset & 63), torch.zeros_like(offset))


def _tables(lam: Tensor, bits: int) -> Tensor:
    """All truth tables for masks lam: [variables, ..., words], padded to the widest digit."""
    widths, _, _ = plan(bits)
    words = max(1, (1 << max(widths)) // 64)
    out: dict[str, Tensor] = {}
    offset = 0
    for i, width in enumerate(widths[:-1]):
        digit = (lam >> offset) & ((1 << width) - 1)
        out[f"lt{i}"] = _prefix(digit, words)
        if i > 0:
            out[f"eq{i}"] = _point(digit, words)
        offset += width
    width = widths[-1]
    top = (lam >> offset) & ((1 << width) - 1)
    for name, borrow in (("a0", 0), ("a1", 1)):
        start = (top + borrow) & ((1 << width) - 1)  # x >= 0 for m in [start, start + half), x < 0 for the next half
        half = 1 << (width - 1)
        low = (start + half) & ((1 << width) - 1)
        negative = _prefix(start, words) ^ _prefix(low, words)
        out[name] = torch.where((low > start)[..., None], ~negative, negative)
    return torch.stack([out[name] for name in variables(bits)])


async def less_than_zero(c: Context, x: Masked) -> Bit:
    """[x < 0] for x read as a signed number modulo 2^bits. 1 round."""
    require(2 <= x.bits <= 32, "less-than-zero", f"rings of 2 to 32 bits are supported, got {x.bits}")
    names = variables(x.bits)
    widths, _, _ = plan(x.bits)
    words = max(1, (1 << max(widths)) // 64)
    tables = c.deal_xor("comparison tables", (len(names), *x.shape, words), lambda: _tables(x.lam, x.bits))
    rho = c.tape.random("mask bits", (len(names), *x.shape), 1)
    if not c.evaluating:
        opened = await BitOpening(c.blank((len(names), *x.shape)))
        return Bit(c, x.bits, opened, rho)
    octets = tables.view(torch.uint8).reshape(len(names), *x.shape, 8 * words)  # little-endian, as everywhere here
    digits: list[tuple[Tensor, Tensor]] = []  # the octet's position, the bit in it
    offset = 0
    for width in widths:
        digit = (x.m >> offset) & ((1 << width) - 1)
        digits.append(((digit >> 3)[..., None], (digit & 7).to(torch.uint8)))
        offset += width
    found = []
    for name, table in zip(names, octets, strict=True):
        octet, bit = digits[-1 if name[0] == "a" else int(name[2:])]
        found.append((table.gather(-1, octet)[..., 0] >> bit) & 1)
    opened = await BitOpening(torch.stack(found) ^ rho.to(torch.uint8), torch.int8)
    return Bit(c, x.bits, opened, rho)
