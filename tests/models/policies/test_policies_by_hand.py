"""Policies against their definitions, written once more with loops over token numbers: what stays, what counts, per head.

`test_policies` shows that every suite does the same; here the same is shown to be right.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from models.cache import CachePolicy, KVCache
from models.observation import Seen
from models.policies import parse
from models.policies.axes.cluster_reader import ClusterReader
from models.policies.mpcache import MPCache
from tests.models.policies.policy_cases import Case, tiny
from tests.protocols.suite_harness import run_plain

TOKENS, STEPS = 48, 6


@pytest.fixture(params=[1, 2, 3])
def case(request: pytest.FixtureRequest) -> Case:
    """Grouped queries, tokens that fill clusters on the way."""
    return Case(tiny(heads=4, groups=2), TOKENS, STEPS, request.param)


def outputs(text: str, case: Case) -> list[Tensor]:
    async def program(s: Any, *values: Any) -> Any:
        return await case.run(parse(text), s, *values)

    return run_plain(program, case.inputs)[:STEPS]


def attention(case: Case, step: int, group: int, rows: list[int]) -> tuple[Tensor, Tensor]:
    """(output [R, C], probabilities [R, rows]) of a step's queries over some tokens."""
    p = torch.softmax(case.q[step, group] @ case.k[group, rows].T, -1)
    return p @ case.v[group, rows], p


def first_largest(values: list[float], count: int) -> list[int]:
    return sorted(range(len(values)), key=lambda i: (-values[i], i))[:count]


def similar(
    case: Case, step: int, group: int, rows: list[int], alpha: float | None, heads: int | slice = slice(None)
) -> float:
    keys = case.k[group, rows]
    high, low = keys.max(0).values, keys.min(0).values
    q = case.q[step, group, heads]
    if alpha is None:
        return float(torch.maximum(q * high, q * low).sum())
    return float((q @ (alpha * high + (1 - alpha) * low)).sum())


MPCACHE = "mpcache:preset=clusters,levels=1,sharing=1,"


