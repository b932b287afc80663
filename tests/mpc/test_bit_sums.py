"""Sums of table entries over set bits, both ways, against numpy on the bits one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from mpc import bit_sums as module
from mpc.bit_sums import bit_sums
from mpc.byte_matmul import exact

WAYS = [
    "_by_octets",
    pytest.param("_by_groups", marks=pytest.mark.skipif(not exact(), reason="no exact product of 8-bit integers here")),
]


def drawn(low: int, high: int, *shape: int, seed: int = 1) -> Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed))


def expected(words: Tensor, digits: Tensor, tables: Tensor) -> Tensor:
    size = tables.shape[-1]
    bits = np.unpackbits(words.numpy().view(np.uint8), axis=1, bitorder="little")[:, :size].astype(np.int64)
    return torch.from_numpy(np.stack([(bits * table.numpy()[digits.numpy()]).sum(-1) for table in tables]))


@pytest.mark.covering(2)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("width", [3, 5, 6, 7, 8])
@pytest.mark.parametrize("most", [1, 127, 128, 1 << 15, (1 << 31) - 1, 1 << 32, 1 << 55])
def test_both_ways_add_up_what_is_named(way: str, width: int, most: int) -> None:
    """Rows of no bit, of all bits and of any; entries at both ends of their range; digits of which no row is."""
    size, count = 1 << width, 700
    words = drawn(-(2**63), 2**63 - 1, count, max(1, size // 64))
    words[0], words[1] = 0, -1
    digits = drawn(0, max(1, size - 2), count, seed=2)
    ends = torch.tensor([-most, most - 1, -1, 0, most // 2])
    tables = ends[drawn(0, len(ends), 3, size, size, seed=3)]
    tables[0] = -most
    tables[1] = most - 1
    found = getattr(module, way)(words, digits, tables)
    assert torch.equal(found, expected(words, digits, tables))


@pytest.mark.parametrize("count", [1, 64 * 8 - 1, 64 * 8, 64 * 8 + 1, 2000])
def test_any_number_of_rows(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GROUPED", 300)
    monkeypatch.setattr(module, "PIECE", 90)
    words, digits = drawn(0, 256, count, 1), drawn(0, 8, count, seed=2)
    tables = drawn(-(1 << 40), 1 << 40, 2, 8, 8, seed=3)
    assert torch.equal(bit_sums(words, digits, tables), expected(words, digits, tables))
