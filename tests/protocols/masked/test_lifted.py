"""Element-wise products of lifted factors, and openings of wide values, against Python's integers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from protocols.masked import lifted, truncation
from protocols.masked.context import Context, open_value
from protocols.masked.shares import Masked, Shared, WideShared
from protocols.masked.truncation import open_cut
from protocols.masked.wide import open_cut_wide
from protocols.schedule import together
from tests.protocols.gate_harness import predict, run

PARTIES = [2, 3]


def _edges(bits: int, count: int) -> Tensor:
    """Return numbers |x| < 2^(bits - 2), the largest and smallest among them."""
    most = (1 << (bits - 2)) - 1
    found = torch.randint(-most, most, (count,), generator=torch.Generator().manual_seed(bits))
    found[:6] = torch.tensor([most, -most, 0, -1, 1, most - 1])
    return found


async def _opened(c: Context, x: Shared | WideShared, count: int) -> Shared:
    """Return the product with `count` bits fewer, as a sharing."""
    found = await open_cut_wide(c, x, count) if isinstance(x, WideShared) else await open_cut(c, x, count)
    return c.shared(found)


def _cut(x: int, count: int) -> int:
    return x >> count


@pytest.mark.parametrize("parties", PARTIES)
@pytest.mark.parametrize(
    ("left", "right", "bits", "count"),
    [(34, 44, 76, 12), (34, 44, 94, 40), (50, 50, 98, 44), (20, 64, 64, 10), (64, 40, 104, 60)],
)
def test_product(parties: int, left: int, right: int, bits: int, count: int) -> None:
    x, y = _edges(left, 300), _edges(right, 300).flip(0)
    reach = bits - 2  # what the result's ring holds
    y = y >> max(0, left + right - 4 - reach)

    async def gate(c: Context, a: Shared, b: Shared) -> Shared:
        m, n = await together(open_value(c, a), open_value(c, b))
        product = lifted.multiply(c, "product", m, n, bits)
        return await _opened(c, product, count)

    found = run(gate, [(x, left), (y, right)], parties)
    for got, i, j in zip(found.out.tolist(), x.tolist(), y.tolist(), strict=True):
        assert got - _cut(i * j, count) in (0, 1)
    assert found.costs[0].rounds == 2


@pytest.mark.parametrize("parties", PARTIES)
@pytest.mark.parametrize(("first", "second"), [(90, 90), (90, 60), (60, 90)])
def test_what_lifts_a_value_is_dealt_once_for_rings_no_larger(parties: int, first: int, second: int) -> None:
    x, y = _edges(34, 300), _edges(20, 300).flip(0)

    def gate(*rings: int) -> Any:
        async def products(c: Context, a: Shared, b: Shared) -> list[Shared]:
            m, n = await together(open_value(c, a), open_value(c, b))
            found = [lifted.multiply(c, "product", m, n, bits) for bits in rings]
            return [f.narrow().to_ring(58) if isinstance(f, WideShared) else f.to_ring(58) for f in found]

        return products

    both = run(gate(first, second), [(x, 34), (y, 20)], parties)
    assert all(torch.equal(out, x * y) for out in both.outputs)
    dealt = [run(gate(bits), [(x, 34), (y, 20)], parties).costs[-1].offline_bytes for bits in (first, second)]
    assert (both.costs[-1].offline_bytes < sum(dealt) - 3000) == (second <= first)


@pytest.mark.parametrize("parties", PARTIES)
def test_a_product_broadcasts(parties: int) -> None:
    x, y = _edges(30, 12).reshape(3, 4), _edges(28, 6)[:3].reshape(3, 1)

    async def gate(c: Context, a: Shared, b: Shared) -> Shared:
        product = lifted.multiply(c, "product", await open_value(c, a), await open_value(c, b), 80)
        assert isinstance(product, WideShared)
        return product.move(lambda t: t.reshape(-1)).narrow()

    found = run(gate, [(x, 30), (y, 28)], parties)
    assert torch.equal(found.out, (x * y).reshape(-1))


@pytest.mark.parametrize("parties", PARTIES)
@pytest.mark.parametrize("bits", [60, 64, 90])
def test_product_with_a_number_that_the_dealer_knows(parties: int, bits: int) -> None:
    x = _edges(30, 200)

    def known(m: Masked) -> Tensor:
        return (m.lam & 255) - 128

    async def gate(c: Context, a: Shared) -> Any:
        m = await open_value(c, a)
        product = lifted.multiply_known(c, "product", m, lambda: known(m), 0, bits)
        other = c.deal("factor", x.shape, 16, lambda: known(m))
        low = product.narrow() if isinstance(product, WideShared) else product
        return low, Shared(other, 16, 0)

    found = run(gate, [(x, 30)], parties)
    assert torch.equal(found.outputs[0], x * found.outputs[1])


@pytest.mark.parametrize("parties", PARTIES)
@pytest.mark.parametrize(("bits", "small"), [(20, 10), (40, 26), (64, 50), (46, 46), (60, 64)])
def test_sums_of_squares(parties: int, bits: int, small: int) -> None:
    most = 1 << min(small - 2, bits // 2 - 4)
    x = torch.randint(-most + 1, most, (5, 16), generator=torch.Generator().manual_seed(1))

    async def gate(c: Context, a: Shared) -> Shared:
        return lifted.square_sums(c, "squares", await open_value(c, a), bits)

    assert torch.equal(run(gate, [(x, small)], parties).out, (x * x).sum(-1, keepdim=True))


@pytest.mark.parametrize("parties", PARTIES)
def test_lift(parties: int) -> None:
    x = _edges(33, 100)

    async def gate(c: Context, a: Shared) -> Shared:
        found = lifted.lift(c, await open_value(c, a), 100)
        assert isinstance(found, WideShared)
        return await _opened(c, WideShared(found.x << 40, 100, 0), 36)

    assert torch.equal(run(gate, [(x, 33)], parties).out, x << 4)


@pytest.mark.parametrize("parties", PARTIES)
@pytest.mark.parametrize("bits", [50, 64, 90])
def test_factors_whose_masks_are_counted(bits: int, parties: int) -> None:
    """Products and lifts as without it: the dealer tells how often shares go around in place of the masks."""
    x, y = _edges(26, 300), _edges(20, 300).flip(0)

    async def gate(c: Context, a: Shared, b: Shared) -> list[Shared]:
        m, n = await together(open_value(c, a, True), open_value(c, b, True))
        moved = m.move(lambda t: t.flip(0)).starting(-(1 << 24))
        found = [lifted.multiply(c, "product", m, n, bits), lifted.lift(c, moved, bits)]
        narrow = [f.narrow() if isinstance(f, WideShared) else f for f in found]
        return [f.to_ring(50) for f in (*narrow, truncation.truncate_and_lift(c, n, 0, 60))]

    product, flipped, other = run(gate, [(x, 26), (y, 20)], parties).outputs
    assert torch.equal(product, x * y)
    assert torch.equal(flipped, x.flip(0))
    assert torch.equal(other, y)


@pytest.mark.parametrize("counted", [False, True])
@pytest.mark.parametrize(("bits", "x", "y"), [(50, 34, 40), (70, 34, 40), (90, 34, 40), (40, 40, 30), (64, 26, 26)])
def test_what_is_dealt_of_a_product_is_as_said(bits: int, x: int, y: int, counted: bool) -> None:
    size, said = 8000, [0]

    async def gate(c: Context, a: Shared, b: Shared) -> Any:
        m, n = await open_value(c, a, counted), await open_value(c, b, counted)
        said[0] = lifted.dealt_bits(bits, m, n)
        lifted.multiply(c, "product", m, n, bits)

    cost = predict(gate, [((size,), x), ((size,), y)], 2)
    assert cost.offline_bytes == pytest.approx(said[0] * size / 8, abs=16 * 20)
