"""Ring arithmetic against Python's integers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpc import ring
from mpc.bits import check_bits
from mpc.errors import RangeError
from mpc.random import Prg, new_seed

WORDS = st.integers(-(2**63), 2**63 - 1)


def _tensor(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


def _wrap(value: int) -> int:
    return (value + 2**63) % 2**64 - 2**63


@given(WORDS, st.integers(1, 64))
def test_reduce_and_signed(word: int, bits: int) -> None:
    reduced = int(ring.reduce(_tensor(word), bits)[0])
    assert reduced % 2**bits == word % 2**bits
    assert bits == 64 or 0 <= reduced < 2**bits
    signed = int(ring.signed(_tensor(word), bits)[0])
    assert signed % 2**bits == word % 2**bits
    assert -(2 ** (bits - 1)) <= signed < 2 ** (bits - 1)


@given(WORDS, st.integers(1, 64), st.integers(0, 63))
def test_shift_right_is_unsigned(word: int, bits: int, count: int) -> None:
    if count >= bits:
        return
    shifted = int(ring.shift_right(ring.reduce(_tensor(word), bits), count, bits)[0])
    assert _wrap(shifted) == _wrap((word % 2**bits) >> count)


@pytest.mark.parametrize("bits", [0, 65, -1])
def test_ring_bits_out_of_range(bits: int) -> None:
    with pytest.raises(RangeError, match=f"between 1 and 64, got {bits}"):
        check_bits(bits)


def _exact(a: torch.Tensor, b: torch.Tensor, bits: int) -> list[list[int]]:
    rows, columns = a.tolist(), b.t().tolist()
    return [[sum(x * y for x, y in zip(r, c, strict=True)) % 2**bits for c in columns] for r in rows]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 70), st.integers(1, 5), st.sampled_from([1, 8, 32, 52, 64]))
def test_matmul_is_exact(rows: int, depth: int, columns: int, bits: int) -> None:
    prg = Prg(new_seed())
    a, b = prg.ring((rows, depth)), prg.ring((depth, columns))
    expected = _exact(a, b, bits)
    for product in (ring.matmul(a, b, bits), ring.limb_matmul(a, b, bits)):
        assert [[v % 2**bits for v in row] for row in product.tolist()] == expected


@pytest.mark.parametrize("word", [-(2**63), 2**63 - 1, -1, 0, 1, 2**62, -(2**52) - 1])
@pytest.mark.parametrize("depth", [1, 2, 255, 256, 257, 4096])
def test_matmul_of_extreme_words(word: int, depth: int) -> None:
    a, b = torch.full((9, depth), word), torch.full((depth, 2), word)
    assert int(ring.limb_matmul(a, b)[8, 1]) == _wrap(word * word * depth)


def test_matmul_shapes() -> None:
    prg = Prg(new_seed())
    a, b = prg.ring((3, 9, 5)), prg.ring((5, 4))
    expected = torch.matmul(a, b)
    assert torch.equal(ring.matmul(a, b), expected)
    assert torch.equal(ring.matmul(a, b.t().contiguous().t()), expected)
    assert torch.equal(ring.matmul(a[0], b[:, 0]), expected[0, :, 0])
    assert torch.equal(ring.matmul(a[0, 0], b), expected[0, 0])
    column_major = b.t().contiguous().t()
    assert torch.equal(ring.matmul(a[:, :2], column_major), torch.matmul(a[:, :2], b))
    batched = prg.ring((3, 5, 4))
    assert torch.equal(ring.matmul(a, batched), torch.matmul(a, batched))
    assert ring.matmul(a.to("meta"), b.to("meta")).shape == (3, 9, 4)


@pytest.mark.parametrize("bits", [20, 32, 33, 64])
@pytest.mark.parametrize("shape", [(5, 3), (2, 5, 3), (1, 5, 3)])
def test_a_large_factor_is_split(bits: int, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    prg = Prg(new_seed())
    a, b = prg.ring((9, 5), bits), prg.ring(shape, bits)
    whole = ring.limb_matmul(a, b, bits)
    monkeypatch.setattr(ring, "_LIMB_ENTRIES", 7)
    assert torch.equal(ring.limb_matmul(a, b, bits), whole)
    assert torch.equal(whole, ring.reduce(torch.matmul(a, b), bits))
