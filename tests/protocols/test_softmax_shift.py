"""The softmax's shift on shares over scores that are hard, and what happens with shifts from elsewhere."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from protocols.masked import histogram, softmax, zero_test
from protocols.masked.context import Context, open_value
from protocols.masked.forms import Form
from protocols.masked.rows import Rows
from protocols.masked.shares import Masked, Shared
from tests.protocols import test_ranges
from tests.protocols.gate_harness import chi_square, chi_square_limit, predict, run
from tests.tools import softmax_shift
from tests.tools.policy_page import PAGE, POLICIES, crypten_row, table_in, token

FRAC, RANGE = 14, 8
BITS = FRAC + RANGE
SPREAD = softmax.Spread(RANGE)


def hard_rows() -> list[Tensor]:
    """Rows of equal length, [rows, 64]: what the study uses, and both ends of the range and of bins."""
    rows = [c.scores[:64] for c in softmax_shift.cases()]
    rows += [torch.tensor([*[x] * 63, 0.0]) for x in (-120.0, 119.99, 0.0, 4.0, -4.0, 3.9999, -(2.0**-14))]
    rows += [torch.tensor([-60.0, *[0.0] * 63]), torch.tensor([112.0, *[-7.0] * 63]), torch.linspace(-30, 30, 64)]
    return [torch.floor((r - r[-1]).double() * 2.0**FRAC) / 2.0**FRAC for r in rows]


def shift_gate(rows: int, columns: int) -> Any:
    async def gate(c: Context, s: Shared) -> Shared:
        y = await open_value(c, s)
        found, of = Masked(y.m, y.lam, BITS, FRAC), Rows(torch.Size((rows, columns)))
        return c.shared(await softmax.shift(c, found.map(of.relative), of, SPREAD))

    return gate


@pytest.fixture
def preferring(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that makes all contexts prefer rounds or bytes."""
    made = Context.__init__

    def prefer(what: str) -> None:
        def init(c: Context, *args: Any, **kwargs: Any) -> None:
            made(c, *args, **kwargs)
            c.prefer = what  # type: ignore[assignment]

        monkeypatch.setattr(Context, "__init__", init)

    return prefer


@pytest.fixture
def hashing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are not so short that their scores are counted."""
    monkeypatch.setattr(softmax, "COUNTED", 0)


@pytest.mark.parametrize(
    ("parties", "prefer", "counted", "rounds"),
    [
        (2, "rounds", 0, 2),
        (3, "rounds", 0, 3),
        (2, "bytes", 0, 4),
        (3, "bytes", 0, 4),
        (2, "rounds", 64, 2),
        (3, "rounds", 64, 2),
    ],
)
def test_the_shift_is_the_edge_of_the_largest_ones_bin(
    parties: int, prefer: str, counted: int, rounds: int, preferring: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within 8 below it: a bin is 4 wide, and a score may be counted in the next one."""
    preferring(prefer)
    monkeypatch.setattr(softmax, "COUNTED", counted)
    if counted:  # with two parties the other forms of as many rounds are not offered
        monkeypatch.setattr(zero_test, "points_form", lambda *_: Form("points", 9, 0, 0))
    scores = torch.stack(hard_rows())
    gate = shift_gate(*scores.shape)
    result = run(gate, [((scores * 2.0**FRAC).round().to(torch.int64).flatten(), BITS)], parties)
    distance = result.out.double() / 2.0**FRAC - scores.max(-1).values
    assert bool(((distance > 0) & (distance <= 8)).all())
    assert result.costs[0].rounds == 1 + rounds  # after the opening of the scores


@pytest.mark.parametrize("range_bits", [6, 7, 9, 11])
def test_the_shift_in_other_ranges(range_bits: int) -> None:
    """16 bins in a quarter of a word to 512 bins in eight words."""
    reach = 2.0 ** (range_bits - 1) - 4.1  # one in the highest bin may be counted around the circle
    scores = torch.cat([torch.linspace(-reach, reach, 65)[:, None], torch.tensor([-reach, -reach, 0.0]).expand(65, 3)], 1)
    scores = torch.floor(scores.double() * 2.0**FRAC) / 2.0**FRAC
    bits = range_bits + FRAC

    async def gate(c: Context, s: Shared) -> Shared:
        y = await open_value(c, s)
        rows = Rows(torch.Size(scores.shape))
        found = Masked(y.m, y.lam, bits, FRAC).map(rows.relative)
        return c.shared(await softmax.shift(c, found, rows, softmax.Spread(range_bits)))

    result = run(gate, [((scores * 2.0**FRAC).to(torch.int64).flatten(), bits)])
    distance = result.out.double() / 2.0**FRAC - scores.max(-1).values
    assert bool(((distance > 0) & (distance <= 8)).all())


def test_bytes_of_a_score(hashing: None) -> None:
    """A bit a bin for any number of parties, and nothing that is dealt or sent for a score besides."""
    for parties in (2, 3):
        few, many = (predict(shift_gate(12, n), [((12 * n,), BITS)], parties) for n in (100, 1100))
        scores = 12 * 1000
        assert many.bytes_sent - few.bytes_sent == scores * BITS // 8 * (parties - 1)  # their own opening
        assert (many.offline_bytes - few.offline_bytes) == scores * 64 / 8


