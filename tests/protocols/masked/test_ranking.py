"""Maximum and arg-max of the suite `masked` in groups, against torch, with ties and both ends of the range."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mpc.errors import RangeError
from mpc.ledger import Cost
from mpc.tape import DealerTape, PartyTape
from protocols.masked.context import Context, open_value
from protocols.masked.forms import round_bytes
from protocols.masked.ranking import first_largest, group_sizes, last_bits, level_bits, maximum
from protocols.masked.shares import Shared
from tests.protocols.gate_harness import Gate, chi_square, chi_square_limit, predict, run

PARTIES = [2, 3]
BITS, REACH = 12, 511


def rows(n: int) -> Tensor:
    """Random ones, the maximum first, last, everywhere, twice, and alone above what is lowest."""
    x = torch.randint(-REACH, REACH, (7, n))
    x[0, 0], x[1, n - 1] = REACH, REACH
    x[2] = -REACH
    x[3] = REACH
    x[4, n // 2] = x[4, n - 1] = REACH
    x[5] = torch.arange(n) % 3 - REACH
    x[6] = -REACH
    x[6, n // 3] = 1 - REACH
    return x


def both(reach: int, sizes: tuple[int, ...]) -> Gate:
    async def gate(c: Context, s: Shared) -> list[Shared]:
        m = await open_value(c, s)
        return [await maximum(c, m, reach, sizes), await first_largest(c, m, reach, sizes, 20)]

    return gate


def one_hot(x: Tensor) -> Tensor:
    """The row of the earliest maximum."""
    top = (x == x.amax(-1, keepdim=True)).int().argmax(-1)
    return torch.nn.functional.one_hot(top, x.shape[-1])


@pytest.mark.parametrize("parties", PARTIES)
@pytest.mark.parametrize(
    ("n", "sizes"),
    [
        (1, (1,)),
        (2, (2,)),
        (9, (9,)),
        (10, (2, 5)),
        (10, (3, 4)),
        (29, (2, 3, 5)),
        (50, (8, 4, 2)),
        (40, (17, 3)),
        (16, (2, 2, 2, 2)),
    ],
)
def test_groups_of_any_size(n: int, sizes: tuple[int, ...], parties: int) -> None:
    x = rows(n)
    top, first = run(both(REACH, sizes), [(x, BITS)], parties).outputs
    assert torch.equal(top, x.amax(-1))
    assert torch.equal(first, one_hot(x))


@pytest.mark.parametrize("parties", PARTIES)
def test_a_vocabulary_in_the_groups_that_are_chosen(parties: int) -> None:
    n, bits, reach = 5000, 20, 196_608
    x = torch.randint(-reach, reach + 1, (1, n))
    x[0, 3111] = x[0, 4000] = reach
    sizes = group_sizes((1, n), bits, parties)
    assert len(sizes) > 1
    _, first = run(both(reach, sizes), [(x, bits)], parties).outputs
    assert torch.equal(first, one_hot(x))


@pytest.mark.parametrize("parties", PARTIES)
@pytest.mark.parametrize(("n", "sizes"), [(2048, (2,) * 11), (1100, (40, 10, 3))])
def test_places_of_more_bits_than_the_values(n: int, sizes: tuple[int, ...], parties: int) -> None:
    """Values in a ring of 8 bits, whose places among up to 2 048 need up to 10: by tables and by keys."""
    reach = 63
    x = torch.randint(-reach, reach, (6, n))
    for row, place in enumerate((0, n - 1, n // 2, 257, 1023, n - 300)):
        x[row, place] = reach

    async def gate(c: Context, s: Shared) -> Shared:
        return await first_largest(c, await open_value(c, s), reach, sizes, 20)

    assert torch.equal(run(gate, [(x, 8)], parties).out, one_hot(x))


@pytest.mark.parametrize("parties", PARTIES)
def test_a_vocabulary_larger_than_the_ring_of_its_logits(parties: int) -> None:
    """Logits within 2^3 with 10 fraction bits, in a ring of 16 bits, whose places by `prefer=bytes` need 17."""
    n, reach = 140_000, 8 << 10
    x = torch.randint(-reach, reach, (1, n))
    x[0, 99_991] = reach
    sizes = group_sizes((1, n), 16, parties, "bytes")
    assert n // sizes[-1] > 1 << 16

    async def gate(c: Context, s: Shared) -> Shared:
        return await first_largest(c, await open_value(c, s), reach, sizes, 32)

    assert torch.equal(run(gate, [(x, 16)], parties).out, one_hot(x))


def skewed() -> list[float]:
    """Chi-square of the low bits of every opening, beside its limit, of 300 rows in one order: without masks all ranks would
    be equal."""
    x = torch.arange(40).flip(0).expand(300, 40)
    out = []
    for m, bits in run(both(63, (4, 10)), [(x, 8)]).seen:
        categories = 1 << min(bits, 8)
        out.append(chi_square(m & (categories - 1), categories) / chi_square_limit(categories))
    return out


def test_what_is_opened_is_uniform() -> None:
    assert max(skewed()) < 1


@pytest.mark.parametrize("entry", ["open", "mask bits"])
def test_a_missing_mask_is_found(entry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for end in (DealerTape, PartyTape):

        def bare(tape: Any, op: str, shape: Any, bits: int = 64, kind: str = "sum", real: Any = end.random) -> Tensor:
            drawn: Tensor = real(tape, op, shape, bits, kind)
            return drawn * 0 if op == entry else drawn

        monkeypatch.setattr(end, "random", bare)
    assert max(skewed()) > 1


@pytest.mark.parametrize("n", [2, 37, 100, 1000, 32_000, 49_152, 50_257, 128_256])
def test_groups_are_the_cheapest_of_some(n: int) -> None:
    """A few plans by hand are never cheaper by the same prices; fewer bytes or rounds are got where asked for."""
    bits, worth = 20, round_bytes("auto")

    def price(sizes: tuple[int, ...]) -> float:
        left, total = n, 0.0
        for size in sizes[:-1]:
            total += 3 * worth + sum(level_bits(left, size, bits, 2)) / 8
            left = -(-left // size)
        return total + 2 * worth + sum(last_bits(left, bits, 2)) / 8

    chosen = group_sizes((1, n), bits, 2)
    for sizes in ((), (8,), (2, 8), (8, 32), (4, 6), (4, 4, 16), (16, 16)):
        left = n
        for size in sizes:
            left = -(-left // size)
        assert price(chosen) <= price((*sizes, left)) or left < 2
    assert len(group_sizes((1, n), bits, 2, "rounds")) <= len(chosen) <= len(group_sizes((1, n), bits, 2, "bytes"))
    assert group_sizes((1000, 30), bits, 2, "bytes")[0] == 2


@pytest.mark.parametrize(
    ("n", "prefer", "rounds", "dealt", "sent"),
    [
        (50_257, "rounds", 9, 10.8e6, 300e3),
        (32_000, "rounds", 9, 6.7e6, 180e3),
        (50_257, "auto", 12, 5.1e6, 220e3),
        (32_000, "auto", 9, 6.7e6, 180e3),
    ],
)
def test_rounds_of_a_vocabulary(n: int, prefer: str, rounds: int, dealt: float, sent: float) -> None:
    """With the opening of the logits; bytes of what follows it."""

    def gate(parties: int) -> Cost:
        async def program(c: Context, s: Shared) -> Shared:
            m = await open_value(c, s)
            return await first_largest(c, m, 196_608, group_sizes((1, n), 20, parties, prefer), 32)

        return predict(program, [((1, n), 20)], parties)

    two, three = gate(2), gate(3)
    assert (two.rounds, three.rounds) == (rounds, rounds + 1)
    assert two.offline_bytes < dealt
    assert two.bytes_sent - n * 20 // 8 < sent


def test_bad_input() -> None:
    x = torch.zeros(1, 9, dtype=torch.int64)
    with pytest.raises(RangeError, match=r"groups of \[2, 3\] leave 2 of 9 values"):
        run(both(REACH, (2, 3)), [(x, BITS)])
    with pytest.raises(RangeError, match="a ring of 10 bits is too small"):
        run(both(REACH, (9,)), [(x, 10)])
