"""Products of 8-bit digits against torch's own wrapping integer product, and which machines use them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mpc import byte_matmul as module
from mpc import ring
from mpc.byte_matmul import byte_matmul, exact, pays

needs_bytes = pytest.mark.skipif(not exact(), reason="this machine's product of 8-bit integers is not exact: never used")
ALL = (1, 8, 9, 18, 30, 31, 32, 33, 44, 56, 57, 63, 64)


def words(*shape: int, bits: int, seed: int) -> Tensor:
    drawn = torch.randint(-(2**63), 2**63 - 1, shape, generator=torch.Generator().manual_seed(seed))
    return ring.reduce(drawn, bits)


@needs_bytes
@settings(max_examples=60, deadline=None)
@given(st.integers(1, 20), st.integers(1, 90), st.integers(1, 80), st.sampled_from(ALL), st.integers(0, 9))
def test_any_shape_and_ring(rows: int, depth: int, columns: int, bits: int, seed: int) -> None:
    a, b = words(rows, depth, bits=bits, seed=seed), words(depth, columns, bits=bits, seed=seed + 1)
    expected = ring.reduce(torch.matmul(a, b), bits)
    for right in (b, b.t().contiguous().t()):
        assert torch.equal(byte_matmul(a, right, bits), expected)
        if bits <= 32:
            assert torch.equal(byte_matmul(a, right.to(torch.int32), bits), expected)
            assert torch.equal(byte_matmul(a.to(torch.int32), right.to(torch.int32), bits), expected)


@needs_bytes
@pytest.mark.parametrize("bits", [18, 32, 44, 64])
@pytest.mark.parametrize("depth", [(1 << 14) - 1, 1 << 14, 50257])
def test_the_largest_digits_of_a_deep_product(bits: int, depth: int) -> None:
    """Every digit -128 or 127, and all bits set: sums stay below 2^31 between the pieces."""
    for word in (0x8080808080808080 - 2**64, 0x7F7F7F7F7F7F7F7F, -1, -(2**63)):
        a, b = torch.full((9, depth), word), torch.full((depth, 3), word)
        a, b = ring.reduce(a, bits), ring.reduce(b, bits)
        expected = int(a[0, 0]) * int(b[0, 0]) * depth % 2**bits
        expected -= 2**64 if expected >= 2**63 else 0
        assert torch.equal(byte_matmul(a, b, bits), torch.full((9, 3), expected))


@needs_bytes
@pytest.mark.parametrize("bits", [8, 18, 32, 64])
@pytest.mark.parametrize("left_bits", [1, 7, 8, 15, 16, 40, 64])
def test_a_factor_of_few_bits(bits: int, left_bits: int) -> None:
    a, b = words(9, 70, bits=min(bits, left_bits), seed=3), words(70, 11, bits=bits, seed=4)
    a[0], a[1] = 0, (1 << min(bits, left_bits)) - 1 if min(bits, left_bits) < 64 else -1
    assert torch.equal(byte_matmul(a, b, bits, left_bits), ring.reduce(torch.matmul(a, b), bits))
    assert torch.equal(ring.matmul(a, b, bits, left_bits), ring.reduce(torch.matmul(a, b), bits))


@needs_bytes
def test_batches_broadcast_and_columns_come_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", 1)
    monkeypatch.setattr(module, "_LEAST_COLUMNS", 5)
    a, b = words(2, 1, 9, 12, bits=40, seed=1), words(3, 12, 13, bits=40, seed=2)
    found = byte_matmul(a, b, 40)
    assert found.shape == (2, 3, 9, 13)
    assert torch.equal(found, ring.reduce(torch.matmul(a, b), 40))
    assert byte_matmul(a[:, :, :0], b, 40).shape == (2, 3, 0, 13)


@pytest.mark.parametrize("used", [False, True])
def test_both_ways_give_the_same(used: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if used and not exact():
        pytest.skip("not exact here: never used")
    calls: list[int] = []
    monkeypatch.setattr(ring, "byte_matmul_pays", lambda: used)
    monkeypatch.setattr(ring, "byte_matmul", lambda *given: (calls.append(1), byte_matmul(*given))[1])
    a, b = words(70, 300, bits=30, seed=3), words(300, 40, bits=30, seed=4)
    expected = ring.reduce(torch.matmul(a, b), 30)
    assert torch.equal(ring.matmul(a, b, 30), expected)
    assert torch.equal(ring.matmul(a, b.to(torch.int32), 30), expected)
    assert torch.equal(ring.matmul(a.expand(2, 70, 300), b, 30), expected.expand(2, 70, 40))
    assert bool(calls) == used


@pytest.fixture
def anew() -> Iterator[None]:
    """The machine is tried again in the test, and after it."""
    for tried in (exact, pays):
        tried.cache_clear()
    yield
    for tried in (exact, pays):
        tried.cache_clear()


@needs_bytes
def test_a_kernel_that_rounds_is_not_used(anew: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the 16-bit sums of processors without instructions for 8-bit products."""
    true = torch._int_mm
    monkeypatch.setattr(torch, "_int_mm", lambda a, b: true(a, b).clamp(max=2**15))
    assert not pays()


def test_a_missing_kernel_is_not_used(anew: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch, "_int_mm", raising=False)
    assert not pays()


@needs_bytes
def test_a_slow_kernel_is_not_used(anew: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exact, but by way of float64."""
    monkeypatch.setattr(torch, "_int_mm", lambda a, b: (a.double() @ b.double()).int())
    assert exact()
    assert not pays()
