"""Exponentials that are opened once, and what softmax's shift is found with: hashes of bins, zero tests of long words."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from mpc import cyclic, ring
from mpc.errors import RangeError
from protocols.masked import exponential, histogram, zero_words
from protocols.masked.context import Context, open_value
from protocols.masked.powers_of_two import powers
from protocols.masked.rows import Rows
from protocols.masked.shares import Masked, Shared
from protocols.masked.signed_one_hot import one_hot_words
from tests.protocols.gate_harness import chi_square, chi_square_limit, run

PARTIES = [2, 3]
FRAC = 14


def points(range_bits: int, highest: float) -> Tensor:
    """x from 64 above the lowest of the ring to `highest`, as ring units."""
    lowest = 64 - 2.0**range_bits
    x = torch.cat(
        [
            torch.linspace(lowest, highest - 2.0**-FRAC, 3001, dtype=torch.float64),
            torch.linspace(highest - 30, highest - 2.0**-FRAC, 3001, dtype=torch.float64),
            torch.arange(lowest, highest, 4.0, dtype=torch.float64),
            torch.arange(lowest, highest, 4.0, dtype=torch.float64) - 2.0**-FRAC,
        ]
    )
    return torch.floor(x.clamp(min=lowest) * 2.0**FRAC).to(torch.int64)


def error(found: Tensor, x: Tensor, frac: int) -> tuple[float, float]:
    """Largest error that is not relative to 2^(3/2 x), in units of 2^-frac, and the relative one where that is not small."""
    exact = torch.exp2(1.5 * x.double() / 2.0**FRAC)
    wrong = (found.double() / 2.0**frac - exact).abs()
    large = exact > 2.0**-8
    return float((wrong - 2.0**-15 * exact).max()) * 2.0**frac, float((wrong / exact)[large].max())


FORMS: list[tuple[Any, int, float, int]] = [
    (exponential.by_window, 2, 0.0, 1),
    (exponential.by_window, 3, 0.0, 1),
    (exponential.by_bits, 2, -4.0, 2),
]


@pytest.mark.parametrize(("form", "parties", "highest", "rounds"), FORMS)
@pytest.mark.parametrize(("range_bits", "frac", "bits"), [(8, 28, 62), (8, 26, 64), (9, 20, 30), (11, 28, 64), (8, 18, 64)])
def test_exponentials(form: Any, parties: int, highest: float, rounds: int, range_bits: int, frac: int, bits: int) -> None:
    x = points(range_bits, highest)

    async def gate(c: Context, s: Shared) -> Shared:
        y = await open_value(c, s)
        found = await form(c, Masked(y.m, y.lam, y.bits, FRAC), frac, bits)
        assert (found.bits, found.frac) == (bits, frac)
        return c.shared(found)

    result = run(gate, [(x, range_bits + FRAC)], parties)
    units, relative = error(result.out, x, frac)
    assert units < 2
    assert relative < 2.0**-15 + 2.0 ** (9 - frac)
    assert result.costs[0].rounds == 1 + rounds


def test_a_window_that_reaches_what_goes_around_is_refused() -> None:
    async def gate(c: Context, s: Shared) -> Shared:
        y = await open_value(c, s)
        return c.shared(await exponential.by_window(c, Masked(y.m, y.lam, y.bits, FRAC), 17, 64))

    with pytest.raises(RangeError, match="47 bits before the result's point, at most 46"):
        run(gate, [(points(8, 0.0), 8 + FRAC)], 2)


@pytest.mark.parametrize(("form", "parties", "highest", "rounds"), FORMS)
def test_what_is_opened_is_uniform(form: Any, parties: int, highest: float, rounds: int) -> None:
    """One x throughout: the sign and the factor would show without fresh masks."""
    x = torch.full((20_000,), -5 << FRAC)

    async def gate(c: Context, s: Shared) -> Shared:
        y = await open_value(c, s)
        return c.shared(await form(c, Masked(y.m, y.lam, y.bits, FRAC), 28, 62))

    for m, bits in run(gate, [(x, 8 + FRAC)], parties).seen[1:]:
        for part in (0, bits // 2, bits - 8):
            assert chi_square(ring.shift_right(m, part, 64) & 255, 256) < chi_square_limit(256), (bits, part)


@pytest.mark.parametrize("parties", PARTIES)
def test_shares_of_dealt_powers_are_uniform(parties: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every party, in every word, of masks that all have one exponent; the dealt number has 30 bits that are not 0."""
    held: list[Tensor] = []
    read = cyclic.window

    def noted(x: Tensor, start: Tensor) -> Any:
        held.append(x)
        return read(x, start)

    monkeypatch.setattr(exponential, "window", noted)

    async def gate(c: Context, s: Shared) -> Shared:
        y = await open_value(c, s)
        lam = torch.full_like(y.lam, 12_345) if c.tape.dealing else y.lam
        return c.shared(await exponential.by_window(c, Masked(y.m, lam, y.bits, FRAC), 28, 62))

    run(gate, [(torch.zeros(5000, dtype=torch.int64), 8 + FRAC)], parties)
    assert len(held) == parties
    for words in held:
        assert words.shape == (6, 5000)
        for word in words:
            assert chi_square(word.contiguous().view(torch.uint8).to(torch.int64), 256) < chi_square_limit(256)


