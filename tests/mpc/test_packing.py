"""Bit-packed serialisation."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpc.errors import RangeError, WireError
from mpc.packing import pack, packed_size, unpack
from mpc.random import Prg, new_seed
from mpc.ring import reduce


@pytest.mark.parametrize("bits", range(1, 65))
@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 100])
def test_unpack_inverts_pack(bits: int, count: int) -> None:
    x = Prg(new_seed()).ring((count,))
    data = pack(x, bits)
    assert len(data) == packed_size(count, bits) <= count * bits / 8 + 1
    assert torch.equal(unpack(data, bits, (count,)), reduce(x, bits))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=40), st.integers(1, 64))
def test_any_words(words: list[int], bits: int) -> None:
    x = torch.tensor(words, dtype=torch.int64)
    assert torch.equal(unpack(pack(x, bits), bits, x.shape), reduce(x, bits))


def test_layout_is_row_major_of_any_view() -> None:
    x = torch.arange(12).reshape(3, 4).t()
    assert torch.equal(unpack(pack(x, 32), 32, (4, 3)), x)


@pytest.mark.parametrize("bits", [1, 3, 8, 20, 64])
@pytest.mark.parametrize("change", [-1, 1])
def test_wrong_size_is_refused(bits: int, change: int) -> None:
    data = pack(torch.arange(20), bits)
    wrong = data[:-1] if change < 0 else data + b"\0"
    with pytest.raises(WireError, match=f"20 elements of {bits} bits take {len(data)} bytes, got {len(wrong)}"):
        unpack(wrong, bits, (20,))


def test_ring_bits_are_checked() -> None:
    with pytest.raises(RangeError, match="got 65"):
        pack(torch.arange(3), 65)
    with pytest.raises(RangeError, match="got 0"):
        unpack(b"", 0, (0,))
