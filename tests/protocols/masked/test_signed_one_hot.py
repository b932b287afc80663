"""One-hot vectors dealt as bits: what is read is sigma T[d], against numpy-like indexing, with the dealer's sigma."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from protocols.masked.context import Context, open_value
from protocols.masked.shares import Shared
from protocols.masked.signed_one_hot import signed_look_up, signed_one_hot
from tests.protocols.gate_harness import run

PARTIES = [2, 3]


def by_difference(tables: torch.Tensor) -> torch.Tensor:
    """Tables of m's digit less the mask's, [tables, 2^width], as tables of both."""
    j = torch.arange(tables.shape[1])
    return tables[:, (j[:, None] - j) % len(j)]


@pytest.mark.parametrize("parties", PARTIES)
@pytest.mark.parametrize(("low", "width"), [(0, 2), (0, 3), (4, 6), (10, 7), (3, 8)])
def test_look_up(parties: int, low: int, width: int) -> None:
    bits, ring_bits = low + width, 30
    x = torch.arange(600) % (1 << bits)
    tables = torch.randint(-1000, 1000, (2, 1 << width), generator=torch.Generator().manual_seed(width))

    async def gate(c: Context, a: Shared) -> Any:
        hot = signed_one_hot(c, await open_value(c, a), low, width, ring_bits)
        found = signed_look_up(c, hot, by_difference(tables).to(c.device), ring_bits)
        sign = Shared(c.deal("sign", x.shape, ring_bits, hot.sign), ring_bits, 0)
        return found.map(lambda t: t[0]), found.map(lambda t: t[1]), sign

    found = run(gate, [(x, bits)], parties)
    one, two, sign = found.outputs
    assert set(sign.tolist()) == ({1, -1} if parties == 2 else {1})
    digit = (x >> low) & ((1 << width) - 1)
    above = (digit + 1) & ((1 << width) - 1)  # a borrow from below
    if low == 0:
        above = digit
    for got, table in ((one, tables[0]), (two, tables[1])):
        assert (((got * sign) == table[digit]) | ((got * sign) == table[above])).all()
    if parties == 2:
        assert found.costs[-1].offline_bytes < 600 * (1 << width) / 8 + 600 * 4 + 200


@pytest.mark.parametrize("parties", PARTIES)
@pytest.mark.parametrize("width", [2, 6, 7])
def test_a_table_of_both_digits(parties: int, width: int) -> None:
    """Of m's digit and the mask's: here each of them, and whether one borrows from the other."""
    x, ring_bits = torch.arange(600) % (1 << width), 30
    m, lam = (torch.arange(1 << width).reshape(shape) for shape in ((-1, 1), (1, -1)))
    tables = torch.stack([m + 0 * lam, lam + 0 * m, (m < lam) * 1])

    async def gate(c: Context, a: Shared) -> Any:
        opened = await open_value(c, a)
        hot = signed_one_hot(c, opened, 0, width, ring_bits)
        found = signed_look_up(c, hot, tables.to(c.device), ring_bits)
        sign = Shared(c.deal("sign", x.shape, ring_bits, hot.sign), ring_bits, 0)
        return *(Shared(t, ring_bits, 0) for t in found.x.unbind(0)), sign

    *found, sign = run(gate, [(x, width)], parties).outputs
    m_digit, lam_digit, borrows = (value * sign for value in found)
    assert torch.equal((m_digit - lam_digit) & ((1 << width) - 1), x)
    assert torch.equal(borrows, (m_digit < lam_digit) * 1)
    assert len(set(lam_digit.tolist())) > 0.9 * 2**width


def test_each_partys_bits_are_uniform() -> None:
    seen: list[torch.Tensor] = []

    async def gate(c: Context, a: Shared) -> Shared:
        hot = signed_one_hot(c, await open_value(c, a), 0, 6, 20)
        if c.evaluating:
            seen.append(hot.words)
        return a

    run(gate, [(torch.full((4000,), 17), 6)])
    for words in seen:
        for place in (0, 17, 43, 63):
            ones = int(((words >> place) & 1).sum())
            assert abs(ones - 2000) < 160  # five deviations
