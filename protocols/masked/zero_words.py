"""[x = 0] of long words under a mask: equality of digits, then one-time tables over the opened bits. One round or two.

x is masked by XOR or by addition modulo 2^bits: it is zero where m = lam, all of whose digits are then equal. For each digit
the dealer deals the XOR-shared truth table of [m_i = lam_i] over the public digit; the bit is opened under a dealt bit
rho_i. All digits are equal where the opened bits are the complement of the rho's: again a truth table, over bits that are
public now, and again its bit may be opened. The last table is the additive one-hot vector of the complement, so the answer
is local. A word holds the tables of as many digits as fit 64 bits, whose bits are opened as one number.

| form | digits | dealt for 64 bits, beside the last table of 2^(bits that are left) elements | rounds |
| --- | --- | --- | --- |
| `one` | 6 bits, one a word | 11 words | 1 |
| `two` | 4 bits, four a word; then the four bits of each word | 4 words, 1 word | 2 |

Any number of parties. Error: none. Leaks: nothing; opened bits are uniform (docs/security.md, "Zero words").
Source: Ishai et al. 2013 (one-time truth tables).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from protocols.masked.context import Context, XorOpening, require
from protocols.masked.forms import Form
from protocols.masked.one_hot import deal_scaled, look_up
from protocols.masked.shares import Masked, Shared

Way = Literal["one", "two"]
DIGIT: dict[Way, int] = {"one": 6, "two": 4}
WORD = 64
MOST = 10  # bits that the last table has at most


@dataclass(frozen=True)
class Plan:
    """How words of `bits` bits are tested. words: 64-bit words of tables in each round; each leaves `each` bits."""

    way: Way
    bits: int

    @property
    def each(self) -> int:
        """Digits whose tables a word holds."""
        return WORD >> DIGIT[self.way]

    @property
    def words(self) -> tuple[int, ...]:
        """Words of tables in each round."""
        first = -(-self.bits // (DIGIT[self.way] * self.each))
        return (first,) if self.way == "one" else (first, -(-first // self.each))

    @property
    def last(self) -> int:
        """Bits that the last table is over."""
        return self.words[-1] * self.each

    def form(self, tests: int, bits: int, parties: int) -> Form:
        """Return what so many tests cost, results modulo 2^bits, and the opening of what is tested."""
        words = sum(self.words)
        dealt = words * WORD + (bits << self.last)
        sent = (self.bits + words * self.each) * (parties - 1)
        return Form(self.way, len(self.words), tests * sent / 8, tests * dealt / 8, tests * words * 6e-8)


def _digits(x: Tensor, width: int, count: int) -> Tensor:
    """Return the digits of words, low to high: [count, ...]; those beyond the word are 0."""
    found = [(x >> (i * width)) & ((1 << width) - 1) for i in range(min(count, -(-WORD // width)))]
    return torch.stack([*found, *[torch.zeros_like(x)] * (count - len(found))])


async def _equal(c: Context, m: Tensor, lam: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Return opened bits [m = lam] XOR rho of public digits [words each, ...], and rho: numbers of `each` bits [words, ...].
    1 round."""
    each = WORD >> width
    shape = (lam.shape[0] // each, *lam.shape[1:])

    def tables() -> Tensor:
        grouped = lam.reshape(shape[0], each, *shape[1:])
        return sum(torch.ones_like(grouped[:, i]) << (grouped[:, i] + (i << width)) for i in range(each))  # type: ignore[return-value]

    dealt = c.deal_xor("equal digits", shape, tables)
    rho = c.tape.random("mask bits", shape, each, "xor")
    found = c.blank(shape)
    if c.evaluating:
        grouped = m.reshape(shape[0], each, *shape[1:])
        parts = [((dealt >> (grouped[:, i] + (i << width))) & 1) << i for i in range(each)]
        found = sum(parts[1:], parts[0])
    opened = await XorOpening(found, rho, each)
    return opened.m, rho


async def zero_words(c: Context, x: Masked, way: Way, bits: int) -> Shared:
    """Return [x = 0] modulo 2^bits of words under a mask by XOR or addition. 1 round, or 2 with `way` "two"."""
    plan, width = Plan(way, x.bits), DIGIT[way]
    require(plan.last <= MOST, "zero words", f"words of {x.bits} bits leave {plan.last} bits to join, at most {MOST}")
    every = (1 << plan.each) - 1
    m, lam = x.m, x.lam
    for number, words in enumerate(plan.words):
        count = words * plan.each
        if number == 0:
            digits = [_digits(t, width, count) if known else c.blank((count, *x.shape)) for t, known in _known(c, m, lam)]
        else:
            digits = [_filled(t, count) if known else c.blank((count, *x.shape)) for t, known in _known(c, m, lam)]
        m, rho = await _equal(c, digits[0], digits[1], width)
        lam = every - rho if c.tape.dealing else rho
    index = _joined(lam, plan.each) if c.tape.dealing else c.blank(x.shape)
    table = deal_scaled(c, "all equal", index, plan.last, bits, [lambda: torch.ones_like(index)])[0]
    if not c.evaluating:
        return Shared(c.blank(x.shape), bits, 0)
    return Shared(look_up(table, _joined(m, plan.each)), bits, 0)


def _known(c: Context, m: Tensor, lam: Tensor) -> tuple[tuple[Tensor, bool], tuple[Tensor, bool]]:
    """Return m and lam, each with whether this role has it."""
    return (m, c.evaluating), (lam, c.tape.dealing)


def _filled(x: Tensor, count: int) -> Tensor:
    """Return digits [n, ...] and zeros, `count` of them."""
    return torch.cat([x, torch.zeros_like(x[:1]).expand(count - x.shape[0], *x.shape[1:])]) if count > x.shape[0] else x


def _joined(x: Tensor, each: int) -> Tensor:
    """Return one number of numbers of `each` bits [n, ...]."""
    out = x[0]
    for i in range(1, x.shape[0]):
        out = out | (x[i] << (i * each))
    return out
