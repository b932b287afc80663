"""What is opened of lifted products, wide values and signed one-hot lookups is uniform; broken openings are found out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mpc.wide import Wide
from protocols.masked import gather, lifted, product, truncation, veiled, wide
from protocols.masked.context import Context, Opening, open_value
from protocols.masked.gather import picked_by_rank, picked_scores, spread_weights
from protocols.masked.shares import Shared, WideShared
from protocols.masked.signed_one_hot import signed_look_up, signed_one_hot
from protocols.masked.top_k import by_value
from protocols.masked.truncation import raise_ring
from protocols.schedule import together
from tests.protocols import uniformity
from tests.protocols.gate_harness import run

Gate = Callable[..., Awaitable[Any]]
SIZE = 3000
X = torch.full((SIZE,), 12_345)  # one value everywhere: whatever shows through is not uniform


async def _cut(c: Context, x: Shared | WideShared, count: int) -> Shared:
    assert isinstance(x, WideShared)
    return c.shared(await wide.open_cut_wide(c, x, count))


async def products(c: Context, x: Shared, y: Shared) -> list[Shared]:
    """Two products of one pair of masked values: what is opened of them must not be related."""
    a, b = await together(open_value(c, x), open_value(c, y))
    one, two = lifted.multiply(c, "one", a, b, 76), lifted.multiply(c, "two", a, b, 76)
    return list(await together(_cut(c, one, 12), _cut(c, two, 12)))


async def narrow_products(c: Context, x: Shared, y: Shared) -> Shared:
    a, b = await together(open_value(c, x, True), open_value(c, y, True))
    found = lifted.multiply(c, "product", a, b, 50)
    assert isinstance(found, Shared)
    return c.shared(await open_value(c, found))


async def known_factors(c: Context, x: Shared, y: Shared) -> Shared:
    a = await open_value(c, x)
    return await _cut(c, lifted.multiply_known(c, "known", a, lambda: torch.full(a.shape, 77, device=c.device), 0, 90), 30)


async def squares(c: Context, x: Shared, y: Shared) -> Shared:
    a = await open_value(c, x.map(lambda t: t.reshape(-1, 2)))
    return c.shared(await open_value(c, lifted.square_sums(c, "squares", a, 40)))


async def wide_deal(c: Context, x: Shared, y: Shared) -> Shared:
    dealt = wide.deal(c, "value", x.shape, 100, lambda: Wide.of(torch.full(x.shape, 12_345, device=c.device)) << 40)
    if not c.evaluating:
        dealt = Wide(c.blank(x.shape), c.blank(x.shape))
    assert isinstance(dealt, Wide)
    return await _cut(c, WideShared(dealt, 100, 0), 40)


async def signed(c: Context, x: Shared, y: Shared) -> Shared:
    hot = signed_one_hot(c, await open_value(c, y.to_ring(6)), 0, 6, 24)
    found = signed_look_up(c, hot, torch.arange(64, device=c.device).expand(1, 64, 64), 24).map(lambda t: t[0])
    masked = await open_value(c, found)
    unsigned = lifted.multiply_known(c, "sign", masked, hot.sign, 0, 24)
    assert isinstance(unsigned, Shared)
    return c.shared(await open_value(c, unsigned))


async def chosen(c: Context, x: Shared, y: Shared) -> list[Shared]:
    """All ranks and scores equal: a choice by ranks or by e, its scores, and weights that it spreads over all clusters."""
    groups, clusters, size, count = SIZE // 24, 6, 4, 3
    ranks = x.to_ring(3).map(lambda t: t.reshape(groups, -1)[:, :clusters] * 0)
    scores = y.to_ring(24).map(lambda t: t.reshape(groups, 1, clusters, size))
    m, s = await together(open_value(c, ranks), open_value(c, scores))
    if c.parties == 2:
        near, rows = picked_by_rank(c, m, count, s, 40)
        e, p = await together(open_value(c, rows), open_value(c, near))
    else:
        e = await open_value(c, by_value(c, m, count, 40))
        p = await open_value(c, picked_scores(c, e.to_ring(24), s))
    return [c.shared(await open_value(c, spread_weights(c, e, p)))]


async def veiled_factors(c: Context, x: Shared, y: Shared) -> list[Shared]:
    """Two sums of masked values times known numbers, of which a word, and fewer bits that are lifted later, are left."""
    a, b = await together(open_value(c, x), open_value(c, y.to_ring(20)))
    known = lifted.Factor(lambda: torch.full(a.shape, 77, device=c.device), 0)
    one, two = (veiled.sum_known(c, "known", [(value, known)], bits) for value, bits in ((a, 90), (b, 40)))
    found = await together(veiled.open_cut(c, one, 30), veiled.open_cut(c, two, 10, wraps=True))
    return [c.shared(found[0]), c.shared(await raise_ring(c, found[1], 0, 44))]


async def raised(c: Context, x: Shared, y: Shared) -> list[Shared]:
    """Two values raised from small rings: what each is opened with, before and after."""
    a, b, d = await together(*(open_value(c, x.to_ring(bits), bits == 22) for bits in (20, 24, 22)))
    rings = [raise_ring(c, a, 0, 44), raise_ring(c, b, 6, 50), raise_ring(c, d, 0, 40)]
    return [c.shared(m) for m in await together(*rings)]


GATES: list[Gate] = [products, narrow_products, known_factors, squares, wide_deal, signed, chosen, veiled_factors, raised]


def _failures(gate: Gate, parties: int) -> list[uniformity.Result]:
    found = run(gate, [(X, 34), (X, 40)], parties)
    seen = [uniformity.Opened("gate", m, bits) for m, bits in found.seen]
    tested = uniformity.results(seen)
    assert len(tested) > 10
    return uniformity.failures(tested)


@pytest.mark.parametrize("parties", [2, 3])
@pytest.mark.parametrize("gate", GATES)
def test_what_is_opened_is_uniform(gate: Gate, parties: int) -> None:
    assert not _failures(gate, parties)


def test_both_words_of_a_wide_value_are_opened_under_a_mask() -> None:
    found = run(wide_deal, [(X, 34), (X, 40)], 3)
    assert [bits for _, bits in found.seen] == [64, 36]


@pytest.mark.parametrize("parties", [2, 3])
def test_weights_that_are_spread_without_a_mask_of_their_own_are_found(
    parties: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opened under no mask but the dealt term's, they would be what they are."""
    real, with_mask, weights = product.product, Opening.__init__, list[Shared]()

    def noted(c: Context, op: str, *rest: Any) -> Shared:
        found = real(c, op, *rest)
        if op == "spread weights":
            weights.append(found)
        return found

    def bare(opening: Opening, value: Shared, lam: Tensor, *rest: Any) -> None:
        with_mask(opening, value, torch.zeros_like(lam) if any(value is x for x in weights) else lam, *rest)

    monkeypatch.setattr(gather, "product", noted)
    monkeypatch.setattr(Opening, "__init__", bare)
    assert _failures(chosen, parties)
    assert weights


