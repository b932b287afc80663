"""Zero tests by point functions against plain comparison, their costs, and what is refused."""

from __future__ import annotations

import pytest
import torch

from mpc import ring
from mpc.errors import RangeError
from mpc.tape import HEADER_BYTES
from protocols.masked import zero_test
from protocols.masked.context import Context, open_value
from protocols.masked.shares import Shared
from tests.protocols.gate_harness import Gate, predict, run

RESULTS = (1, 6, 22, 64)


def gate(*results: int) -> Gate:
    """[x = 0] modulo 2^bits, for each of `results`."""

    async def found(c: Context, s: Shared) -> list[Shared]:
        x = await open_value(c, s)
        return [zero_test.by_points(c, x, bits) for bits in results]

    return found


@pytest.mark.parametrize("bits", [1, 2, 5, 8, 12])
def test_every_value_of_a_ring(bits: int) -> None:
    x = torch.arange(1 << bits).repeat(2)
    result = run(gate(*RESULTS), [(x, bits)])
    for found, k in zip(result.outputs, RESULTS, strict=True):
        assert torch.equal(ring.reduce(found, k), (x == 0).to(torch.int64))
    assert result.costs[0].rounds == 1  # the opening of x


@pytest.mark.parametrize("bits", [24, 40, 63, 64])
def test_zero_and_what_differs_from_it_in_one_bit(bits: int) -> None:
    x = torch.cat([torch.tensor([0, 1, -1, 0]), torch.ones(bits, dtype=torch.int64) << torch.arange(bits)])
    for found, k in zip(run(gate(*RESULTS), [(x, bits)]).outputs, RESULTS, strict=True):
        assert torch.equal(ring.reduce(found, k), (ring.reduce(x, bits) == 0).to(torch.int64))


@pytest.mark.parametrize("parties", [2, 3])
@pytest.mark.parametrize("bits", [1, 2, 7])
def test_tables_of_few_bits(bits: int, parties: int) -> None:
    x = torch.arange(1 << bits).repeat(3)

    async def program(c: Context, s: Shared) -> list[Shared]:
        opened = await open_value(c, s)
        return [zero_test.by_table(c, opened, 7), zero_test.of_few_bits(c, opened, 7)]

    result = run(program, [(x, bits)], parties)
    for found in result.outputs:
        assert torch.equal(ring.reduce(found, 7), (x == 0).to(torch.int64))
    assert result.costs[0].rounds == 1


@pytest.mark.parametrize("parties", [2, 3])
def test_few_bits_are_tested_by_what_is_predicted(parties: int) -> None:
    names = {bits: zero_test.small_form(336, bits, 7, parties, "auto").name for bits in (5, 7, 11)}
    assert names == {5: "table", 7: "table", 11: "points" if parties == 2 else "table"}


@pytest.mark.parametrize(("elements", "bits"), [(1, 4), (756, 24), (700, 40), (20_000, 11)])
def test_bytes_are_those_that_are_counted(elements: int, bits: int) -> None:
    shapes = [((elements,), bits)]
    opened, cost = (predict(program, shapes, 2) for program in (gate(), gate(6)))
    form = zero_test.points_form(elements, bits, 6)
    assert 2 * (cost.offline_bytes - opened.offline_bytes - 3 * HEADER_BYTES) == form.dealt
    assert (cost.rounds, cost.bytes_sent) == (opened.rounds, opened.bytes_sent)
    assert form.dealt == 2 * elements * (16 * (bits - min(4, bits - 1)) + (1 << min(4, bits - 1)) * 6 // 8)


def test_what_cannot_be_done_is_named() -> None:
    with pytest.raises(RangeError, match="for two parties, there are 3"):
        predict(gate(6), [((4,), 40)], 3)
    with pytest.raises(RangeError, match="a result has 1 to 64 bits, got 65"):
        predict(gate(65), [((4,), 10)], 2)
