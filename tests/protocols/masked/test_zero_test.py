"""Zero tests: every form against plain comparison, the costs that the choice goes by, and what is refused."""

from __future__ import annotations

import pytest
import torch

from mpc import ring
from mpc.errors import RangeError
from mpc.tape import HEADER_BYTES
from protocols.masked import forms, zero_test
from protocols.masked.comparison import is_zero
from protocols.masked.context import Context, open_value
from protocols.masked.shares import Shared
from tests.protocols.gate_harness import Gate, predict, run

FORMS = [(2, "points"), (2, "table"), (3, "table"), (2, "comparison"), (3, "comparison")]


def gate(form: str | None, *results: int) -> Gate:
    """[x = 0] modulo 2^bits, for each of `results`, in one form or the chosen one."""

    async def found(c: Context, s: Shared) -> list[Shared]:
        x = await open_value(c, s)
        if form == "points":
            return [zero_test.by_points(c, x, bits) for bits in results]
        if form == "table":
            return [zero_test.by_table(c, x, bits) for bits in results]
        if form == "comparison":
            bit = await is_zero(c, x)
            return [bit.share(bits) for bits in results]
        return [await zero_test.zero_test(c, x, bits) for bits in results]

    return found


@pytest.mark.parametrize(("parties", "form"), FORMS)
@pytest.mark.parametrize("bits", [1, 2, 5, 8, 12])
def test_every_value_of_a_ring(bits: int, parties: int, form: str) -> None:
    x = torch.arange(1 << bits).repeat(2)
    result = run(gate(form, 1, 6, 22, 64), [(x, bits)], parties)
    for found, k in zip(result.outputs, (1, 6, 22, 64), strict=True):
        assert torch.equal(ring.reduce(found, k), (x == 0).to(torch.int64))
    assert result.costs[0].rounds == (2 if form == "comparison" else 1)


@pytest.mark.parametrize("bits", [24, 40, 63, 64])
def test_large_rings_by_points(bits: int) -> None:
    """Zero, its neighbours, and what differs from zero in one bit."""
    x = torch.cat([torch.tensor([0, 1, -1, 0]), torch.ones(bits, dtype=torch.int64) << torch.arange(bits)])
    result = run(gate(None, 6, 64), [(x, bits)])
    for found, k in zip(result.outputs, (6, 64), strict=True):
        assert torch.equal(ring.reduce(found, k), (x == 0).to(torch.int64))
    assert result.costs[0].rounds == 1


@pytest.mark.parametrize("parties", [2, 3])
@pytest.mark.parametrize(("elements", "bits"), [(1, 4), (12, 8), (756, 11), (700, 24), (20_000, 11), (400_000, 6)])
def test_the_choice_goes_by_what_is_counted(elements: int, bits: int, parties: int) -> None:
    shapes = [((elements,), bits)]
    opened = predict(lambda c, s: open_value(c, s), shapes, parties)
    listed = zero_test.costs(elements, bits, 6, parties)
    assert {f.name for f in listed} == {name for n, name in FORMS if n == parties and (name != "table" or bits <= 16)}
    for form in listed:
        cost = predict(gate(form.name, 6), shapes, parties)
        headers = HEADER_BYTES * {"points": 3, "table": 1, "comparison": 3}[form.name]
        dealt = (cost.offline_bytes - opened.offline_bytes - headers) * (2 if form.name == "points" else 1)
        assert (cost.rounds - opened.rounds, cost.bytes_sent - opened.bytes_sent) == (form.rounds, form.sent)
        assert dealt == form.dealt, form.name
    taken = predict(gate(None, 6), shapes, parties)
    assert taken == predict(gate(forms.choose(listed), 6), shapes, parties)


def test_few_take_no_round_and_many_the_fewest_bytes() -> None:
    assert forms.choose(zero_test.costs(756, 24, 6, 2)) == "points"
    assert forms.choose(zero_test.costs(756, 5, 6, 2)) == "table"
    assert forms.choose(zero_test.costs(63 * 18_000, 11, 6, 2)) == "comparison"
    assert forms.choose(zero_test.costs(756, 24, 6, 3)) == "comparison"


def test_what_no_form_can_do_is_named() -> None:
    with pytest.raises(RangeError, match="3 parties test values of at most 32 bits, got 40"):
        predict(gate(None, 6), [((4,), 40)], 3)
    with pytest.raises(RangeError, match="a result has 1 to 64 bits, got 65"):
        predict(gate(None, 65), [((4,), 10)], 2)
