"""Weights on a device: digits and nothing else, products as on the CPU, and what a token reads and copies."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from protocols.masked.matrix_weight import DigitWeight
from protocols.suite import Linear
from tests.devices import STAND_IN, computing_on
from tests.protocols.masked.harness import run_masked
from tests.tools.stand_in.counts import Counts, counting
from tests.tools.stand_in.patches import DIGIT_ROWS

IN, OUT = 40, 24


def grid(*shape: int) -> Tensor:
    return torch.randint(-12, 13, shape, generator=torch.Generator().manual_seed(len(shape))).double() / 8


@pytest.mark.parametrize("parties", [2, 3])
def test_products_of_one_row_and_of_many(parties: int, device: str) -> None:
    """As the plain ones; a weight cut by expert, and one that is used as an ordinary value, too."""
    weight = grid(IN, OUT)

    async def program(s: Any, row: Any, rows: Any, each: Any, w: Any) -> list[Any]:
        experts = w.reshape(IN, 2, OUT // 2).permute(1, 0, 2)
        return [
            await s.linear(row, Linear(w, None, "any")),
            await s.linear(rows, Linear(w, None, "any")),
            await s.linear(each, Linear(experts, None, "any")),
            w[2:4] + w[0],
        ]

    row, rows, each = grid(1, IN), grid(17, IN), grid(2, 3, IN)
    found = run_masked(program, [row, rows, each], [weight], parties)[0]
    expected = [
        row @ weight,
        rows @ weight,
        each @ weight.reshape(IN, 2, OUT // 2).permute(1, 0, 2),
        weight[2:4] + weight[0],
    ]
    for ours, right in zip(found, expected, strict=True):
        assert (ours - right).abs().max() < 0.01


def test_what_is_held_read_and_copied() -> None:
    """A party holds 16 bytes a weight, the dealer 8, and no words; a row reads them once, and no weight is copied."""
    weight = grid(IN, OUT)
    held: list[Any] = []
    counted: dict[tuple[str, int], Counts] = {}

    async def program(s: Any, row: Any, rows: Any, w: Any) -> list[Any]:
        held.append(w.weight)
        name, out = threading.current_thread().name, []
        for x in (row, rows):
            before = counts.copy()
            out.append(await s.linear(x, Linear(w, None, "any")))
            counted[name, x.shape[0]] = counts.copy().since(before)
        return out

    def read(counts: Counts, name: str) -> int:
        return sum(size for key, size in counts.moved.items() if key[0] == name and key[3] == DIGIT_ROWS)

    def times(counts: Counts, name: str, operation: str) -> int:
        return sum(n for key, n in counts.events.items() if key[0] == name and key[3] == operation)

    with computing_on(STAND_IN), counting() as counts:
        run_masked(program, [grid(1, IN), grid(17, IN)], [weight])
    here = [w for w in held if isinstance(w, DigitWeight)]
    padded = 48 * OUT
    assert sorted(w.bytes_here for w in here) == [8 * padded, 16 * padded, 16 * padded]
    assert all(x.is_meta for w in here for x in (w.m, w.own, w.lam))
    for (name, rows), of in counted.items():
        copied = of.bytes(name, "up", "down")
        if "party" in name:
            assert (read(of, name) > 0, times(of, name, "_int_mm") > 0) == (rows == 1, rows > 1)
            assert read(of, name) <= 16 * IN * OUT
            assert copied <= 64 * rows * (IN + OUT) < 8 * IN * OUT * rows
