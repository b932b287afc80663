"""Clusters: their sizes, which layers describe them, and which tokens pay for it."""

from __future__ import annotations

from typing import Any

import pytest

from models.cache import KVCache
from models.costs.tracing import STEP, Setting, trace_session
from models.observation import Seen
from models.policies import parse
from models.policies.axes.cluster_reader import ClusterReader, ClusterState
from tests.models.policies.policy_cases import Case, tiny
from tests.protocols.suite_harness import run_plain


@pytest.mark.parametrize(
    ("prompt", "kept", "fine"),
    [(16, 6, 8), (107, 106, 8), (108, 107, 16), (1024, 410, 16), (2048, 819, 24), (4096, 1638, 32), (8192, 3277, 48)],
)
def test_clusters_grow_with_the_cache(prompt: int, kept: int, fine: int) -> None:
    """The multiple of 8 from sqrt(0.6 kept) on: 0.6 * 106 is below 64, 0.6 * 107 above."""
    sizes = ClusterReader(fine=0).sizes(kept)
    assert (sizes.fine, sizes.coarse) == (fine, 2 * fine)
    assert ClusterReader(levels=2, fine=4).sizes(kept) == ClusterReader(fine=4, coarse=8).sizes(kept)
    assert not ClusterReader().two_levels
    assert ClusterReader(levels=2).two_levels
    assert ClusterReader(fine=4, coarse=8).two_levels
    assert not ClusterReader(levels=1, fine=4, coarse=8).two_levels


@pytest.mark.parametrize(
    ("text", "describing"),
    [
        ("{}:sharing=2,apart=1,", [0, 1, 3]),
        ("{}:sharing=1,", [0, 1, 2, 3, 4]),
        ("full@1;{}:sharing=2,apart=1,", [0, 2, 3]),  # 1 has no choice to give: 2 makes its own
        ("shared:layers=2,apart=1|{}:sharing=1,", [0, 1, 3]),
    ],
)
def test_layers_that_take_a_choice_describe_nothing(text: str, describing: list[int]) -> None:
    """Clusters of layers whose choice another layer makes are described neither after the prompt nor when they fill up."""
    layers, tokens = 5, 24
    policy = parse(text.format("mpcache") + "static=1,dynamic=0.4,fine=4,sinks=1,window=3")
    cache = KVCache(tiny(layers=layers), policy)
    case = Case(tiny(layers=layers), tokens, 6, seed=1)

    async def program(s: Any, k: Any, v: Any, q: Any, mass: Any) -> Any:
        for layer in range(layers):
            await cache.append(s, layer, k[:, :tokens], v[:, :tokens])
            await policy.after_prefill(s, cache, layer, Seen())
        cache.seen = tokens
        for step in range(case.steps):
            for layer in range(layers):
                at = slice(tokens + step, tokens + step + 1)
                await cache.append(s, layer, k[:, at], v[:, at])
                await policy.after_append(s, cache, layer)
                await policy.attend(s, cache, layer, await s.mask_queries(q[step]))
            await cache.settle()
            cache.seen += 1
            states = {
                n: part
                for n, entry in enumerate(cache.layers)
                for part in entry.state.parts()
                if isinstance(part, ClusterState)
            }
            found = {n: state.described.fine.count for n, state in states.items() if state.described.fine is not None}
            assert found == dict.fromkeys(describing, (tokens + step) // 4)
        return [k]

    run_plain(program, case.inputs)


@pytest.mark.parametrize(
    ("suite", "window", "compares"),
    [
        ("masked", 3, [False, True, True, True]),  # every token but a cluster's first, in rounds that there are anyway
        ("masked", 0, [False, False, False, True]),  # the token that fills a cluster may choose it: it waits
        ("crypten", 3, [False, False, False, True]),  # rounds of its own: once a cluster
    ],
)
def test_which_tokens_pay_for_the_description_of_a_cluster(suite: str, window: int, compares: list[bool]) -> None:
    """A prompt of a sink and six clusters of four; the seventh begins with the first token and ends with the fourth."""
    setting = Setting(suite, 2, f"mpcache:preset=clusters,static=1,dynamic=0.4,fine=4,sinks=1,window={window},sharing=1")
    steps = [step.ledger.costs for step in trace_session(tiny(), setting, 25, 5)][1:]
    rounds = [sum(cost.rounds for (where, _), cost in costs.items() if where.startswith(STEP)) for costs in steps]
    maxima = [sum(cost.bytes_sent for (_, op), cost in costs.items() if op == "max") for costs in steps]
    layers = tiny().layers
    if suite == "crypten":
        longest, maxima = max(maxima), [n - min(maxima) for n in maxima]  # softmax takes a maximum too
        assert longest > 0
    assert [n > 0 for n in maxima] == compares
    if suite == "masked" and window:
        assert len(set(maxima[1:])) == 1
        assert len(set(rounds)) == 1
    else:
        assert rounds[3] > rounds[2] + layers
