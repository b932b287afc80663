"""Fixed-point encoding."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpc.errors import RangeError
from mpc.fixed_point import decode, encode


@given(st.floats(-30_000, 30_000), st.integers(0, 30))
def test_nearest_multiple(x: float, fraction_bits: int) -> None:
    back = float(decode(encode(x, fraction_bits), fraction_bits))
    assert abs(back - x) <= 2.0 ** -(fraction_bits + 1) * (1 + 1e-12)


@given(st.integers(-(2**20), 2**20))
def test_every_negative_decodes_exactly(word: int) -> None:
    assert float(decode(torch.tensor(word), 16)) == word / 65536


@pytest.mark.parametrize("bits", [8, 16, 33, 64])
def test_smaller_rings(bits: int) -> None:
    x = torch.tensor([-1.5, -0.25, 0.0, 0.25, 1.5])
    encoded = encode(x, 4, bits)
    assert torch.equal(decode(encoded, 4, bits), x.double())


@pytest.mark.parametrize("value", [2.0**47, -(2.0**48), float("inf"), float("nan")])
def test_unrepresentable_values_are_refused(value: float) -> None:
    with pytest.raises(RangeError, match=r"16 fraction bits in a ring of 64 bits.*below 1\.40737e\+14") as caught:
        encode(torch.tensor([0.0, value], dtype=torch.float64), 16)
    assert "-" not in str(caught.value).split("below")[1]


def test_meta_tensors_have_a_shape_only() -> None:
    assert encode(torch.empty(3, 4, device="meta"), 16).shape == (3, 4)
    assert encode(torch.empty(0), 16).shape == (0,)
