"""Deep weights at the host: in pieces, in one from when they are moved, and products as the plain ones either way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from protocols.masked.matrix_weight import PiecedWeight
from protocols.suite import Linear
from tests.protocols.masked.harness import run_masked

IN, OUT, EXPERTS = 2500, 6, 2


def grid(*shape: int) -> Tensor:
    return torch.randint(-12, 13, shape, generator=torch.Generator().manual_seed(len(shape))).double() / 64


@pytest.mark.parametrize("parties", [2, 3])
def test_products_before_and_after_it_is_moved(parties: int) -> None:
    """Of one row, of many and of experts' rows; and as an ordinary value."""
    weight, row, rows, each = grid(IN, OUT), grid(1, IN), grid(17, IN), grid(EXPERTS, 3, IN // EXPERTS)
    held: list[tuple[int, int]] = []

    async def program(s: Any, row: Any, rows: Any, each: Any, w: Any) -> list[Any]:
        deep = w.weight
        out = [await s.linear(x, Linear(w, None, "any")) for x in (row, rows)]
        before = deep.bytes_here if isinstance(deep, PiecedWeight) else 0
        out.append(await s.linear(each, Linear(w.reshape(EXPERTS, IN // EXPERTS, OUT), None, "any")))
        if before:  # where there are values
            held.append((before, deep.bytes_here))
            once, again = deep.whole(), deep.whole()  # the matrices themselves: a move costs no copy any more
            pairs = [(once.m, again.m), (once.own, again.own), (once.lam, again.lam)]
            assert all(x.data_ptr() == y.data_ptr() for x, y in pairs if not x.is_meta)
        out += [await s.linear(x, Linear(w, None, "any")) for x in (row, rows)]
        out.append(w[2:4] + w[0])
        return out

    found = run_masked(program, [row, rows, each], [weight], parties)[0]
    experts = weight.reshape(EXPERTS, IN // EXPERTS, OUT)
    products = [row @ weight, rows @ weight]
    for ours, right in zip(found, [*products, each @ experts, *products, weight[2:4] + weight[0]], strict=True):
        assert (ours - right).abs().max() < 0.01
    entry = 8 * IN * OUT
    assert sorted(held) == [(entry, entry), *[(2 * entry, 2 * entry)] * parties]
