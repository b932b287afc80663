"""Chosen clusters: picks by ranks, weights spread over all clusters, and attention by each form, against plain indexing."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

import pytest
import torch
from torch import Tensor

from mpc.errors import RangeError
from mpc.tape import HEADER_BYTES
from protocols.masked import forms, selected_attention
from protocols.masked.context import Context, open_value
from protocols.masked.gather import Sizes, picked_by_rank, rank_points, spread_weights
from protocols.masked.shares import Masked, Shared
from protocols.schedule import together
from protocols.suite import Value
from tests.protocols.gate_harness import predict, run
from tests.protocols.masked.harness import run_masked

GROUPS, ROWS, COUNT, CLUSTERS, SIZE = 3, 2, 3, 6, 4
SCORE_BITS, BITS = 24, 46


def picks(count: int) -> Any:
    async def gate(c: Context, ranks: Shared, s: Shared) -> list[Shared]:
        opened, scores = await together(open_value(c, ranks), open_value(c, s))
        return list(picked_by_rank(c, opened, count, scores, BITS))

    return gate


def some_ranks(groups: int, clusters: int) -> Tensor:
    return torch.stack([torch.randperm(clusters) for _ in range(groups)])


def some_scores() -> Tensor:
    reach = 1 << (SCORE_BITS - 1)
    scores = torch.randint(-reach, reach, (GROUPS, ROWS, CLUSTERS, SIZE))
    scores[0, 0, 0] = torch.tensor([-reach, reach - 1, 0, -1])
    return scores


@pytest.mark.parametrize("count", [1, COUNT, CLUSTERS])
def test_picks_are_the_rows_of_the_first_ranks(count: int) -> None:
    ranks, scores = some_ranks(GROUPS, CLUSTERS), some_scores()
    found = run(picks(count), [(ranks, 3), (scores, SCORE_BITS)])
    order = ranks.argsort(-1)[:, :count]
    wanted = torch.stack([scores[g][:, order[g]] for g in range(GROUPS)])
    assert torch.equal(found.outputs[0], wanted)
    assert torch.equal(found.outputs[1], torch.nn.functional.one_hot(order, CLUSTERS))
    assert found.costs[0].rounds == 1  # of the openings of ranks and scores
    assert not any(found.revealed)


def test_picks_are_dealt_as_keys() -> None:
    costs = predict(picks(COUNT), [((GROUPS, CLUSTERS), 3), ((GROUPS, ROWS, CLUSTERS, SIZE), SCORE_BITS)], 2)
    elements = GROUPS * CLUSTERS
    ranks = Masked(torch.zeros(GROUPS, CLUSTERS), torch.zeros(GROUPS, CLUSTERS), 3, 0)
    dealt = costs.offline_bytes - 5 * HEADER_BYTES  # two openings, roots, corrections, payloads
    assert dealt == rank_points(ranks, COUNT, ROWS * SIZE, BITS).key_bytes(elements)
    assert dealt == pytest.approx(elements * (3 * 16 + (1 + ROWS * SIZE) * BITS / 8), abs=8)


def test_picks_by_rank_are_for_two_parties() -> None:
    with pytest.raises(RangeError, match="two parties"):
        run(picks(COUNT), [(some_ranks(GROUPS, CLUSTERS), 3), (some_scores(), SCORE_BITS)], 3)


@pytest.mark.parametrize("parties", [2, 3])
def test_spread_weights_lie_where_a_cluster_was_chosen(parties: int) -> None:
    order = some_ranks(GROUPS, CLUSTERS)[:, :COUNT]
    e = torch.nn.functional.one_hot(order, CLUSTERS)
    p = torch.randint(-(1 << (BITS - 1)), 1 << (BITS - 1), (GROUPS, ROWS, COUNT, SIZE))

    async def gate(c: Context, e: Shared, p: Shared) -> Shared:
        return spread_weights(c, *await together(open_value(c, e), open_value(c, p)))

    found = run(gate, [(e, 60), (p, BITS)], parties)
    wanted = torch.zeros(GROUPS, ROWS, CLUSTERS, SIZE, dtype=torch.int64)
    for g in range(GROUPS):
        wanted[g][:, order[g]] = p[g]
    assert torch.equal(found.out, wanted)
    assert found.costs[-1].offline_bytes == wanted.numel() * BITS // 8 + 3 * HEADER_BYTES


# ---- attention -------------------------------------------------------------------------------------------------------
def _taking(monkeypatch: pytest.MonkeyPatch, wanted: str) -> list[str]:
    """Take the form `wanted` wherever it is offered; [forms that were taken where there were several]."""
    taken: list[str] = []
    real = forms.choose

    def choose(offered: Any, *rest: Any) -> str:
        names = [form.name for form in offered]
        name = wanted if wanted in names else real(offered, *rest)
        taken.append(name)
        return name

    monkeypatch.setattr(selected_attention, "choose", choose)
    return taken


@pytest.mark.parametrize("parties", [2, 3])
@pytest.mark.parametrize("wanted", ["products", "opened", "rows", "ranks"])
@pytest.mark.parametrize("heads", [1, 2])
def test_attention_by_each_form(parties: int, wanted: str, heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A choice that is still being made, then the same once it is masked, for which other forms are offered."""
    taken = _taking(monkeypatch, wanted)
    groups, clusters, size, channels, count, more = 2, 6, 3, 5, 3, 4
    q, k, v = torch.randn(groups, heads, channels), torch.randn(groups, 18, channels) * 2, torch.randn(groups, 18, channels)
    sims = torch.stack([torch.randperm(clusters) for _ in range(groups)]) * 0.5
    ak, av = torch.randn(groups, more, channels), torch.randn(groups, more, channels)

    async def program(s: Any, q: Any, k: Any, v: Any, sims: Any, ak: Any, av: Any) -> Any:
        parts = [x.reshape(groups, clusters, size, channels) for x in (k, v)]
        made: list[Value] = []

        async def choosing() -> Value:
            made.append(await s.top_k(sims, count, 4.0))
            return made[0]

        first = await s.selected_attention(q, choosing(), *parts, (ak, av))
        return first, await s.selected_attention(q, made[0], *parts, None)

    outputs, _ = run_masked(program, [q, k, v, sims, ak, av], parties=parties)
    order = sims.argsort(dim=-1, descending=True)[:, :count]
    for out, extra in zip(outputs, (True, False), strict=True):
        for g in range(groups):
            index = torch.cat([torch.arange(i * size, (i + 1) * size) for i in order[g].tolist()])
            keys = torch.cat([k[g, index], ak[g]]) if extra else k[g, index]
            values = torch.cat([v[g, index], av[g]]) if extra else v[g, index]
            expected = torch.softmax(q[g] @ keys.T, -1) @ values
            assert (out[g] - expected).abs().max() < 2e-3
    assert wanted in taken or (wanted == "ranks" and parties == 3)