def test_bytes_of_scores_that_are_counted() -> None:
    """Rows of 100 scores: 64 elements of 7 bits a score, and a test of 128 of 7 bits for each of 31 counts."""
    few, many = (predict(shift_gate(rows, 100), [((rows * 100,), BITS)], 3) for rows in (4, 12))
    assert few.rounds == many.rounds == 3
    assert (many.bytes_sent - few.bytes_sent) / 8 == pytest.approx(2 * (100 * BITS / 8 + 31 * 7 / 8 + 7 / 8), abs=1)
    assert (many.offline_bytes - few.offline_bytes) / 8 == pytest.approx(100 * 64 * 7 / 8 + 31 * 128 * 7 / 8, abs=1)


def test_bytes_of_a_row(hashing: None) -> None:
    """With many rows: 31 hashes of 64 bits (28 where a bound is declared), 20 bits opened of each, 56 bytes dealt."""
    few, many = (predict(shift_gate(rows, 8), [((rows * 8,), BITS)], 2) for rows in (2000, 3000))
    assert few.rounds == many.rounds == 5
    assert (many.bytes_sent - few.bytes_sent) / 1000 == pytest.approx(8 * 22 / 8 + 31 * (64 + 20) / 8 + 7 / 8, abs=0.1)
    assert (many.offline_bytes - few.offline_bytes) / 1000 == pytest.approx(8 * 8 + 31 * 56, abs=0.1)


@pytest.mark.parametrize(("parties", "prefer", "openings"), [(2, "rounds", 3), (3, "rounds", 4), (2, "bytes", 5)])
def test_what_is_opened_is_uniform(parties: int, prefer: str, openings: int, preferring: Any, hashing: None) -> None:
    """All scores equal: without masks every hash would be 0 or one of 20 words' XOR, and every shift the same."""
    preferring(prefer)
    seen = run(shift_gate(600, 20), [(torch.zeros(12_000, dtype=torch.int64), BITS)], parties).seen
    assert len(seen) == openings
    (hashes, size), *bits, (shift, _) = seen[1:]
    for part in {min(part, size - 8) for part in range(0, size, 8)}:
        assert chi_square((hashes >> part) & 255, 256) < chi_square_limit(256)
    assert chi_square(shift, 128) < chi_square_limit(128)
    for m, ring_bits in bits:
        assert chi_square(m, 1 << ring_bits) < chi_square_limit(1 << ring_bits)


@pytest.mark.parametrize("parties", [2, 3])
def test_counts_that_are_opened_are_uniform(parties: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All scores equal: without masks every count would be 0 or 20."""
    monkeypatch.setattr(zero_test, "points_form", lambda *_: Form("points", 9, 0, 0))
    seen = run(shift_gate(600, 20), [(torch.zeros(12_000, dtype=torch.int64), BITS)], parties).seen
    assert [bits for _, bits in seen] == [BITS, 5, BITS - FRAC - 1]
    for m, bits in seen[1:]:
        assert chi_square(m, 1 << bits) < chi_square_limit(1 << bits)


def test_far_scores_are_flagged_by_hashes_too(hashing: None) -> None:
    test_ranges.test_a_far_score_is_flagged_on_both_sides(7, "auto")


@pytest.mark.parametrize("parties", [2, 3])
@pytest.mark.parametrize("prefer", ["auto", "rounds", "bytes"])
@pytest.mark.parametrize(("rows", "least"), [(12, 43), (12 * 1024, 53), (1 << 18, 57)])
def test_bits_of_hashes_follow_from_their_number(
    rows: int, least: int, prefer: str, parties: int, preferring: Any, hashing: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token's 12 rows, those of a prompt of 1 024 tokens, and of more: all hashes of a softmax miss with 2^-34 at most."""
    preferring(prefer)
    found: list[int] = []
    made = histogram.hashes

    def noted(c: Context, y: Masked, of: Rows, low: int, bits: int, watch: Any) -> Tensor:
        found.append(bits)
        return made(c, y, of, low, bits, watch)

    async def gate(c: Context, s: Shared) -> Shared:
        y = await open_value(c, s)
        of = Rows(torch.Size((rows, 2)))
        return c.shared(await softmax.shift(c, Masked(y.m, y.lam, BITS, FRAC).map(of.relative), of, SPREAD))

    monkeypatch.setattr(histogram, "hashes", noted)
    predict(gate, [((2 * rows,), BITS)], parties)
    assert found
    for bits in found:
        assert bits >= 34 + math.log2(rows * SPREAD.reach)
        assert bits >= least
    if rows == 12 and prefer != "bytes":
        assert set(found) == {46 if parties == 2 else 48}


def test_a_form_that_cannot_hold_the_bits_is_not_offered() -> None:
    tests = 1 << 27
    assert [softmax.hash_bits(form, tests) for form in ("points", "one", "two")] == [None, None, 64]
    assert softmax.hash_bits("two", (1 << 30) + 1) is None


def test_hashes_have_other_words_in_each_call(hashing: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that is missed is not missed again; all parties have the same words."""
    made, seeds = histogram.hash_words, []

    def noted(seed: Tensor, *rest: Any) -> Tensor:
        seeds.append(tuple(seed.tolist()))
        return made(seed, *rest)

    monkeypatch.setattr(histogram, "hash_words", noted)
    for _ in range(2):
        run(shift_gate(4, 8), [(torch.zeros(32, dtype=torch.int64), BITS)], 3)
    assert len(seeds) == 6
    assert len(set(seeds)) == 2


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
