"""Top-k of the suite `masked`, by ranks and by threshold, against sorting in the clear."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mpc.errors import RangeError
from mpc.tape import CountingTape
from protocols.masked import marking, top_k
from protocols.masked.comparison import digit_bits, sign_form
from protocols.masked.context import Context, open_value
from protocols.masked.digits import exact_digits
from protocols.masked.forms import choose
from protocols.masked.selection_matrix import selection_matrix
from protocols.masked.shares import Masked, Shared
from protocols.masked.suite import MaskedSuite
from protocols.masked.threshold import top_k_by_threshold
from protocols.suite import Value
from tests.protocols.gate_harness import chi_square, chi_square_limit, predict, run
from tests.protocols.masked.harness import run_masked

PARTIES = [2, 3]


def best(x: Tensor, k: int) -> Tensor:
    """Positions of the k largest, from the largest down, ties to the earlier: [..., k]."""
    return torch.sort(x, dim=-1, descending=True, stable=True).indices[..., :k]


def one_hot_rows(positions: Tensor, count: int) -> Tensor:
    return torch.nn.functional.one_hot(positions, count)


def marked(positions: Tensor, count: int) -> Tensor:
    return one_hot_rows(positions, count).sum(-2)


def values(bits: int, *shape: int) -> Tensor:
    limit = 1 << (bits - 2)
    return torch.randint(-limit + 1, limit, shape)


@pytest.mark.parametrize("parties", PARTIES)
@pytest.mark.parametrize(("count", "k"), [(1, 1), (2, 1), (5, 3), (8, 8), (17, 4), (33, 16)])
@pytest.mark.parametrize("bits", [7, 16, 20])
def test_top_k_by_ranks(count: int, k: int, bits: int, parties: int) -> None:
    limit = (1 << (bits - 2)) - 1
    x = torch.cat(
        [
            values(bits, 3, count),
            torch.randint(-1, 2, (3, count)),  # ties
            torch.zeros(1, count, dtype=torch.int64),
            torch.tensor([-limit, limit] * count)[None, :count],
        ]
    )

    async def gate(c: Context, s: Shared) -> list[Shared]:
        m = await open_value(c, s)
        rank = await top_k.ranks(c, m)
        return [
            top_k.by_value(c, rank, k, 24),
            top_k.indicator(c, rank, k, 9),
            await top_k.top_k(c, m, k, 5, "position"),
            await top_k.top_k_indicator(c, m, k, 64),
        ]

    by_value, indicator, by_position, again = run(gate, [(x, bits)], parties).outputs
    expected = best(x, k)
    assert torch.equal(by_value, one_hot_rows(expected, count))
    assert torch.equal(indicator, marked(expected, count))
    assert torch.equal(by_position, one_hot_rows(expected.sort(-1).values, count))
    assert torch.equal(again, indicator)


def test_64_clusters_in_12_heads_take_two_rounds() -> None:
    x = values(16, 12, 64)

    async def opened(c: Context, s: Shared) -> Shared:
        return c.shared(await open_value(c, s))

    async def ranked(c: Context, s: Shared) -> Shared:
        return await top_k.top_k(c, await open_value(c, s), 16, 40)

    async def ordered(c: Context, s: Shared) -> Shared:
        return await top_k.top_k(c, await open_value(c, s), 16, 40, "position")

    result = run(ranked, [(x, 16)])
    assert torch.equal(result.out, one_hot_rows(best(x, 16), 64))
    before = predict(opened, [(x.shape, 16)], 2)
    assert result.costs[0].rounds - before.rounds == 2
    pairs = 12 * 64 * 63 // 2
    opened = len(sign_form(16, digit_bits(16, 6)).names)
    assert result.costs[0].bytes_sent - before.bytes_sent == opened * pairs // 8 + 12 * 64 * 6 // 8
    result = run(ordered, [(x, 16)])
    assert torch.equal(result.out, one_hot_rows(best(x, 16).sort(-1).values, 64))
    assert result.costs[0].rounds - before.rounds == 3


@pytest.mark.parametrize("parties", PARTIES)
@pytest.mark.parametrize(("count", "k"), [(1, 1), (6, 1), (9, 8), (12, 12), (40, 15)])
def test_selection_matrix(count: int, k: int, parties: int) -> None:
    positions = torch.stack([torch.randperm(count)[:k].sort().values for _ in range(4)]).reshape(2, 2, k)
    positions[0, 0] = torch.arange(k)
    positions[0, 1] = torch.arange(count - k, count)

    async def gate(c: Context, s: Shared) -> Shared:
        return await selection_matrix(c, s, k, 33)

    assert torch.equal(run(gate, [(marked(positions, count), 12)], parties).out, one_hot_rows(positions, count))


def test_what_top_k_opens_is_uniform() -> None:
    x = torch.arange(40).flip(0).expand(200, 40)  # the same order in every row: without masks all ranks would be equal

    async def gate(c: Context, s: Shared) -> Shared:
        return await top_k.top_k(c, await open_value(c, s), 7, 8, "position")

    for m, bits in run(gate, [(x, 12)]).seen[1:]:
        assert chi_square(m, 1 << bits) < chi_square_limit(1 << bits)


def test_budgets_that_cannot_be_met_are_named() -> None:
    c = Context(CountingTape(), None, 2)
    x = Masked(c.blank((4,)), c.blank((4,)), 16, 0)
    for k in (0, 5, -1):
        with pytest.raises(RangeError, match=f"top-k: {k} of 4 values .* the budget must be between 1 and 4"):
            top_k.top_k(c, x, k, 8).send(None)
        with pytest.raises(RangeError, match="between 1 and 4"):
            top_k.top_k_indicator(c, x, k, 8).send(None)


@pytest.mark.parametrize("parties", PARTIES)
@pytest.mark.parametrize(
    ("bits", "widths"), [(8, (8,)), (9, (3, 6)), (15, (4, 4, 4, 3)), (16, (8, 8)), (13, (5, 4, 4)), (30, (10, 10, 10))]
)
def test_exact_digits(bits: int, widths: tuple[int, ...], parties: int) -> None:
    x = torch.cat([torch.arange(0, 1 << bits, max(1, (1 << bits) // 600)), torch.tensor([(1 << bits) - 1])])

    async def gate(c: Context, s: Shared) -> list[Shared]:
        return [c.shared(d) for d in await exact_digits(c, await open_value(c, s), widths)]

    result = run(gate, [(x, bits)], parties)
    offset = 0
    for found, width in zip(result.outputs, widths, strict=True):
        assert torch.equal(found & ((1 << width) - 1), (x >> offset) & ((1 << width) - 1))
        offset += width
    assert result.costs[0].rounds == 1 + (len(widths) - 1).bit_length()


def test_digits_of_wide_rings_keep_tables_small() -> None:
    async def gate(c: Context, s: Shared) -> list[Shared]:
        return [c.shared(d) for d in await exact_digits(c, await open_value(c, s), (4, 4, 4, 4, 4, 4, 4, 3))]

    x = torch.tensor([0, 1, (1 << 31) - 1, 1 << 30, 0x12345678])
    result = run(gate, [(x, 31)])
    for place, found in enumerate(result.outputs):
        assert torch.equal(found & 15, (x >> 4 * place) & 15) if place < 7 else torch.equal(found & 7, x >> 28)
    assert result.costs[-1].offline_bytes < 2000 * len(x)


@pytest.mark.covering(2)
@pytest.mark.parametrize("parties", PARTIES)
@pytest.mark.parametrize(("count", "k"), [(1, 1), (2, 1), (37, 36), (37, 37), (150, 40)])
@pytest.mark.parametrize(("bits", "digit"), [(3, 4), (9, 4), (17, 8), (32, 4)])
def test_top_k_by_threshold(bits: int, digit: int, count: int, k: int, parties: int) -> None:
    limit = (1 << (bits - 2)) - 1
    x = torch.stack(
        [
            values(bits, count),
            torch.randint(-1, 2, (count,)),  # ties across the threshold
            torch.full((count,), -limit),
            torch.full((count,), limit),
            torch.tensor([limit, -limit] * count)[:count],
            torch.arange(count).clamp(max=limit),
        ]
    ).reshape(2, 3, count)

    async def gate(c: Context, s: Shared) -> list[Shared]:
        m = await open_value(c, s)
        return [await top_k_by_threshold(c, m, k, out, digit) for out in (3, 40)]

    for found in run(gate, [(x, bits)], parties).outputs:
        assert torch.equal(found, marked(best(x, k), count))


def test_threshold_over_thousands() -> None:
    x = values(17, 4096) >> 4

    async def gate(c: Context, s: Shared) -> Shared:
        return await top_k_by_threshold(c, await open_value(c, s), 1600, 13)

    result = run(gate, [(x, 17)])
    assert torch.equal(result.out, marked(best(x, 1600), 4096))
    for digit, rounds, offline in ((4, 16, 710), (6, 13, 1400), (8, 9, 3400)):

        async def other(c: Context, s: Shared, digit: int = digit) -> Shared:
            return await top_k_by_threshold(c, await open_value(c, s), 1600, 13, digit)

        cost = predict(other, [(x.shape, 17)], 2)
        assert cost.rounds == rounds + 1
        assert cost.offline_bytes < offline * 4096
        assert cost.bytes_sent < 8 * 4096


def test_what_the_threshold_opens_is_uniform() -> None:
    x = (torch.arange(20) // 2).expand(300, 20)

    async def gate(c: Context, s: Shared) -> Shared:
        return await top_k_by_threshold(c, await open_value(c, s), 7, 30, 3)

    for m, bits in run(gate, [(x, 8)]).seen[1:]:
        assert chi_square(m, 1 << bits) < chi_square_limit(1 << bits)


@pytest.mark.parametrize("prefer", ["auto", "rounds", "bytes"])
def test_marks_are_the_same_by_every_form(prefer: str) -> None:
    x = torch.cat([values(16, 2, 80), torch.randint(-1, 2, (2, 80))])

    async def gate(c: Context, s: Shared) -> list[Shared]:
        c.prefer = prefer
        m = await open_value(c, s)
        return [await marking.mark_largest(c, m, 7, 20), await top_k.top_k_indicator(c, m, 7, 20)]

    found, by_ranks = run(gate, [(x, 16)]).outputs
    assert torch.equal(found, marked(best(x, 7), 80))
    assert torch.equal(found, by_ranks)


def test_forms_of_marks_are_chosen_by_cost() -> None:
    few, many = (marking.costs((rows, n), 20, 10, 64, 2) for rows, n in ((1, 200), (12, 1024)))
    assert choose(few) == choose(few, "rounds") == marking.RANKS
    assert marking.RANKS not in {form.name for form in many}
    assert choose(few, "bytes") != marking.RANKS
    rounds = {form.name: form.rounds for form in few}
    assert rounds[marking.RANKS] == 2
    assert rounds["8"] < rounds["4"]


@pytest.mark.parametrize("parties", PARTIES)
def test_a_single_largest_row_is_found_in_groups(parties: int) -> None:
    """Twelve rows of 300: fewer bytes than ranks of all pairs; ties to the earlier."""
    x = torch.randint(-3, 4, (12, 300)) * 0.5

    async def program(s: MaskedSuite, v: Value) -> Value:
        return await s.top_k(v, 1, 2.0)

    (found,), ledger = run_masked(program, [x], parties=parties)
    assert torch.equal(found, one_hot_rows(best(x, 1), 300).double())
    assert ledger.total().rounds > 3
    assert ledger.total().offline_bytes < 12 * 300 * 299 // 2 * 10
