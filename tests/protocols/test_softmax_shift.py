"""The softmax's shift on shares over scores that are hard, and what happens with shifts from elsewhere."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from protocols.masked import softmax, zero_test
from protocols.masked.context import Context, open_value
from protocols.masked.shares import Masked, Shared
from tests.protocols.gate_harness import chi_square, chi_square_limit, predict, run
from tests.tools import softmax_shift
from tests.tools.policy_page import PAGE, POLICIES, crypten_row, table_in, token

FRAC, RANGE = 14, 8
BITS = FRAC + RANGE


def hard_rows() -> list[Tensor]:
    """Rows of equal length, [rows, 64]: what the study uses, and both ends of the range and of bins."""
    rows = [c.scores[:64] for c in softmax_shift.cases()]
    rows += [torch.full((64,), x, dtype=torch.float64) for x in (-120.0, 119.99, 0.0, 4.0, -4.0, 3.9999, -(2.0**-14))]
    rows += [torch.tensor([-60.0, *[0.0] * 63]), torch.tensor([*[-119.0] * 63, 119.0]), torch.linspace(-30, 30, 64)]
    return [torch.floor(r.double() * 2.0**FRAC) / 2.0**FRAC for r in rows]


def shift_gate(rows: int, columns: int) -> Any:
    async def gate(c: Context, s: Shared) -> Shared:
        y = await open_value(c, s)
        return await softmax.shift(c, Masked(y.m, y.lam, BITS, FRAC), softmax.Rows(rows, columns, None), RANGE)

    return gate


def only(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Every zero test takes this form."""
    monkeypatch.setattr(zero_test, "choose", lambda forms, prefer: name)


@pytest.mark.parametrize(
    ("parties", "form"), [(2, "points"), (2, "table"), (3, "table"), (2, "comparison"), (3, "comparison")]
)
def test_the_histogram_is_right_within_four(parties: int, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By point functions or a dealt table of counts, one round, and by comparisons, two."""
    only(monkeypatch, form)
    scores = torch.stack(hard_rows())
    gate = shift_gate(*scores.shape)
    result = run(gate, [((scores * 2.0**FRAC).round().to(torch.int64).flatten(), BITS)], parties)
    distance = scores.max(-1).values - result.out.double() / 2.0**FRAC
    assert bool(((distance >= -4) & (distance < 4)).all())
    assert result.costs[0].rounds == 1 + (2 if form == "comparison" else 1)  # after the opening of the scores


def test_one_round_where_rows_are_few() -> None:
    """A token's rows, whatever their length. With ten thousand rows two rounds cost less."""
    for columns in (102, 1024):
        few, many = (predict(shift_gate(rows, columns), [((rows * columns,), BITS)], 2) for rows in (12, 10_000))
        assert (few.rounds, many.rounds) == (2, 3)


def test_what_is_opened_is_uniform() -> None:
    """All scores equal: without masks every count would be 0 or 20."""
    seen = run(shift_gate(400, 20), [(torch.zeros(8000, dtype=torch.int64), BITS)]).seen
    assert len(seen) == 3  # the scores, the counts, and the bits of so many zero tests
    for m, bits in seen[1:]:
        assert chi_square(m, 1 << bits) < chi_square_limit(1 << bits)


def test_shifts_from_a_selection_lose_the_output() -> None:
    """And those from the histogram never do: every case of the study."""
    rows = softmax_shift.compare()
    assert len(rows) == 20
    for row in rows:
        assert row.found["histogram"][1] < 2.0**-9, row.name
        assert row.found["exact maximum"][1] < 2.0**-9, row.name
    worst = {source: max(row.found[source][1] for row in rows) for source in softmax_shift.SOURCES}
    assert worst["linearised similarity"] > softmax_shift.LOST
    assert worst["upper bound"] > softmax_shift.LOST
    assert all(row.found["upper bound"][0] >= -1e-9 for row in rows)  # it is a bound
    page = table_in(PAGE.read_text(encoding="utf-8"), "shift")
    for row in rows:
        (line,) = (x for x in page.splitlines() if x.startswith(f"| {row.name} |"))
        wanted = [softmax_shift.place(source, distance) for source, (distance, _) in row.found.items()]
        assert re.findall(r"([^|]+): \S+ \|", line) == [f" {w}" for w in wanted], "out of date; run `make policies`"


def test_the_table_of_crypten_is_up_to_date() -> None:
    page = table_in(PAGE.read_text(encoding="utf-8"), "crypten")
    row = crypten_row(1024, "default", token(1024, "full"), token(1024, POLICIES["default"]))
    assert row in page.splitlines(), "docs/policies.md is out of date; run `make policies`"
