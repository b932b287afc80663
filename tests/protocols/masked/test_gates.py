"""Every gate of the suite `masked` against the plain function: boundary values, ring sizes, two and three parties."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from launch.local.in_process import run_in_process
from mpc import fixed_point, ring
from mpc.errors import RangeError, TapeError
from mpc.packing import packed_size
from mpc.tape import CountingTape
from protocols.masked import comparison, one_hot, piecewise, power, product, truncation
from protocols.masked.context import Context, open_value
from protocols.masked.shares import Masked, Shared
from protocols.schedule import Scheduler
from tests.protocols.masked.harness import additive

PARTIES = [2, 3]
Gate = Callable[[Context, Shared], Awaitable[Shared]]


def run_gate(gate: Gate, x: Tensor, bits: int, frac: int, parties: int, watch: Any = None) -> tuple[Tensor, Any]:
    """The gate on a sharing of ring elements x; (decoded result, last party's costs)."""
    shares = additive(x, parties, bits)

    def at_party(channel: Any, tape: Any) -> Any:
        c = Context(tape, channel, parties)
        if watch is not None and channel.party == 0:
            c.observer = watch
        out = Scheduler(c.flush).run(gate(c, Shared(shares[channel.party].to(c.device), bits, frac)))
        return out, channel.ledger.total()

    def at_dealer(tape: Any) -> Any:
        c = Context(tape, None, parties)
        Scheduler(c.flush).run(gate(c, Shared(c.blank(x.shape), bits, frac)))
        return c.ledger.total()

    results, dealer = run_in_process(parties, at_party, at_dealer)
    counting = Context(CountingTape(), None, parties)
    Scheduler(counting.flush).run(gate(counting, Shared(counting.blank(x.shape), bits, frac)))
    cost, predicted = results[-1][1], counting.ledger.total()
    assert (cost.bytes_sent, cost.rounds, cost.offline_bytes) == (
        predicted.bytes_sent,
        predicted.rounds,
        predicted.offline_bytes,
    )
    assert (cost.bytes_sent, cost.rounds) == (dealer.bytes_sent, dealer.rounds)
    first = results[0][0]
    total = torch.zeros(first.x.shape, dtype=torch.int64)
    for out, _ in results:
        total = total + out.x.cpu()
    return fixed_point.decode(ring.reduce(total, first.bits), first.frac, first.bits), cost


def edges(bits: int, count: int = 400) -> Tensor:
    half = 1 << (bits - 1)
    random = torch.randint(-half, half, (count,)) if bits < 63 else torch.randint(-(1 << 62), 1 << 62, (count,))
    return torch.cat([random, torch.tensor([0, -1, 1 % half, half - 1, -half])])


@pytest.mark.parametrize("parties", PARTIES)
@pytest.mark.parametrize("bits", [2, 3, 5, 8, 9, 13, 16, 17, 24, 25, 32])
def test_less_than_zero(bits: int, parties: int) -> None:
    x = edges(bits)

    async def bit(c: Context, s: Shared) -> Shared:
        return (await comparison.less_than_zero(c, await open_value(c, s))).share(37)

    async def times(c: Context, s: Shared) -> Shared:
        m = await open_value(c, s)
        return (await comparison.less_than_zero(c, m)).times(m)

    found, cost = run_gate(bit, x, bits, 0, parties)
    assert torch.equal(found, (x < 0).double())
    opened = len(comparison.sign_form(bits).names)
    expected = (-(-len(x) * bits // 8) if bits % 8 else len(x) * bits // 8) + -(-opened * len(x) // 8)
    assert cost.rounds == 2
    assert abs(cost.bytes_sent - expected * (parties - 1)) <= parties
    found, _ = run_gate(times, x, bits, 0, parties)
    assert torch.equal(found, fixed_point.decode(ring.reduce((x < 0) * x, bits), 0, bits))


@pytest.mark.parametrize("parties", PARTIES)
@pytest.mark.parametrize(
    ("bits", "cut", "to"), [(40, 8, 64), (40, 0, 64), (60, 30, 44), (20, 6, 64), (64, 20, 64), (24, 0, 24)]
)
def test_truncate_and_lift_is_off_by_less_than_a_unit(bits: int, cut: int, to: int, parties: int) -> None:
    limit = 1 << (bits - 2)
    x = torch.cat([torch.randint(-limit, limit, (2000,)), torch.tensor([0, 1, -1, limit - 1, -limit])])

    async def gate(c: Context, s: Shared) -> Shared:
        return truncation.truncate_and_lift(c, await open_value(c, s), cut, to)

    found, _ = run_gate(gate, x, bits, cut, parties)  # `cut` fraction bits become none: the result counts units
    real = x.double() / 2.0**cut
    assert (found - real).abs().max() < 1.0 if cut else torch.equal(found, real)


@pytest.mark.parametrize("parties", PARTIES)
@pytest.mark.parametrize("wraps", [False, True])
@pytest.mark.parametrize(("bits", "cut", "to"), [(40, 8, 64), (40, 0, 64), (60, 30, 44), (20, 6, 15), (26, 0, 37)])
def test_a_raised_ring_holds_the_same_value_for_the_bits_it_has_more(
    bits: int, cut: int, to: int, wraps: bool, parties: int
) -> None:
    limit = 1 << (bits - 2)
    x = torch.cat([torch.randint(-limit, limit, (2000,)), torch.tensor([0, 1, -1, limit - 1, -limit])])

    async def gate(c: Context, s: Shared) -> Shared:
        return c.shared(await truncation.raise_ring(c, await open_value(c, s, wraps), cut, to))

    found, cost = run_gate(gate, x, bits, cut, parties)
    real = x.double() / 2.0**cut
    assert (found - real).abs().max() < 1.0 if cut else torch.equal(found, real)
    assert cost.rounds == 2
    sent = [packed_size(len(x), size) for size in (bits, to - bits + cut)]
    assert cost.bytes_sent == sum(sent) * (parties - 1)
    lifted = packed_size(len(x), to) if cut or not wraps else sent[1]
    assert cost.offline_bytes - lifted - sent[1] in range(16 * 3, 16 * 6)  # headers


def test_a_ring_is_raised_from_where_a_value_starts() -> None:
    x = torch.tensor([-(1 << 10), 0, (1 << 19) - (1 << 10) - 1])

    async def gate(c: Context, s: Shared) -> Shared:
        return c.shared(await truncation.raise_ring(c, await open_value(c, s), 0, 40, 1 << 10))

    assert torch.equal(run_gate(gate, x.repeat(500), 20, 0, 2)[0], x.repeat(500).double())


def test_truncation_is_unbiased() -> None:
    x = torch.full((40000,), 5 * 256 + 64)

    async def gate(c: Context, s: Shared) -> Shared:
        return c.shared(truncation.truncate(c, await open_value(c, s), 8))

    found, _ = run_gate(gate, x, 32, 8, 2)
    assert set(found.tolist()) == {5.0, 6.0}
    assert abs(found.mean().item() - 5.25) < 0.02


@pytest.mark.parametrize("parties", PARTIES)
def test_products(parties: int) -> None:
    x = torch.randint(-1000, 1000, (6, 5))

    async def gate(c: Context, s: Shared) -> Shared:
        m = await open_value(c, s)
        square = product.multiply(c, m, m)
        return square.map(lambda t: t.sum(-1)).add(product.matmul(c, m, m.map(lambda t: t.t())).map(lambda t: t.sum(-1)))

    found, cost = run_gate(gate, x, 40, 0, parties)
    assert torch.equal(found, ((x * x).sum(-1) + (x @ x.t()).sum(-1)).double())
    assert cost.rounds == 1


def test_a_million_products_have_no_large_error() -> None:
    x = torch.randint(-(1 << 20), 1 << 20, (1000, 1000))

    async def gate(c: Context, s: Shared) -> Shared:
        m = await open_value(c, s)
        p = await open_value(c, product.multiply(c, m, m))
        return truncation.truncate_and_lift(c, p, 16, 64)

    found, _ = run_gate(gate, x, 44, 8, 2)
    assert (found - (x * x).double() / 2**16).abs().max() < 1.0


@pytest.mark.parametrize("parties", PARTIES)
def test_one_hot(parties: int) -> None:
    x = torch.arange(64)

    async def gate(c: Context, s: Shared) -> Shared:
        return one_hot.one_hot_table(c, await open_value(c, s), 0, 6, 20)

    found, cost = run_gate(gate, x, 6, 0, parties)
    assert torch.equal(found, torch.eye(64, dtype=torch.float64))
    assert cost.rounds == 1


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
@pytest.mark.parametrize("width", [1, 6, 9, 10, 12])
def test_rotate(width: int, dtype: torch.dtype) -> None:
    """Short vectors are looked up, long ones copied in two pieces: both are out[v] = dealt[m - v]."""
    size = 1 << width
    dealt = torch.randint(0, 200, (2, 4, size), dtype=dtype)
    m = torch.tensor([0, size - 1, size // 2, 1, 0, size - 2, size // 3, size - 1]).reshape(2, 4)
    expected = [
        [[row[(place - v) % size] for v in range(size)] for row, place in zip(*pair, strict=True)]
        for pair in zip(dealt.tolist(), m.tolist(), strict=True)
    ]
    assert torch.equal(one_hot.rotate(dealt, m), torch.tensor(expected, dtype=dtype))


@pytest.mark.parametrize("parties", PARTIES)
@pytest.mark.parametrize(("exponent", "high"), [(-1.0, 48), (-0.5, 52)])
def test_power(exponent: float, high: int, parties: int) -> None:
    low, frac = 20, 28
    logs = torch.linspace(low - frac + 0.01, high - frac - 0.01, 300, dtype=torch.float64)
    x = 2.0**logs
    exact = torch.tensor([2.0**p for p in range(low - frac, high - frac)], dtype=torch.float64)
    x = torch.cat([x, exact, exact * (1 - 2.0**-20) + 2.0**-frac])

    async def gate(c: Context, s: Shared) -> Shared:
        return await power.power(c, await open_value(c, s), power.Power(low, high, exponent))

    found, cost = run_gate(gate, fixed_point.encode(x, frac, high + 4), high + 4, frac, parties)
    assert ((found - x**exponent).abs() / x**exponent).max() < 2.0**-14
    assert cost.rounds == (1 if parties == 2 else 3)  # with the opening of x


@pytest.mark.parametrize("exponent", [-1.0, -0.5])
@pytest.mark.parametrize("parties", PARTIES)
def test_power_just_below_a_power_of_two_never_fails(exponent: float, parties: int) -> None:
    """The fuzzy threshold may leave a normalised value just below 2, where a borrow leaves the table's end."""
    x = torch.full((2000,), 2.0**5 * (1 - 2.0**-12), dtype=torch.float64)

    async def gate(c: Context, s: Shared) -> Shared:
        return await power.power(c, await open_value(c, s), power.Power(20, 48, exponent))

    for value in (x * 0.985,):
        found, _ = run_gate(gate, fixed_point.encode(value, 28, 50), 50, 28, parties)
        assert ((found - value**exponent).abs() / value**exponent).max() < 2.0**-14


@pytest.mark.parametrize(("low", "high", "error"), [(4, 17, "fewer bits than are kept"), (20, 21, "one octave")])
def test_power_of_a_range_that_thresholds_cannot_serve(low: int, high: int, error: str) -> None:
    async def gate(c: Context, s: Shared) -> Shared:
        return await power.power(c, await open_value(c, s), power.Power(low, high, -1.0))

    with pytest.raises(RangeError, match=error):
        run_gate(gate, torch.ones(3, dtype=torch.int64), 40, 8, 3)


def test_piecewise_fit_and_evaluation() -> None:
    f = piecewise.fit("sine", lambda t: np.sin(t), -8.0, 8.0, 64, 3)
    x = torch.linspace(-7.99, 7.7, 4001)

    async def gate(c: Context, s: Shared) -> Shared:
        held = replace(f, coefficients=f.coefficients.to(c.device))
        return piecewise.evaluate(c, held, await open_value(c, s), 40, 32)

    found, cost = run_gate(gate, fixed_point.encode(x, 14, 18), 18, 14, 2)
    assert (found - torch.sin(x.double())).abs().max() < 2e-4
    assert cost.rounds == 1


def test_opened_values_are_uniform_and_a_reused_mask_is_not() -> None:
    """Chi-square over the high byte of everything that party 0 sees; sending x + a constant mask fails it."""

    def chi_square(values: Tensor, bits: int) -> float:
        top = ring.shift_right(values, bits - 4, bits).flatten()
        counts = torch.bincount(top, minlength=16).double()
        expected = len(top) / 16
        return float(((counts - expected) ** 2 / expected).sum())

    x = torch.randint(-100, 100, (20000,))
    seen: list[tuple[Tensor, int]] = []

    async def good(c: Context, s: Shared) -> Shared:
        m = await open_value(c, s)
        return (await comparison.less_than_zero(c, m)).times(m)

    async def broken(c: Context, s: Shared) -> Shared:
        one = await open_value(c, Shared(s.x[:1], s.bits, s.frac))
        lam = one.lam.expand(s.x.shape)
        from protocols.masked.context import Opening

        return c.shared(await Opening(s, lam.contiguous()))

    run_gate(good, x, 16, 0, 2, lambda m, bits: seen.append((m.clone(), bits)))
    wide = [(m, bits) for m, bits in seen if bits == 16]
    flat = [m for m, bits in seen if bits == 1]
    assert all(chi_square(m, bits) < 45 for m, bits in wide)  # 15 degrees of freedom: 1e-4 quantile is 44
    for m in flat:
        ones = m.double().mean(dim=tuple(range(1, m.dim())))
        assert ((ones - 0.5).abs() < 5 * 0.5 / len(x) ** 0.5).all()
    seen.clear()
    run_gate(broken, x, 16, 0, 2, lambda m, bits: seen.append((m.clone(), bits)))
    assert chi_square(seen[-1][0], 16) > 1000


def test_a_dealer_with_another_program_is_refused_before_anything_is_opened() -> None:
    x = torch.arange(10)
    shares = additive(x, 2, 20)
    opened: list[Tensor] = []

    async def theirs(c: Context, s: Shared) -> Shared:
        return c.shared(truncation.truncate(c, await open_value(c, s), 3))

    async def ours(c: Context, s: Shared) -> Shared:
        c.tape.random("open", (3,), 20)
        return c.shared(await open_value(c, s))

    def at_party(channel: Any, tape: Any) -> Any:
        c = Context(tape, channel, 2)
        c.observer = lambda m, bits: opened.append(m)
        return Scheduler(c.flush).run(ours(c, Shared(shares[channel.party], 20, 0)))

    def at_dealer(tape: Any) -> Any:
        c = Context(tape, None, 2)
        return Scheduler(c.flush).run(theirs(c, Shared(c.blank(x.shape), 20, 0)))

    with pytest.raises(TapeError, match="same program"):
        run_in_process(2, at_party, at_dealer)
    assert not opened


def test_a_ring_that_is_too_small_is_named() -> None:
    c = Context(CountingTape(), None, 2)
    with pytest.raises(RangeError, match="truncate"):
        truncation.truncate(c, Masked(c.blank((3,)), c.blank((3,)), 8, 4), 7)
    with pytest.raises(RangeError, match="without a lift"):
        Shared(c.blank((3,)), 8, 0).to_ring(9)