@pytest.mark.parametrize("range_bits", [8, 10])
def test_the_same_bits_tell_what_lies_far_below(range_bits: int) -> None:
    """d or d + 1 is read, around the circle: shares of [d < -lowest], and nothing else is dealt or sent for them."""
    size = 1 << (range_bits - exponential.UNIT)
    lowest, edge = size * 5 // 8, -4.0 * (size * 5 // 8)
    x = points(range_bits, 0.0)[: 4 * (6002 // 4)]
    collected: list[Tensor] = []

    def gate(told: bool) -> Any:
        async def run_(c: Context, s: Shared) -> Shared:
            y = await open_value(c, s)
            below = exponential.Below(lowest, lambda found: collected.append(found) if c.evaluating else None)
            return c.shared(await exponential.by_bits(c, Masked(y.m, y.lam, y.bits, FRAC), 24, 57, below if told else None))

        return run_

    costs = [run(gate(told), [(x, range_bits + FRAC)], 2).costs[-1] for told in (False, True)]
    assert costs[0].offline_bytes == costs[1].offline_bytes
    assert costs[0].bytes_sent == costs[1].bytes_sent
    found = (collected[0] ^ collected[1]) == 1
    real = x.double() / 2.0**FRAC
    assert not found[(real >= edge) & (real < -4)].any()
    assert found[real < edge - 4].all()
    assert 0.3 < collected[0].double().mean() < 0.7


def test_the_form_that_is_taken() -> None:
    """More parties have one; two parties take bits where tables would be large."""
    from protocols.masked.forms import choose

    assert [f.name for f in exponential.exponential_forms(10, 8, 28, 62, 3)] == ["window"]
    few, many = (exponential.exponential_forms(n, 8, 28, 62, 2) for n in (100, 1_000_000))
    assert (choose(few), choose(many)) == ("window", "bits")
    assert (choose(few, "bytes"), choose(many, "rounds")) == ("bits", "window")
    window, bits = few
    assert window.dealt / 100 == 48
    assert bits.dealt / 100 < 34


@pytest.mark.parametrize(
    ("sign", "width", "octaves", "out"), [(1, 16, -6, 26), (-1, 16, 0, 22), (1, 15, 0, 20), (-1, 15, 0, 30)]
)
def test_powers_are_rounded_integers(sign: int, width: int, octaves: int, out: int) -> None:
    """Against decimals of 60 digits: relative 2^-30, and half a unit."""
    table = powers(sign, width, FRAC, octaves, out)
    with localcontext() as context:
        context.prec = 60
        for k in [0, 1, 2, 255, 256, 12345, (1 << width) - 1]:
            exact = Decimal(2) ** (octaves + Decimal(3 * sign * k) / (2 << FRAC)) * (1 << out)
            assert abs(int(table[k]) - exact) <= Decimal("0.51") + exact / (1 << 30)


# ---- hashes ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("parties", PARTIES)
@pytest.mark.parametrize("masked", [False, True])
def test_hashes_are_zero_where_no_score_lies(parties: int, masked: bool) -> None:
    """Of suffixes of bins, from the highest down; a score is in its bin or in the next one."""
    shape = torch.Size((3, 9, 9))
    mask = torch.tril(torch.ones(9, 9, dtype=torch.bool)) if masked else None
    rows = Rows.of(shape, mask)
    x = rows.take(torch.randint(-100, 100, shape, generator=torch.Generator().manual_seed(3)).double())
    units = (x * 2.0**FRAC).to(torch.int64)

    async def gate(c: Context, s: Shared) -> Shared:
        y = await open_value(c, s)
        share = histogram.hashes(c, Masked(y.m, y.lam, y.bits, FRAC), rows, FRAC + 2, 64, lambda _: None)
        return Shared(share, 64, 0)

    collected: list[Tensor] = []

    async def noted(c: Context, s: Shared) -> Shared:
        found = await gate(c, s)
        if c.evaluating:
            collected.append(found.x.cpu())
        return found

    run(noted, [(units, 8 + FRAC)], parties)
    whole = collected[0]
    for share in collected[1:]:
        whole = whole ^ share
    dense = torch.full((rows.rows * 9,), -1e9, dtype=torch.float64)
    dense[rows.index if rows.index is not None else slice(None)] = x
    bins = torch.floor(dense.reshape(27, 9).max(-1).values / 4).to(torch.int64)
    highest = 31 - (whole != 0).to(torch.int64).argmax(-1)
    assert bool(((highest == bins) | (highest == bins + 1)).all())
    for row, top in zip(whole, highest.tolist(), strict=True):
        assert bool((row[: 31 - top] == 0).all())
        assert bool((row[31 - top :] != 0).all())


def test_every_party_s_bits_are_uniform() -> None:
    """XOR shares of one digit's one-hot vector throughout, at three parties."""
    held: list[Tensor] = []

    async def gate(c: Context, s: Shared) -> Shared:
        y = await open_value(c, s)
        lam_digit = (y.lam >> 16) & 63 if c.tape.dealing else y.lam
        (words, *_) = one_hot_words(c, lam_digit, 6)
        if c.evaluating:
            held.append(words)
        return c.shared(y)

    run(gate, [(torch.zeros(5000, dtype=torch.int64), 8 + FRAC)], 3)
    assert len(held) == 3
    for words in held:
        assert chi_square(words.view(torch.uint8).to(torch.int64), 256) < chi_square_limit(256)


# ---- zero tests ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("parties", PARTIES)
@pytest.mark.parametrize(("way", "bits"), [("one", 1), ("one", 13), ("one", 48), ("two", 4), ("two", 30), ("two", 64)])
def test_zero_words(way: Any, bits: int, parties: int) -> None:
    """Zero, one bit set at every place, all bits set, and random words."""
    words = [0, 0, -1, *[1 << i for i in range(min(bits, 63))], 1 << (bits - 1) if bits < 64 else -(1 << 63)]
    x = torch.cat([torch.tensor(words), torch.randint(-(1 << 62), 1 << 62, (400,))])

    async def gate(c: Context, s: Shared) -> Shared:
        return await zero_words.zero_words(c, await open_value(c, s), way, 6)

    result = run(gate, [(x, bits)], parties)
    assert torch.equal(ring.reduce(result.out, 6), (ring.reduce(x, bits) == 0).to(torch.int64))
    assert result.costs[0].rounds == 1 + (1 if way == "one" else 2)
    for m, size in result.seen[1:]:
        assert size == (1 if way == "one" else 4)
        if m.numel() > 500:
            assert chi_square(m, 1 << size) < chi_square_limit(1 << size)


def test_costs_of_zero_words_are_as_said() -> None:
    from tests.protocols.gate_harness import predict

    async def gate(c: Context, s: Shared, way: Any = "two") -> Shared:
        return await zero_words.zero_words(c, await open_value(c, s), way, 6)

    for way, bits in (("one", 48), ("two", 64)):
        form = zero_words.Plan(way, bits).form(10_000, 6, 2)  # type: ignore[arg-type]

        async def one(c: Context, s: Shared, way: Any = way) -> Shared:
            return await gate(c, s, way)

        cost = predict(one, [((10_000,), bits)], 2)
        assert cost.bytes_sent == form.sent
        assert math.isclose(cost.offline_bytes, form.dealt, abs_tol=200)