@pytest.mark.parametrize("parties", [2, 3])
def test_the_carry_of_a_raised_ring_without_a_mask_is_found(parties: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask that is there already hides low bits only: without a fresh one, who sees the carry sees the top bit of lam."""

    async def bare(c: Context, x: Shared, wraps: bool = False) -> Any:
        found = await Opening(x, torch.zeros_like(x.x) if c.evaluating else c.blank(x.shape))
        return found.map(lambda t: t)

    monkeypatch.setattr(truncation, "open_value", bare)
    assert _failures(raised, parties)


@pytest.mark.parametrize("parties", [2, 3])
def test_counted_masks_that_are_too_small_are_found(parties: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shares that never go around would need no dealt numbers, and hide nothing."""
    real = Context.opening

    def small(c: Context, x: Shared, wraps: bool = False) -> Opening:
        found = real(c, x, wraps)
        found.lam = found.lam >> 4 if not found.lam.is_meta else found.lam
        return found

    monkeypatch.setattr(Context, "opening", small)
    assert _failures(narrow_products, parties)


@pytest.mark.parametrize("gate", [products, known_factors, wide_deal])
def test_a_high_word_without_a_mask_is_found(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    real = wide.random

    def low_alone(c: Context, op: str, shape: torch.Size, bits: int) -> Wide:
        return Wide(real(c, op, shape, bits).low, torch.zeros(shape, dtype=torch.int64, device=c.device))

    monkeypatch.setattr(wide, "random", low_alone)
    assert _failures(gate, 3)


def test_a_wide_mask_that_serves_twice_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each opening is uniform by itself; only their difference tells."""
    real = wide.random
    kept: dict[tuple[int, tuple[int, ...], int], Wide] = {}

    def again(c: Context, op: str, shape: torch.Size, bits: int) -> Wide:
        fresh = real(c, op, shape, bits)
        return kept.setdefault((id(c.tape), tuple(shape), bits), fresh)

    monkeypatch.setattr(wide, "random", again)
    found = _failures(products, 3)
    assert any("openings" in r.name for r in found)


@pytest.mark.parametrize("parties", [2, 3])
def test_a_sum_of_known_factors_without_its_veil_is_found(parties: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The product of mask and factor hides it from nobody who knows that the factor is a constant."""
    real = wide.random

    def none(c: Context, op: str, shape: torch.Size, bits: int) -> Any:
        found = real(c, op, shape, bits)
        return found if isinstance(found, Wide) else found * 0

    monkeypatch.setattr(veiled, "random", none)
    assert _failures(veiled_factors, parties)


def test_low_bits_that_are_sent_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two parties cut their shares. Were the low bits sent as they are, their sum would be the value's."""
    real = wide.open_cut_wide

    async def talkative(c: Context, x: WideShared, count: int) -> Any:
        low = Shared(x.x.low, count, 0)
        await Opening(low, torch.zeros_like(low.x))  # no mask
        return await real(c, x, count)

    monkeypatch.setattr(wide, "open_cut_wide", talkative)
    assert _failures(products, 2)


def test_the_bits_of_a_share_that_decide_a_rounding_are_uniform() -> None:
    """Of a product of two values: the dealt term in it is fresh."""
    seen: list[Tensor] = []

    async def watched(c: Context, x: Shared, y: Shared) -> Shared:
        a, b = await together(open_value(c, x), open_value(c, y))
        found = lifted.multiply(c, "product", a, b, 76)
        assert isinstance(found, WideShared)
        if c.evaluating:
            seen.append(found.x.low & 4095)
        return await _cut(c, found, 12)

    run(watched, [(X, 34), (X, 40)], 2)
    for low in seen:
        for digit in (low >> 6, low & 63):
            assert uniformity.chi_square_p(torch.bincount(digit, minlength=64).double()) > uniformity.FALSE_POSITIVES
