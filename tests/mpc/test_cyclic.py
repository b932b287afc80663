"""Numbers around a circle against Python's integers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mpc.cyclic import placed, subtract, window

WORD = 1 << 64


def numbers(words: Tensor) -> list[int]:
    """[words, n] as integers."""
    return [sum((int(w) % WORD) << (64 * i) for i, w in enumerate(column)) for column in words.t()]


def words_of(values: list[int], count: int) -> Tensor:
    parts = [[(v >> (64 * i)) % WORD for v in values] for i in range(count)]
    return torch.tensor([[p - WORD if p >> 63 else p for p in row] for row in parts])


def values(bits: int) -> list[int]:
    generator = torch.Generator().manual_seed(7)
    found = [0, 1, 2, (1 << bits) - 2, 1 << (bits - 1), (1 << 64) - 1, 1 << 64]
    for _ in range(200):
        found.append(sum(int(torch.randint(0, 1 << 32, (), generator=generator)) << i for i in range(0, bits, 32)))
    return found


@pytest.mark.parametrize("count", [2, 6, 12])
def test_differences_around_the_circle(count: int) -> None:
    """Borrows pass through whole words and around the end; 0 and 2^L - 1 are the same number."""
    modulus = (1 << (64 * count)) - 1
    x = [v % modulus for v in values(64 * count)]
    for y in (x, x[1:] + x[:1], x[::-1]):
        found = numbers(subtract(words_of(x, count), words_of(y, count)))
        assert [v % modulus for v in found] == [(a - b) % modulus for a, b in zip(x, y, strict=True)]


def test_what_is_placed_is_read_wherever_it_lies() -> None:
    """At every bit, across words and across the end."""
    count, value = 6, 0x5A3C_F00F
    at = torch.arange(64 * count)
    x = placed(torch.full_like(at, value), at, count)
    assert numbers(x) == [(value << a | value << a >> 384) % (1 << 384) for a in at.tolist()]
    for back in (0, 14, 63, 64, 97):
        found = window(x, (at - back) % (64 * count))
        total = [(int(low) % WORD) + ((int(high) % WORD) << 64) for low, high in zip(found.low, found.high, strict=True)]
        assert total == [(value << back) % (1 << 128)] * len(at)