def test_a_new_choice_by_ranks_takes_a_round_less(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = {}
    for wanted in ("rows", "ranks"):
        _taking(monkeypatch, wanted)

        async def program(s: Any, q: Any, k: Any, sims: Any) -> Any:
            parts = k.reshape(1, 6, 3, 4)
            choosing: Coroutine[Any, Any, Value] = s.top_k(sims, 2, 4.0)
            return await s.selected_attention(q, choosing, parts, parts, None)

        _, ledger = run_masked(program, [torch.randn(1, 1, 4), torch.randn(1, 18, 4), torch.randn(1, 6)])
        rounds[wanted] = ledger.total().rounds
        monkeypatch.undo()
    assert rounds["rows"] == rounds["ranks"] + 1


def test_forms_cost_what_is_counted() -> None:
    """The two forms of the values: what the rule compares is what the gates take."""
    sizes = Sizes(groups=4, rows=1, count=3, clusters=8, size=4, channels=16)
    products, opened = sizes.value_forms(BITS, 2)
    assert (products.rounds, opened.rounds) == (0, 1)
    assert opened.sent == 4 * 8 * 4 * BITS / 8
    assert products.dealt == (4 * 8 * 4 + 16 * (4 * 3 * 8 + 4 * 3 * 4) + 4 * 16) * BITS / 8
    assert opened.dealt == (4 * 8 * 4 + 4 * 16) * BITS / 8
