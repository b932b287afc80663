"""Arithmetic in rings of more than 64 bits against Python's integers."""

from __future__ import annotations

import random

import pytest
import torch

from mpc import wide
from mpc.wide import Wide

WORD = (1 << 64) - 1
ALL = (1 << 128) - 1


def _signed(x: int, bits: int) -> int:
    return x - (1 << bits) if x >> (bits - 1) else x


def _integers(x: Wide) -> list[int]:
    return [(int(high) & WORD) << 64 | (int(low) & WORD) for low, high in zip(x.low, x.high, strict=True)]


@pytest.fixture
def numbers() -> random.Random:
    return random.Random(3)


def _values(numbers: random.Random, count: int = 3000) -> tuple[list[int], Wide]:
    edges = [0, 1, ALL, 1 << 127, 1 << 64, WORD, 1 << 63, (1 << 63) - 1, ALL ^ WORD]
    found = [numbers.choice([*edges, numbers.getrandbits(128), numbers.getrandbits(40)]) for _ in range(count)]
    low = torch.tensor([_signed(x & WORD, 64) for x in found])
    return found, Wide(low, torch.tensor([_signed(x >> 64, 64) for x in found]))


def test_sums_and_products_wrap_modulo_2_to_the_128(numbers: random.Random) -> None:
    (a, x), (b, y) = _values(numbers), _values(numbers)
    words = [numbers.choice([-(2**63), 2**63 - 1, -1, 0, numbers.getrandbits(63)]) for _ in a]
    z = torch.tensor(words)
    assert _integers(x + y) == [(i + j) & ALL for i, j in zip(a, b, strict=True)]
    assert _integers(x - y) == [(i - j) & ALL for i, j in zip(a, b, strict=True)]
    assert _integers(x * y) == [i * j & ALL for i, j in zip(a, b, strict=True)]
    assert _integers(x * z) == [i * j & ALL for i, j in zip(a, words, strict=True)]
    assert _integers(x + z) == [(i + j) & ALL for i, j in zip(a, words, strict=True)]
    assert _integers(x - z) == [(i - j) & ALL for i, j in zip(a, words, strict=True)]
    assert _integers(-x) == [-i & ALL for i in a]
    assert _integers(x + -7) == [(i - 7) & ALL for i in a]
    assert _integers(x.sum(0, keepdim=True)) == [sum(a) & ALL]


@pytest.mark.parametrize("count", [0, 1, 20, 63, 64, 65, 100, 127])
def test_shifts(numbers: random.Random, count: int) -> None:
    a, x = _values(numbers)
    assert _integers(x << count) == [(i << count) & ALL for i in a]
    assert _integers(x >> count) == [(_signed(i, 128) >> count) & ALL for i in a]


@pytest.mark.parametrize("bits", [65, 84, 100, 128])
def test_the_top_bits_of_a_reduced_element_fit_a_word(numbers: random.Random, bits: int) -> None:
    a, x = _values(numbers)
    for count in (bits - 64, bits - 63, bits - 50, bits - 3):
        found = wide.shifted(wide.reduce(x, bits), count, bits)
        assert [int(t) & WORD for t in found] == [i % (1 << bits) >> count for i in a]


def test_up_to_64_bits_a_word_is_a_tensor() -> None:
    x = torch.tensor([5, -1])
    assert wide.widened(x, 64) is x
    assert _integers(wide.widened_unsigned(x, 65)) == [5, WORD]  # type: ignore[arg-type]
    assert _integers(wide.widened(x, 65)) == [5, ALL]  # type: ignore[arg-type]
