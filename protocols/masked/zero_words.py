"""[x = 0] of long words under a mask: equality of digits, then one-time tables over the opened bits. One round or two.

x is masked by XOR or by addition modulo 2^bits: it is zero where m = lam, all of whose digits are then equal. For each digit
the dealer deals the XOR-shared truth table of [m_i = lam_i] over the public digit; the bit is opened under a dealt bit
rho_i. All digits are equal where the opened bits are the complement of the rho's: again a truth table, over bits that are
public now, and again its bit may be opened, for groups of four at a time. The last table is the additive one-hot vector of
the complement, so the answer is local.

| form | digits | opened | dealt for 64 bits | rounds |
| --- | --- | --- | --- | --- |
| `one` | 6 bits | a bit each | 8 bytes a digit, 2^digits elements | 1 |
| `two` | 4 bits | a bit each, then a bit each four | 2 bytes a digit, 2 each four, 16 elements | 2 |

Any number of parties. Error: none. Leaks: nothing; opened bits are uniform (docs/security.md, "Zero words").
Source: Ishai et al. 2013 (one-time truth tables).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from protocols.masked.context import BitOpening, Context, require
from protocols.masked.forms import Form
from protocols.masked.one_hot import deal_scaled, look_up
from protocols.masked.shares import Masked, Shared

Way = Literal["one", "two"]
DIGIT: dict[Way, int] = {"one": 6, "two": 4}
GROUP = 4
MOST = 10  # bits that the last table has at most


@dataclass(frozen=True)
class Plan:
    """How words of `bits` bits are tested. digits: of DIGIT bits; last: bits that the last table is over."""

    way: Way
    bits: int

    @property
    def digits(self) -> int:
        """Digits of a word."""
        return -(-self.bits // DIGIT[self.way])

    @property
    def last(self) -> int:
        """Bits that the last table is over."""
        return self.digits if self.way == "one" else -(-self.digits // GROUP)

    def form(self, words: int, bits: int, parties: int) -> Form:
        """Return what tests of so many words cost, results modulo 2^bits, and the opening of the words."""
        digit = DIGIT[self.way]
        grouped = 0 if self.way == "one" else self.last
        dealt = (self.digits << digit) + (grouped << GROUP) + (bits << self.last)
        sent = (self.bits + self.digits + grouped) * (parties - 1)
        return Form(self.way, 2 if grouped else 1, words * sent / 8, words * dealt / 8, words * self.digits * 3e-8)


def _points(at: Tensor) -> Tensor:
    return torch.ones_like(at) << at


async def _equal(c: Context, m: Tensor, lam: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Return the opened bits [m = lam] XOR rho of public digits of so many bits, and rho. 1 round."""
    dealt = c.deal_xor("equal digits", lam.shape, lambda: _points(lam), 1 << width)
    rho = c.tape.random("mask bits", tuple(lam.shape), 1)
    if not c.evaluating:
        return await BitOpening(c.blank(lam.shape)), rho
    return await BitOpening(((dealt >> m) & 1) ^ rho), rho


def _digits(x: Tensor, width: int, count: int) -> Tensor:
    """Return the digits of words, low to high: [count, ...]."""
    return torch.stack([(x >> (i * width)) & ((1 << width) - 1) for i in range(count)])


def _joined(bits: Tensor, count: int) -> Tensor:
    """Return numbers of `count` bits each, from the first axis; what is missing at the end is 1: [ceil(n / count), ...]."""
    groups = -(-bits.shape[0] // count)
    if bits.is_meta:
        return bits[:1].expand(groups, *bits.shape[1:])
    missing = groups * count - bits.shape[0]
    whole = torch.cat([bits, torch.ones_like(bits[:1]).expand(missing, *bits.shape[1:])]) if missing else bits
    whole = whole.reshape(groups, count, *bits.shape[1:])
    return sum(whole[:, i] << i for i in range(count))  # type: ignore[return-value]


async def zero_words(c: Context, x: Masked, way: Way, bits: int) -> Shared:
    """Return [x = 0] modulo 2^bits of words under a mask by XOR or addition. 1 round, or 2 with `way` "two"."""
    plan = Plan(way, x.bits)
    require(plan.last <= MOST, "zero words", f"words of {x.bits} bits have {plan.last} digits to join, at most {MOST}")
    width = DIGIT[way]
    blank = c.blank((plan.digits, *x.shape))
    m = _digits(x.m, width, plan.digits) if c.evaluating else blank
    opened, rho = await _equal(c, m, _digits(x.lam, width, plan.digits) if c.tape.dealing else blank, width)

    def wanted(count: int) -> Tensor:
        return _joined(1 - rho if c.tape.dealing else c.blank(rho.shape), count)

    if way == "two":
        opened, rho = await _equal(c, _joined(opened, GROUP), wanted(GROUP), GROUP)
    index = wanted(plan.last)[0]
    table = deal_scaled(c, "all equal", index, plan.last, bits, [lambda: torch.ones_like(index)])[0]
    if not c.evaluating:
        return Shared(c.blank(x.shape), bits, 0)
    return Shared(look_up(table, _joined(opened, plan.last)[0]), bits, 0)
