"""What is made of a comparison's opened bits: other predicates, a bit alone, products with values that are lifted.

A comparison's answer is a polynomial in mask bits with public coefficients, and the dealer deals every product of them, in
every ring and for every factor (`comparison`). Where a round costs less than these bytes, the answer is looked up by the
opened bits in a second one-time table, masked and opened: one mask bit is left. A sum that is to be multiplied by one bit is
dealt twice, as the entries of a table that the opened bit reads (`lifted.sum_known`).

Leaks: nothing; a table is XOR-shared and its entry is opened under a fresh bit (docs/security.md, "Opened bits").
Sources: one-time truth tables, Ishai et al. 2013.
"""

from __future__ import annotations

import operator
from functools import cache
from typing import Any

import torch
from torch import Tensor

from protocols.masked import lifted
from protocols.masked.comparison import WORD, Bit, Digit, Form
from protocols.masked.context import BitOpening, Context
from protocols.masked.shares import Masked, Shared, WideShared

ALONE = Form.of([Digit(0, 1)], {"bit": (0, "eq")}, [], "bit")


def part(bit: Bit, form: Form) -> Bit:
    """Return another predicate in some of the bits that were opened."""
    places = [bit.form.names.index(name) for name in form.names]

    def taken(t: Tensor) -> Tensor:
        return bit.c.blank((len(places), *bit.shape)) if t.is_meta else torch.stack([t[place] for place in places])

    return Bit(bit.c, form, taken(bit.opened), taken(bit.rho))


def opposite(bit: Bit) -> Bit:
    """Return 1 less a bit whose form has a flip."""
    form = bit.form
    assert form.flip is not None
    if bit.opened.is_meta:
        return bit
    turned = [row ^ 1 if name == form.flip else row for name, row in zip(form.names, bit.opened, strict=True)]
    return Bit(bit.c, form, torch.stack(turned), bit.rho)


def truth(form: Form) -> tuple[int, ...]:
    """Return the predicate of all assignments to its bits, the first name's the lowest.

    >>> truth(Form.of([], {"a": (0, "eq"), "b": (0, "lt"), "s": (0, "sign")}, [(1, frozenset("ab"))], "s"))
    (0, 0, 0, 1, 1, 1, 1, 0)
    """
    out = []
    for u in range(1 << len(form.names)):
        true = {name for i, name in enumerate(form.names) if u >> i & 1}
        out.append((sum(k for k, mono in form.polynomial if mono <= true) + int(form.flip in true)) & 1)
    return tuple(out)


@cache
def _tables(found: tuple[int, ...], names: int, device: torch.device) -> Tensor:
    """Return the tables by the mask bits rho: int64 words [2^names, words], bit u of which is truth[u xor rho]."""
    u = torch.arange(1 << names)
    bits = torch.tensor(found)[u[:, None] ^ u]
    count = min(WORD, 1 << names)
    return (bits.reshape(1 << names, -1, count) << torch.arange(count)).sum(-1).to(device)


def _number(bits: Tensor) -> Tensor:
    """Return the numbers whose bits are [bits, ...], the lowest first."""
    out = bits[0].to(torch.int64)
    for i in range(1, bits.shape[0]):
        out = out | (bits[i].to(torch.int64) << i)
    return out


async def alone(bit: Bit) -> Bit:
    """Return the same predicate in one opened bit, so in one mask bit. 1 round, 1 bit. Offline: 2^names bits."""
    c, names = bit.c, len(bit.form.names)
    words, word_bits = max(1, (1 << names) // WORD), min(WORD, 1 << names)

    def table() -> Tensor:
        place = _number(bit.rho)
        return _tables(truth(bit.form), names, place.device)[place]

    dealt = c.deal_xor("table of a predicate", (*bit.shape, words), table, word_bits)
    rho = c.tape.random("mask bits", (1, *bit.shape), 1)
    if not c.evaluating or bit.opened.is_meta:
        return Bit(c, ALONE, await BitOpening(c.blank((1, *bit.shape))), rho)
    place = _number(bit.opened)
    word = dealt.gather(-1, (place >> 6)[..., None])[..., 0]
    opened = await BitOpening(((word >> (place & (WORD - 1))) & 1) ^ rho, torch.int8)
    return Bit(c, ALONE, opened, rho)


def times(c: Context, op: str, bit: Bit, y: Masked, bits: int) -> Shared | WideShared:
    """Return [bit y] modulo 2^bits, y lifted on the way; local. The bit has y's shape.

    Offline, y of k bits, of each product of mask bits: 2 bits + (bits - k); and bits + (bits - k) where k is less."""
    count = bit.form.products
    masks = lifted.multiply_known(c, op, y.move(lambda t: t.expand(count, *t.shape)), bit.products, 0, bits)
    whole = lifted.lift(c, y, bits, op)
    if not c.evaluating:
        return whole
    constant, coefficients = bit.coefficients()
    total: Any = whole.x * constant.to(torch.int64)
    for place, coefficient in enumerate(coefficients):
        words = masks.x.map(operator.itemgetter(place)) if isinstance(masks, WideShared) else masks.x[place]
        total = total + words * coefficient.to(torch.int64)
    return lifted.sharing(total, bits, y.frac)


def choice(bit: Bit) -> lifted.Choice:
    """Return a bit of one opened bit as a factor of `lifted.sum_known`."""
    assert bit.form.products == len(bit.form.names) == 1
    return lifted.Choice(bit.opened if bit.opened.is_meta else bit.opened[0], bit.rho[0])
