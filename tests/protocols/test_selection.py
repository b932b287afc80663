"""Ranking, keep-sets, compaction and attention over chosen tokens: every suite against the suite `plain`, ties included."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mpc.errors import MpcacheError
from protocols.observed import Observed
from tests.protocols.suite_harness import SECURE, run_plain, run_secure

torch.manual_seed(3)


def grid(*shape: int, span: int = 8, step: float = 0.25) -> Tensor:
    """Multiples of `step` from few values: many exact ties."""
    return torch.randint(-span, span + 1, shape).double() * step


@pytest.mark.parametrize(("suite", "parties"), SECURE)
@pytest.mark.parametrize(("count", "k"), [(1, 1), (2, 1), (9, 4), (20, 20)])
def test_top_k_equals_a_stable_sort(suite: str, parties: int, count: int, k: int) -> None:
    x = grid(3, 2, count)

    async def program(s: Any, v: Any) -> Any:
        return await s.top_k(v, k, 4.0)

    (expected,) = run_plain(program, [x])
    (found,) = run_secure(suite, parties, program, [x])
    assert torch.equal(found, expected)
    order = x.argsort(dim=-1, descending=True, stable=True)[..., :k]
    assert torch.equal(expected.argmax(-1), order)


@pytest.mark.covering(2)
@pytest.mark.parametrize(("suite", "parties"), SECURE)
@pytest.mark.parametrize(("count", "k"), [(7, 3), (300, 120), (300, 1), (300, 299)])
def test_keep_largest_keeps_exactly_the_first_largest(suite: str, parties: int, count: int, k: int) -> None:
    x = grid(2, count, span=30)

    async def program(s: Any, v: Any) -> Any:
        return await s.keep_largest(v, k, 8.0)

    (expected,) = run_plain(program, [x])
    (found,) = run_secure(suite, parties, program, [x])
    assert torch.equal(found, expected)
    assert torch.equal(expected.sum(-1), torch.full((2,), float(k), dtype=torch.float64))


@pytest.mark.parametrize(("suite", "parties"), SECURE)
def test_compaction_keeps_order(suite: str, parties: int) -> None:
    marks = torch.tensor([[1.0, 0, 0, 1, 1, 0, 1], [0, 1, 1, 1, 0, 1, 0]])
    a, b = torch.randn(2, 7, 3), torch.randn(2, 7, 2)

    async def program(s: Any, m: Any, x: Any, y: Any) -> Any:
        kept = await s.keep_largest(m, 4, 2.0)
        return await s.compact(kept, [x, y], 4)

    found = run_secure(suite, parties, program, [marks, a, b])
    for out, rows in zip(found, (a, b), strict=True):
        expected = torch.stack([rows[i][marks[i] > 0] for i in range(2)])
        assert (out - expected).abs().max() < 2.0**-12


def plain_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(q @ k.transpose(1, 2), -1) @ v


@pytest.mark.covering(2)
@pytest.mark.parametrize(("suite", "parties"), SECURE)
@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("more", [0, 3])
def test_attention_to_chosen_clusters(suite: str, parties: int, heads: int, more: int) -> None:
    groups, clusters, size, channels, count = 2, 5, 4, 6, 2
    q, k, v = torch.randn(groups, heads, channels), torch.randn(groups, 20, channels) * 2, torch.randn(groups, 20, channels)
    sims = grid(groups, clusters)
    ak, av = torch.randn(groups, max(more, 1), channels), torch.randn(groups, max(more, 1), channels)

    async def program(s: Any, q: Any, k: Any, v: Any, sims: Any, ak: Any, av: Any) -> Any:
        chosen = await s.top_k(sims, count, 4.0)
        parts = [x.reshape(groups, clusters, size, channels) for x in (k, v)]
        first = await s.selected_attention(q, chosen, *parts, (ak, av) if more else None)
        return first, await s.selected_attention(q, chosen, *parts, None)  # the choice serves twice

    found = run_secure(suite, parties, program, [q, k, v, sims, ak, av])
    order = sims.argsort(dim=-1, descending=True, stable=True)[:, :count]
    for out, extra in zip(found, (more > 0, False), strict=True):
        keys, values = [], []
        for g in range(groups):
            index = torch.cat([torch.arange(i * size, (i + 1) * size) for i in order[g].tolist()])
            keys.append(torch.cat([k[g, index], ak[g]]) if extra else k[g, index])
            values.append(torch.cat([v[g, index], av[g]]) if extra else v[g, index])
        expected = plain_attention(q, torch.stack(keys), torch.stack(values))
        assert (out - expected).abs().max() < 2e-3


@pytest.mark.parametrize(("suite", "parties"), SECURE)
def test_attention_that_tokens_receive(suite: str, parties: int) -> None:
    groups, tokens, channels = 2, 9, 4
    q, k, v = (torch.randn(groups, tokens, channels) for _ in range(3))
    mask = torch.ones(tokens, tokens).tril().bool()
    observed = torch.arange(tokens) >= 6

    async def program(s: Any, q: Any, k: Any, v: Any) -> Any:
        return await s.attention_with_mass(q, k, v, mask, observed)

    out, received = run_secure(suite, parties, program, [q, k, v])
    p = torch.softmax((q @ k.transpose(1, 2)).masked_fill(~mask, float("-inf")), -1)
    assert (out - p @ v).abs().max() < 2e-3
    assert (received - p[:, 6:].sum(1)).abs().max() < 2e-3


@pytest.mark.covering(2)
@pytest.mark.parametrize(("suite", "parties"), SECURE)
@pytest.mark.parametrize("values", [True, False])
@pytest.mark.parametrize("heads", [(0, 1, 2, 3), (3, 0), (2,)])
def test_single_heads_attention_and_its_squares(suite: str, parties: int, values: bool, heads: tuple[int, ...]) -> None:
    """Two key/value heads of two query heads each, the last 3 of 9 queries; squares to 18 fraction bits."""
    groups, group, tokens, channels = 2, 2, 9, 4
    q, k, v = torch.randn(groups, group * tokens, channels), torch.randn(2, 9, 4), torch.randn(2, 9, 4)
    mask = torch.ones(tokens, tokens).tril().bool()
    observed = Observed.of_heads(heads, group, (tokens, 3), squares=True)

    async def program(s: Any, q: Any, k: Any, v: Any) -> Any:
        found = await s.observed_attention(q, k, v if values else None, mask.repeat(group, 1), observed)
        assert (found.out is None) == (not values)
        return found.mass, found.squares, *([found.out] if values else [])

    mass, squares, *out = run_secure(suite, parties, program, [q, k, v])
    scores = q.reshape(groups, group, tokens, channels) @ k.transpose(1, 2)[:, None]
    p = torch.softmax(scores.masked_fill(~mask, float("-inf")), -1)
    last = p.reshape(groups * group, tokens, tokens)[list(heads), 6:]
    assert (mass - last.sum(1)).abs().max() < 2e-3
    assert (squares - last.square().sum(1)).abs().max() < 2e-3
    for attended in out:
        assert (attended.reshape((*p.shape[:3], channels)) - p @ v[:, None]).abs().max() < 2e-3


@pytest.mark.parametrize(("suite", "parties"), SECURE)
@pytest.mark.parametrize("values", [True, False])
def test_late_queries_attention_apart(suite: str, parties: int, values: bool) -> None:
    """Two key/value heads of two query heads each: what all 9 queries give, and the last 2 of them."""
    q, k, v = torch.randn(2, 2 * 9, 4), torch.randn(2, 9, 4), torch.randn(2, 9, 4)
    mask = torch.ones(9, 9).tril().bool().repeat(2, 1)
    observed = Observed.of_rows(torch.ones(18, dtype=torch.bool), 2).with_late(9, 2)

    async def program(s: Any, q: Any, k: Any, v: Any) -> Any:
        found = await s.observed_attention(q, k, v if values else None, mask, observed)
        return found.mass, found.late

    mass, late = run_secure(suite, parties, program, [q, k, v])
    p = torch.softmax((q @ k.transpose(1, 2)).masked_fill(~mask, float("-inf")), -1).reshape(2, 2, 9, 9)
    assert (mass - p.sum((1, 2))).abs().max() < 4e-3
    assert (late - p[:, :, 7:].sum((1, 2))).abs().max() < 4e-3


@pytest.mark.parametrize(("suite", "parties"), SECURE)
def test_small_numbers_are_ranked_by_more_fraction_bits(suite: str, parties: int) -> None:
    """Products of 10 fraction bits each, whose differences are below what the suite keeps."""
    x = torch.arange(300).flip(0).reshape(1, 300).double() * 2.0**-10

    async def program(s: Any, x: Any) -> Any:
        squares = await s.squared(x, 10)
        return await s.keep_largest(squares, 7, 0.25, 20), await s.keep_largest(-squares, 3, 0.25, 20)

    top, low = run_secure(suite, parties, program, [x])
    assert top[0].nonzero()[:, 0].tolist() == list(range(7))
    assert low[0].nonzero()[:, 0].tolist() == [297, 298, 299]


@pytest.mark.parametrize(("suite", "parties"), SECURE)
def test_biased_attention_hides_tokens(suite: str, parties: int) -> None:
    q, k, v = torch.randn(2, 2, 4), torch.randn(2, 7, 4), torch.randn(2, 7, 4)
    keep = torch.tensor([[1.0, 0, 1, 1, 0, 0, 1], [0, 1, 1, 0, 1, 1, 0]])

    async def program(s: Any, q: Any, k: Any, v: Any, keep: Any) -> Any:
        kept = await s.keep_largest(keep, 4, 2.0)
        return await s.biased_attention(q, k, v, (kept * 32).reshape(2, 1, 7))

    (found,) = run_secure(suite, parties, program, [q, k, v, keep])
    scores = (q @ k.transpose(1, 2)).masked_fill(keep[:, None] == 0, float("-inf"))
    assert (found - torch.softmax(scores, -1) @ v).abs().max() < 2e-3


@pytest.mark.parametrize(("suite", "parties"), SECURE)
@pytest.mark.parametrize("count", [60, 130])
def test_marks_of_any_number_of_tokens_serve_as_a_bias(suite: str, parties: int, count: int) -> None:
    """Few values are ranked by pairs, many with a threshold: marks of both kinds join scores."""
    q, k, v, x = torch.randn(2, 1, 4), torch.randn(2, count, 4), torch.randn(2, count, 4), grid(2, count)

    async def program(s: Any, q: Any, k: Any, v: Any, x: Any) -> Any:
        kept = await s.keep_largest(x, 9, 8.0)
        return await s.biased_attention(q, k, v, (kept * 32).reshape(2, 1, count))

    (found,) = run_secure(suite, parties, program, [q, k, v, x])
    order = x.argsort(dim=-1, descending=True, stable=True)[:, :9]
    hidden = torch.ones(2, count, dtype=torch.bool).scatter(1, order, value=False)
    scores = (q @ k.transpose(1, 2)).masked_fill(hidden[:, None], float("-inf"))
    assert (found - torch.softmax(scores, -1) @ v).abs().max() < 2e-3


@pytest.mark.parametrize(("suite", "parties"), SECURE)
def test_replace_one_row_or_none(suite: str, parties: int) -> None:
    rows, new = torch.randn(2, 5, 3), torch.randn(2, 1, 3)
    place = torch.tensor([[0.0, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1]])

    async def program(s: Any, rows: Any, place: Any, new: Any) -> Any:
        hot = await s.top_k(place, 1, 2.0)
        return await s.replace(rows, hot[:, 0, :5], new)

    (found,) = run_secure(suite, parties, program, [rows, place, new])
    expected = rows.clone()
    expected[0, 1] = new[0, 0]
    assert (found - expected).abs().max() < 2.0**-12


@pytest.mark.parametrize("suite", ["plain", "crypten", "masked"])
@pytest.mark.parametrize("k", [0, 6])
def test_a_budget_outside_the_values_is_refused(suite: str, k: int) -> None:
    async def program(s: Any, v: Any) -> Any:
        return await s.top_k(v, k, 4.0)

    inputs = [torch.zeros(1, 5)]
    with pytest.raises(MpcacheError, match=f"{k} of 5"):
        run_plain(program, inputs) if suite == "plain" else run_secure(suite, 2, program, inputs)
