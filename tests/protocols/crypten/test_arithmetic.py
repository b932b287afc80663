"""Products, truncation, comparison and selection of the suite `crypten` against exact integers and float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mpc.errors import ConfigurationError, RangeError
from mpc.random import Prg, new_seed
from protocols.crypten import arithmetic, comparison
from protocols.crypten.linear import WEIGHT_BITS
from protocols.crypten.value import CryptenValue
from protocols.suite import Linear, Value
from tests.protocols.crypten.programs import decoded, evaluate

ULP = 2.0**-16
PARTIES = [2, 3]


def _integers(*shape: int, bits: int) -> Tensor:
    """Signed integers of `bits` bits."""
    return Prg(new_seed()).ring(shape) >> (64 - bits)


def _raw(suite: Any, share: Tensor) -> CryptenValue:
    return CryptenValue(share, 0, suite.session.party)


EDGES = torch.tensor([0, 1, -1, 2**62 - 1, -(2**62), 2**61, -(2**61), 65535, 65536, 65537, -65535, -65536, -65537])


@pytest.mark.parametrize("parties", [2, 3, 4])
@pytest.mark.parametrize("count", [1, 7, 16, 30, 61])
def test_truncation_is_floor_or_floor_plus_one(parties: int, count: int) -> None:
    x = torch.cat([EDGES, _integers(500, bits=63)])

    async def program(s: Any, v: Any) -> Value:
        return _raw(s, arithmetic.truncate(s.session, v.share, count))

    # floats cannot hold such integers: hand them over as two halves
    async def whole(s: Any, high: Any, low: Any) -> Value:
        return await program(s, high * 2**32 + low)

    out = evaluate(whole, [x >> 32, x & 0xFFFFFFFF], parties=parties, input_bits=0)
    total = sum(parts[0].share.cpu() for parts in out.shares)
    error = total - (x >> count)
    assert set(error.unique().tolist()) <= {0, 1}
    exact = (x & ((1 << count) - 1)) == 0
    assert not error[exact].any()
    cost = out.ledgers[0].total()
    assert (cost.rounds, cost.bytes_sent) == (1, 8 * x.numel() * (parties - 1))


def test_truncation_is_unbiased() -> None:
    x = torch.full((40_000,), 3 * 65536 + 16384)

    async def program(s: Any, v: Any) -> Value:
        return _raw(s, arithmetic.truncate(s.session, v.share, 16))

    mean = float(evaluate(program, [x], input_bits=0).value.mean())
    assert abs(mean - 3.25) < 5 * 0.433 / 200


def test_truncations_share_a_round_and_zero_bits_are_free() -> None:
    x = _integers(10, bits=40).double()

    async def program(s: Any, v: Any) -> list[Value]:
        out = arithmetic.truncate_together(s.session, [(v.share, 3), (v.share, 0), (v.share, 20)])
        return [_raw(s, y) for y in out]

    out = evaluate(program, [x], input_bits=0)
    assert torch.equal(out.values[1], x)
    assert ((out.values[2] - x / 2**20).abs() < 1).all()
    assert (out.ledgers[0].total().rounds, out.ledgers[0].total().bytes_sent) == (1, 160)


@pytest.mark.parametrize("count", [-1, 62])
def test_truncation_bits_are_checked(count: int) -> None:
    async def program(s: Any, v: Any) -> Value:
        return _raw(s, arithmetic.truncate(s.session, v.share, count))

    with pytest.raises(RangeError, match=f"drops 0 to 61 bits, got {count}"):
        evaluate(program, [torch.zeros(1)])


@pytest.mark.parametrize("parties", PARTIES)
@pytest.mark.parametrize(
    ("left", "right"), [((3, 4), (3, 4)), ((2, 3, 4), (4,)), ((5, 1), (1, 6)), ((), (2,)), ((4, 0), (4, 1))]
)
def test_mul_broadcasts(parties: int, left: tuple[int, ...], right: tuple[int, ...]) -> None:
    x, y = torch.randn(left) * 50, torch.randn(right) * 50

    async def program(s: Any, a: Any, b: Any) -> Value:
        return await s.mul(a, b)

    out = evaluate(program, [x, y], parties=parties)
    expected = decoded(x) * decoded(y)
    assert out.value.shape == expected.shape
    assert ((out.value - expected).abs() <= ULP).all()
    cost = out.ledgers[0].total()
    assert cost.rounds == 2
    assert cost.bytes_sent == 8 * (x.numel() + y.numel() + expected.numel()) * (parties - 1)


@pytest.mark.parametrize("parties", PARTIES)
def test_a_million_products_without_one_large_error(parties: int) -> None:
    x = (torch.rand(1_000_000, dtype=torch.float64) - 0.5) * 2e4
    y = (torch.rand(1_000_000, dtype=torch.float64) - 0.5) * 2e4

    async def program(s: Any, a: Any, b: Any) -> Value:
        return await s.mul(a, b)

    error = evaluate(program, [x, y], parties=parties).value - decoded(x) * decoded(y)
    assert float(error.abs().max()) <= 2 * ULP


@pytest.mark.parametrize("parties", PARTIES)
@pytest.mark.parametrize(
    ("left", "right"), [((3, 5), (5, 4)), ((2, 9, 5), (2, 5, 4)), ((2, 3, 1, 7), (3, 7, 2)), ((12, 64), (64, 9))]
)
def test_matmul(parties: int, left: tuple[int, ...], right: tuple[int, ...]) -> None:
    x, y = torch.randn(left) * 10, torch.randn(right) * 10

    async def program(s: Any, a: Any, b: Any) -> Value:
        return await s.matmul(a, b)

    out = evaluate(program, [x, y], parties=parties)
    expected = decoded(x) @ decoded(y)
    assert ((out.value - expected).abs() <= ULP).all()
    assert out.ledgers[0].total().bytes_sent == 8 * (x.numel() + y.numel() + expected.numel()) * (parties - 1)


@pytest.mark.parametrize("parties", PARTIES)
def test_linear_opens_its_weight_once(parties: int) -> None:
    x, w, b, r = torch.randn(9, 30) * 3, torch.randn(30, 20), torch.randn(20), torch.randn(9, 20)

    async def program(s: Any, v: Any, residual: Any, w: Any, b: Any) -> list[Value]:
        first = await s.linear(v, Linear(w, b), residual)
        second = await s.linear(v, Linear(w))
        third = await s.matmul(residual, w.transpose(0, 1))
        return [first, second, third]

    out = evaluate(program, [x, r], parties=parties, weights={"w": w, "b": b})
    product = decoded(x) @ decoded(w, WEIGHT_BITS)
    assert ((out.values[0] - product - decoded(b, WEIGHT_BITS) - decoded(r)).abs() <= ULP).all()
    assert ((out.values[1] - product).abs() <= ULP).all()
    assert ((out.values[2] - decoded(r) @ decoded(w, WEIGHT_BITS).t()).abs() <= ULP).all()
    cost = out.ledgers[0].total()
    assert cost.rounds == 6
    assert cost.bytes_sent == 8 * (2 * (x.numel() + r.numel()) + r.numel() + x.numel()) * (parties - 1)


@pytest.mark.parametrize("parties", PARTIES)
def test_embed_is_exact_and_not_truncated(parties: int) -> None:
    table, ids = torch.randn(17, 6), torch.tensor([3, 3, 0, 16])

    async def program(s: Any, one_hot: Any, table: Any) -> Value:
        return await s.embed(one_hot, table)

    out = evaluate(program, [torch.eye(17)[ids]], parties=parties, input_bits=0, weights={"table": table})
    assert torch.equal(out.value, decoded(table, WEIGHT_BITS)[ids])
    assert (out.ledgers[0].total().rounds, out.ledgers[0].total().bytes_sent) == (1, 8 * 4 * 17 * (parties - 1))


@pytest.mark.parametrize("parties", PARTIES)
def test_scale(parties: int) -> None:
    x = torch.randn(5, 8) * 100
    factors = [0.125, -3.0, 1 / 3, 1e-4, torch.linspace(-1, 1, 8), 12345.678, 0.0]

    async def program(s: Any, v: Any) -> list[Value]:
        return [await s.scale(v, f) for f in factors]

    out = evaluate(program, [x], parties=parties)
    for got, f in zip(out.values, factors, strict=True):
        real = torch.as_tensor(f, dtype=torch.float64)
        expected = decoded(x) * real
        bound = ULP + float(expected.abs().max()) * 2.0**-23
        assert float((got - expected).abs().max()) <= bound
    assert out.ledgers[0].total().rounds == 5


def test_scale_needs_finite_factors() -> None:
    async def program(s: Any, v: Any) -> Value:
        return await s.scale(v, float("inf"))

    with pytest.raises(RangeError, match="must be finite"):
        evaluate(program, [torch.zeros(1)])


@pytest.mark.parametrize("parties", PARTIES)
def test_local_operations_are_exact_and_free(parties: int) -> None:
    x, y = torch.randn(2, 3, 4) * 100, torch.randn(3, 4) * 100

    async def program(s: Any, a: Any, b: Any) -> list[Value]:
        integers = CryptenValue((a.share >> 16) * 0, 0, s.session.party)
        return [
            a + b, a - b, -a, a * 3, b * torch.arange(4), a + 1.5, a - torch.full((4,), 0.25), a[1, ..., :2],
            a.reshape(6, 4), a.permute(2, 0, 1), a.transpose(0, 2), b.expand(5, 3, 4), a.sum(-1), a.sum(1, keepdim=True),
            s.concat([a, a], dim=1), integers + a, s.public(y), s.public(2.5, (2, 2)), 1.0 - a,
            a.cumsum(1),
        ]  # fmt: skip

    out = evaluate(program, [x, y], parties=parties)
    a, b = decoded(x), decoded(y)
    expected = [
        a + b, a - b, -a, a * 3, b * torch.arange(4), a + 1.5, a - 0.25, a[1, ..., :2], a.reshape(6, 4), a.permute(2, 0, 1),
        a.transpose(0, 2), b.expand(5, 3, 4), a.sum(-1), a.sum(1, keepdim=True), torch.cat([a, a], 1), a, b,
        torch.full((2, 2), 2.5), 1 - a, a.cumsum(1),
    ]  # fmt: skip
    for i, (got, want) in enumerate(zip(out.values, expected, strict=True)):
        assert torch.equal(got, want.double()), i
    assert out.ledgers[0].total().rounds == 0


@pytest.mark.parametrize("parties", PARTIES)
def test_cached_values_are_opened_once(parties: int) -> None:
    """Keys of two batches join a cache: products with slices and transposes of it open the other factor alone."""
    old, new, q = torch.randn(2, 5, 3), torch.randn(2, 1, 3), torch.randn(2, 4, 3)

    async def program(s: Any, old: Any, new: Any, q: Any) -> list[Value]:
        cache = await s.append(await s.mask_for_cache(old), new, 1)
        s.ledger.costs.clear()
        scores = await s.matmul(q, cache.transpose(1, 2))
        opened = s.ledger.total().bytes_sent
        assert opened == (parties - 1) * (8 * 2 * 4 * 3 + 8 * 2 * 4 * 6)  # q, and the result for its truncation
        return [scores, await s.matmul(scores, cache), await s.matmul(q, cache[:, 2:].transpose(1, 2)), cache]

    out = evaluate(program, [old, new, q], parties=parties)
    whole, query = torch.cat([decoded(old), decoded(new)], 1), decoded(q)
    scores = query @ whole.transpose(1, 2)
    for got, want in zip(out.values, (scores, scores @ whole, query @ whole[:, 2:].transpose(1, 2), whole), strict=True):
        assert (got - want).abs().max() < 2.0**-12


def test_wrong_operands_are_refused() -> None:
    value = CryptenValue(torch.zeros(2, dtype=torch.int64), 16, 0)
    with pytest.raises(RangeError, match="integers only"):
        _ = value * torch.ones(2)
    with pytest.raises(RangeError, match=r"integers only, got 0\.5"):
        _ = value * 0.5  # type: ignore[operator]
    assert "fraction_bits=16" in repr(value)

    async def program(s: Any, v: Any) -> Value:
        s.input((2,), torch.zeros(3, dtype=torch.int64) if s.session.channel else None, 16)
        return v

    with pytest.raises(ConfigurationError, match=r"input: the share must be int64 \[2\], got torch.int64 \[3\]"):
        evaluate(program, [torch.zeros(1)])


# ---- comparison ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("parties", PARTIES)
@pytest.mark.parametrize("bits", [16, 32, 64])
def test_comparison_of_boundary_values(parties: int, bits: int) -> None:
    top = 2 ** (bits - 2)
    edges = torch.tensor([0, 1, -1, top - 1, -top, top // 2, -top // 2, 255, 256, -256, -257])
    x = torch.cat([edges, _integers(300, bits=bits - 1)])
    thresholds = [0, 1, -1, 256, top // 2]

    async def program(s: Any, high: Any, low: Any) -> Value:
        v = high * 2**32 + low
        return _raw(s, comparison.to_arithmetic(s.session, comparison.less_than(s.session, v.share, thresholds, bits)))

    out = evaluate(program, [x >> 32, x & 0xFFFFFFFF], parties=parties, input_bits=0)
    assert torch.equal(out.value, torch.stack([x < t for t in thresholds]).double())
    levels = bits.bit_length() - 1
    per_element = bits / 8
    packed = sum(-(-3 * w * 5 * x.numel() // 8) if w > 1 else -(-2 * 5 * x.numel() // 8) for w in _widths(bits))
    expected = int(per_element * x.numel()) + packed + -(-5 * x.numel() // 8)
    assert out.ledgers[0].total().rounds == 2 + levels
    assert abs(out.ledgers[0].total().bytes_sent - expected * (parties - 1)) <= levels


def _widths(bits: int) -> list[int]:
    out = []
    while bits > 1:
        bits //= 2
        out.append(bits)
    return out


@pytest.mark.parametrize("parties", PARTIES)
def test_dropped_bits_shift_the_threshold_a_little(parties: int) -> None:
    x = torch.arange(-4000, 4000)

    async def program(s: Any, v: Any) -> Value:
        return _raw(s, comparison.to_arithmetic(s.session, comparison.less_than(s.session, v.share, [0, 640], 32, 5)))

    out = evaluate(program, [x], parties=parties, input_bits=0).value
    for row, threshold in zip(out, (0, 640), strict=True):
        sure = (x - threshold).abs() > (parties + 1) * 32
        assert torch.equal(row[sure], (x < threshold).double()[sure])
    assert (out[0] <= out[1]).all()


@pytest.mark.parametrize("parties", PARTIES)
def test_selection_is_exact(parties: int) -> None:
    x = torch.cat([EDGES, _integers(100, bits=64)])

    async def program(s: Any, high: Any, low: Any) -> list[Value]:
        v = high * 2**32 + low
        bits = comparison.less_than(s.session, (low - 2.0**31).share, [0, 1 << 30])
        chosen, flags = comparison.select(s.session, bits, v.share)
        other = comparison.complement(s.session, bits)
        return [_raw(s, chosen), _raw(s, flags), _raw(s, comparison.to_arithmetic(s.session, other))]

    out = evaluate(program, [x >> 32, x & 0xFFFFFFFF], parties=parties, input_bits=0)
    total = sum(parts[0].share.cpu() for parts in out.shares)
    expected = torch.stack([((x & 0xFFFFFFFF) - (1 << 31)) < t for t in (0, 1 << 30)])
    assert torch.equal(total, expected.long() * x)
    assert torch.equal(out.values[1], expected.double())
    assert torch.equal(out.values[2], 1 - expected.double())


@settings(max_examples=15, deadline=None)
@given(st.lists(st.floats(-30_000, 30_000, width=32), min_size=1, max_size=20))
def test_less_than_zero(values: list[float]) -> None:
    x = torch.tensor(values)

    async def program(s: Any, v: Any) -> Value:
        return await s.less_than_zero(v)

    out = evaluate(program, [x])
    assert torch.equal(out.value, (decoded(x) < 0).double())
    assert out.shares[0][0].fraction_bits == 0
    assert out.ledgers[0].total().rounds == 8


def test_comparison_width_is_checked() -> None:
    async def program(s: Any, v: Any) -> Value:
        return _raw(s, comparison.less_than(s.session, v.share, [0], 48))

    with pytest.raises(RangeError, match="takes 16, 32 or 64 bits"):
        evaluate(program, [torch.zeros(1)])