@pytest.mark.parametrize(("alpha", "per_head"), [(0.75, False), (None, False), (0.75, True)])
def test_mpcache(case: Case, alpha: float | None, per_head: bool) -> None:
    sinks, window, fine, static, dynamic = 3, 5, 4, 0.75, 0.5
    kind = "linear=false" if alpha is None else f"alpha={alpha}"
    if per_head:
        kind += ",gathering=scores,per_head=true"
    text = MPCACHE + f"static={static},dynamic={dynamic},fine={fine},sinks={sinks},window={window},{kind}"
    importance = case.mass.sum(0)[sinks : TOKENS - window].tolist()
    stays = first_largest(importance, round(static * TOKENS) - sinks - window)
    rows = [*range(sinks), *sorted(sinks + i for i in stays), *range(TOKENS - window, TOKENS)]
    for step, found in enumerate(outputs(text, case)):
        rows.append(TOKENS + step)
        clusters, place = [], sinks
        while place + fine <= len(rows) - window:
            clusters.append(rows[place : place + fine])
            place += fine
        always = [*rows[:sinks], *rows[place:]]
        count = max(1, (round(dynamic * (TOKENS + step + 1)) - len(always)) // fine)
        assert 0 < count < len(clusters)
        for group in range(2):
            for head in range(2) if per_head else (slice(None),):
                best = first_largest([similar(case, step, group, c, alpha, head) for c in clusters], count)
                used = always + [t for i in best for t in clusters[i]]
                torch.testing.assert_close(found[group][head], attention(case, step, group, used)[0][head])


def test_quest(case: Case) -> None:
    for step, found in enumerate(outputs("quest:budget=0.5,page=4,skip=0", case)):
        rows = list(range(TOKENS + step + 1))
        pages = [rows[i : i + 4] for i in range(0, len(rows) // 4 * 4, 4)]
        rest = rows[len(pages) * 4 :]
        count = max(1, (round(0.5 * len(rows)) - len(rest)) // 4)
        for group in range(2):
            best = first_largest([similar(case, step, group, p, None) for p in pages], count)
            used = rest + [t for i in best for t in pages[i]]
            torch.testing.assert_close(found[group], attention(case, step, group, used)[0])


def test_h2o(case: Case) -> None:
    kept = round(0.5 * TOKENS)
    recent = round(0.5 * kept)
    found = outputs("h2o:budget=0.5", case)
    for group in range(2):
        scores = {t: float(case.mass[group, t]) for t in range(TOKENS)}
        older = first_largest([scores[t] for t in range(TOKENS - recent)], kept - recent)
        heavy, last = sorted(older), list(range(TOKENS - recent, TOKENS))
        for step in range(STEPS):
            last.append(TOKENS + step)
            scores[TOKENS + step] = 0.0
            rows = heavy + last
            out, p = attention(case, step, group, rows)
            torch.testing.assert_close(found[step][group], out)
            for token, more in zip(rows, p.sum(0).tolist(), strict=True):
                scores[token] += more
            heavy.append(last.pop(0))
            heavy.remove(min(heavy, key=lambda t: scores[t]))


@pytest.mark.parametrize("every", [1, 3, 20])
def test_lagged_h2o(case: Case, every: int) -> None:
    """The cache grows by `every` tokens, all of them attended to; then each head keeps its recent and heaviest ones."""
    kept = round(0.5 * TOKENS)
    recent = round(0.5 * kept)
    found = outputs(f"lag:every={every}|h2o:budget=0.5", case)
    for group in range(2):
        scores = {t: float(case.mass[group, t]) for t in range(TOKENS)}
        rows = _heaviest(scores, list(range(TOKENS)), kept, recent)
        for step in range(STEPS):
            rows.append(TOKENS + step)
            scores[TOKENS + step] = 0.0
            out, p = attention(case, step, group, rows)
            torch.testing.assert_close(found[step][group], out)
            for token, more in zip(rows, p.sum(0).tolist(), strict=True):
                scores[token] += more
            if len(rows) >= kept + every:
                rows = _heaviest(scores, rows, kept, recent)


def _heaviest(scores: dict[int, float], rows: list[int], kept: int, recent: int) -> list[int]:
    older = rows[: len(rows) - recent]
    best = first_largest([scores[t] for t in older], kept - recent)
    return [older[i] for i in sorted(best)] + rows[len(rows) - recent :]


@pytest.mark.parametrize("every", [2, 4])
def test_lagged_tova(case: Case, every: int) -> None:
    """The query of the token that fills the room decides, for all heads at once."""
    kept = round(0.5 * TOKENS)
    rows = sorted(first_largest(case.mass.sum(0).tolist(), kept))
    for step, found in enumerate(outputs(f"lag:every={every}|tova:budget=0.5", case)):
        rows.append(TOKENS + step)
        total = torch.zeros(len(rows), dtype=torch.float64)
        for group in range(2):
            out, p = attention(case, step, group, rows)
            torch.testing.assert_close(found[group], out)
            total += p.sum(0)
        if len(rows) >= kept + every:
            rows = [rows[i] for i in sorted(first_largest(total.tolist(), kept))]


def test_tova(case: Case) -> None:
    rows = first_largest(case.mass.sum(0).tolist(), round(0.5 * TOKENS))
    for step, found in enumerate(outputs("tova:budget=0.5", case)):
        rows.append(TOKENS + step)
        total = torch.zeros(len(rows), dtype=torch.float64)
        for group in range(2):
            out, p = attention(case, step, group, rows)
            torch.testing.assert_close(found[group], out)
            total += p.sum(0)
        rows.pop(int(total.argmin()))


def test_which_layers_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind the first `apart` layers the first of each group chooses."""
    case = Case(tiny(layers=7), 64, 1, 2)
    chosen: list[int] = []
    at: list[int] = []

    real = ClusterReader.chosen

    async def watched(self: ClusterReader, suite: Any, entry: Any, q: Any, plan: Any) -> Any:
        chosen.append(at[-1])
        return await real(self, suite, entry, q, plan)

    monkeypatch.setattr(ClusterReader, "chosen", watched)
    policy = MPCache(static=1, dynamic=0.4, fine=4, coarse=8, sinks=4, window=4, apart=2, sharing=2)

    async def program(s: Any, k: Any, v: Any, q: Any, mass: Any) -> Any:
        cache = KVCache(case.architecture, policy)
        for layer in range(7):
            await cache.append(s, layer, k, v)
            await policy.after_prefill(s, cache, layer, Seen())
        cache.seen = 64
        for layer in range(7):
            at.append(layer)
            out = await policy.attend(s, cache, layer, q[0])
        return out

    run_plain(program, case.inputs)
    assert chosen == [0, 1, 2, 4, 6]


def test_clusters_behind_another_eviction_are_those_of_mpcache() -> None:
    """With one head a set of tokens is a head's and a layer's: the same tokens stay by the same votes, the same count."""
    case = Case(tiny(heads=1, groups=1), 48, 6, 5)
    texts = (
        "clusters:dynamic=0.3,fine=3,alpha=0.5,sinks=0,window=6|snapkv:budget=0.6,window=6,kernel=1",
        "mpcache:static=0.6,observed=6,following=0,dynamic=0.3,fine=3,alpha=0.5,sinks=0,window=6,sharing=1",
    )
    found = []
    for policy in map(parse, texts):
        policy.check(case.architecture, case.tokens)

        async def program(s: Any, *values: Any, policy: CachePolicy = policy) -> Any:
            return await case.run(policy, s, *values)

        found.append(run_plain(program, case.inputs))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    plain = parse("snapkv:budget=0.6,window=6,kernel=1")

    async def whole(s: Any, *values: Any) -> Any:
        return await case.run(plain, s, *values)

    assert not torch.equal(found[0][0], run_plain(whole, case.inputs)[0])
