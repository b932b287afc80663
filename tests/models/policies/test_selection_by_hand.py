"""Eviction and two-level selection against definitions in numpy, with loops over token numbers, and against another
library's attention. See `test_policies_by_hand` for the other policies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.cache import KVCache, Stage
from models.generation import PlainModel, token_indices
from models.observation import Seen
from models.policies import parse
from models.policies.mpcache import MPCache
from models.policies.snapkv import SnapKV
from protocols.plain.suite import tensor_of
from tests.models.policies.policy_cases import Case, tiny
from tests.models.test_decoder import saved
from tests.protocols.suite_harness import run_plain

Array = Any
TOKENS, STEPS = 72, 9


def array(x: torch.Tensor) -> Array:
    return x.numpy().astype(np.float64)


def largest(values: Array, count: int) -> list[int]:
    """Positions of the largest, the largest first, of equal ones the earlier."""
    return [int(i) for i in np.argsort(-np.asarray(values), kind="stable")[:count]]


def attend(q: Array, keys: Array, values: Array) -> Array:
    """q [R, C] over rows [n, C]."""
    out = []
    for row in q:
        weights = np.exp(keys @ row - np.max(keys @ row))
        out.append(weights @ values / weights.sum())
    return np.array(out)


@pytest.mark.parametrize("kernel", [1, 3, 7])
@pytest.mark.parametrize("seed", [1, 2])
def test_snapkv_votes_are_pooled_over_neighbours(kernel: int, seed: int) -> None:
    window, budget = 6, 0.4
    case = Case(tiny(heads=4, groups=2), TOKENS, STEPS, seed)
    k, v, q, mass = (array(x) for x in case.inputs)

    async def program(s: Any, *values: Any) -> Any:
        return await case.run(parse(f"snapkv:budget={budget},window={window},kernel={kernel}"), s, *values)

    *outputs, left_k, _ = (array(x) for x in run_plain(program, case.inputs))
    for group in range(2):
        votes = []
        for token in range(TOKENS - window):
            near = [n for n in range(token - kernel // 2, token + kernel // 2 + 1) if 0 <= n < TOKENS - window]
            votes.append(sum(mass[group, n] for n in near))
        rows = sorted(largest(votes, round(budget * TOKENS) - window)) + list(range(TOKENS - window, TOKENS))
        assert np.array_equal(left_k[group], k[group, [*rows, *range(TOKENS, TOKENS + STEPS)]])
        for step in range(STEPS):
            rows.append(TOKENS + step)
            np.testing.assert_allclose(outputs[step][group], attend(q[step, group], k[group, rows], v[group, rows]))


class Definition:
    """MPCache on one layer, by hand. rows: token numbers that are cached, per key/value head the same."""

    fine, coarse, sinks, window, dynamic, alpha, share = 4, 12, 5, 6, 0.4, 0.625, 0.5

    def __init__(self, k: Array, v: Array, rows: list[int]) -> None:
        self.k, self.v, self.rows = k, v, rows

    @property
    def text(self) -> str:
        return (
            f"fine={self.fine},coarse={self.coarse},sinks={self.sinks},window={self.window},dynamic={self.dynamic},"
            f"alpha={self.alpha},coarse_share={self.share}"
        )

    def clusters(self) -> tuple[list[list[int]], list[int]]:
        """Clusters to choose from, and all other tokens, which count: the sinks, and what is behind the last whole cluster
        outside the window. Places in `rows`."""
        candidates, place = [], self.sinks
        while place + self.fine <= len(self.rows) - self.window:
            candidates.append(list(range(place, place + self.fine)))
            place += self.fine
        inside = {place for cluster in candidates for place in cluster}
        return candidates, [place for place in range(len(self.rows)) if place not in inside]

    def similarity(self, group: int, q: Array, places: list[int]) -> float:
        keys = self.k[group, [self.rows[p] for p in places]]
        total = 0.0
        for row in q:
            for channel in range(keys.shape[1]):
                bracket = self.alpha * keys[:, channel].max() + (1 - self.alpha) * keys[:, channel].min()
                total += row[channel] * bracket
        return total

    def chosen(self, group: int, q: Array, seen: int) -> list[int]:
        """Numbers of the chosen clusters. Equal fine clusters: the better coarse cluster's, then the earlier one."""
        candidates, always = self.clusters()
        count = max(1, (round(self.dynamic * seen) - len(always)) // self.fine)
        factor = self.coarse // self.fine
        whole = len(candidates) // factor
        near = [self.similarity(group, q, places) for places in candidates]
        above = max(round(self.share * whole), -(-count // factor))
        if whole == 0 or above >= whole:
            return largest(near, count)
        wider = [[p for places in candidates[i * factor : (i + 1) * factor] for p in places] for i in range(whole)]
        wide = [self.similarity(group, q, places) for places in wider]
        offered = [c * factor + n for c in largest(wide, above) for n in range(factor)]
        offered += list(range(whole * factor, len(candidates)))
        return [offered[i] for i in largest([near[n] for n in offered], count)]

    def attended(self, group: int, clusters: list[int]) -> list[int]:
        candidates, always = self.clusters()
        return [self.rows[p] for p in always] + [self.rows[p] for n in clusters for p in candidates[n]]

    def output(self, group: int, q: Array, clusters: list[int]) -> Array:
        rows = self.attended(group, clusters)
        return attend(q, self.k[group, rows], self.v[group, rows])


@pytest.mark.parametrize("static", [1.0, 0.75])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_two_levels_with_sinks_window_and_a_growing_cluster(static: float, seed: int) -> None:
    case = Case(tiny(heads=6, groups=2), TOKENS, STEPS, seed)
    k, v, q, mass = (array(x) for x in case.inputs)
    rows = list(range(TOKENS))
    if static < 1:  # what all heads together receive decides; sinks and window stay
        total = mass.mean(0)
        inner = range(Definition.sinks, TOKENS - Definition.window)
        best = largest(total[inner.start : inner.stop], round(static * TOKENS) - Definition.sinks - Definition.window)
        rows = sorted({*rows[: inner.start], *rows[inner.stop :], *(inner.start + i for i in best)})
    by_hand = Definition(k, v, rows)

    async def program(s: Any, *values: Any) -> Any:
        return await case.run(parse(f"mpcache:preset=clusters,static={static},sharing=1,{by_hand.text}"), s, *values)

    *outputs, left_k, left_v = (array(x) for x in run_plain(program, case.inputs))
    sizes = set()
    narrowed = 0
    for step in range(STEPS):
        rows.append(TOKENS + step)
        candidates, always = by_hand.clusters()
        sizes.add((len(candidates), len(always)))
        for group in range(2):
            clusters = by_hand.chosen(group, q[step, group], TOKENS + step + 1)
            assert 0 < len(clusters) < len(candidates)
            near = [by_hand.similarity(group, q[step, group], places) for places in candidates]
            narrowed += sorted(clusters) != sorted(largest(near, len(clusters)))
            np.testing.assert_allclose(outputs[step][group], by_hand.output(group, q[step, group], clusters))
    assert narrowed > 0  # else the coarse level would decide nothing in this test
    assert len({n for n, _ in sizes}) > 1  # a cluster filled up on the way
    for left, all_rows in ((left_k, k), (left_v, v)):
        assert np.array_equal(left, all_rows[:, rows])


def test_a_layer_takes_the_clusters_of_the_layer_before_but_its_own_keys() -> None:
    """Layers 0 and 1 choose alone; 2 chooses for 3, 4 for 5; each layer has its own queries, keys and values."""
    layers = 6
    cases = [Case(tiny(heads=4, groups=2, layers=layers), TOKENS, 2, seed) for seed in range(layers)]
    hand = [Definition(array(c.k), array(c.v), list(range(TOKENS))) for c in cases]
    policy = parse(f"mpcache:preset=clusters,static=1,sharing=2,apart=2,{hand[0].text}")

    async def program(s: Any, *values: Any) -> Any:
        cache = KVCache(cases[0].architecture, policy)
        given = [values[3 * n : 3 * n + 3] for n in range(layers)]
        for layer, (k, v, _) in enumerate(given):
            await cache.append(s, layer, k[:, :TOKENS], v[:, :TOKENS])
            await policy.after_prefill(s, cache, layer, Seen())
        cache.seen = TOKENS
        out = []
        for step in range(2):
            at = slice(TOKENS + step, TOKENS + step + 1)
            for layer, (k, v, q) in enumerate(given):
                await cache.append(s, layer, k[:, at], v[:, at])
                await policy.after_append(s, cache, layer)
                out.append(await policy.attend(s, cache, layer, q[step]))
            await cache.settle()
            cache.seen += 1
        return out

    found = [array(x) for x in run_plain(program, [x for c in cases for x in (c.k, c.v, c.q)])]
    differ = 0
    for step in range(2):
        for layer in range(layers):
            chooser = layer if layer in (0, 1, 2, 4) else layer - 1
            for one in hand[layer : layer + 1]:
                one.rows.append(TOKENS + step)
            if chooser != layer:
                assert len(hand[chooser].rows) == len(hand[layer].rows)
            for group in range(2):
                clusters = hand[chooser].chosen(group, array(cases[chooser].q)[step, group], TOKENS + step + 1)
                own = hand[layer].chosen(group, array(cases[layer].q)[step, group], TOKENS + step + 1)
                differ += sorted(own) != sorted(clusters)
                expected = hand[layer].output(group, array(cases[layer].q)[step, group], clusters)
                np.testing.assert_allclose(found[step * layers + layer][group], expected)
    assert differ > 0


@pytest.mark.parametrize(
    "policy", [MPCache(static=0.6, observed=0.2, following=0, sinks=1, window=2, dynamic=1, sharing=1), SnapKV(0.6, 3)]
)
@pytest.mark.parametrize("chunk", [0, 4])
def test_what_tokens_receive_is_the_last_queries_attention(policy: Any, chunk: int, tmp_path: Path) -> None:
    """Against the attention of the package transformers: the last 20 % of queries (or the window), all heads of a group."""
    model, checkpoint, ids = saved("llama-grouped", tmp_path)
    ids = (ids * 3)[:23]
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        attentions = model.double()(torch.tensor([ids]), output_attentions=True).attentions
    seen: dict[int, Array] = {}

    class Watched(type(policy)):  # type: ignore[misc]
        def prompt_stages(self, suite: Any, cache: KVCache, layer: int, told: Any) -> list[Stage]:
            seen[layer] = array(tensor_of(told.mass))
            return []

    watched = Watched(**vars(policy))
    plain = PlainModel(checkpoint, torch.float64, policy=watched)
    decoder, vocabulary = plain.decoder(lambda name, value: None), plain.architecture.vocabulary
    cache = decoder.new_cache()
    cache.prompt_tokens = len(ids)
    for part in [ids[i : i + chunk] for i in range(0, len(ids), chunk)] if chunk else [ids]:
        indices = plain.suite.indices(len(part), token_indices(part, vocabulary), vocabulary)
        plain.suite.run(decoder.forward(indices, cache, last_only=True))
    observed = 3 if isinstance(policy, SnapKV) else round(0.2 * len(ids))
    groups, group = plain.architecture.kv_heads, plain.architecture.group
    assert len(seen) == plain.architecture.layers
    for layer, mass in seen.items():
        weights = array(attentions[layer][0])  # [H, T, T]
        for g in range(groups):
            heads = weights[g * group : (g + 1) * group, len(ids) - observed :]
            np.testing.assert_allclose(mass[g], heads.sum((0, 1)), atol=1e-6)


@pytest.mark.parametrize(
    ("text", "groups_of_layers"),
    [
        ("{}", [[0], [1, 2], [3, 4]]),
        ("full@4;{}", [[0], [1, 2], [3]]),  # the last of a group is another policy's
        ("full@1;{}", [[0], [2], [3, 4]]),  # the first is
    ],
)
def test_layers_that_share_a_choice_keep_the_same_tokens(text: str, groups_of_layers: list[list[int]]) -> None:
    """Behind `apart` layers, all layers of a group keep what mass most in them together; others decide alone."""
    groups, channels, tokens = 2, 4, 40
    rng = torch.Generator().manual_seed(3)
    policy = parse(text.format("mpcache:preset=clusters,static=0.5,dynamic=1,sinks=2,window=3,sharing=2,apart=1"))
    cache = KVCache(tiny(heads=4, groups=groups, layers=5), policy)
    mass = [torch.rand(groups, tokens, generator=rng) for _ in range(5)]

    async def program(s: Any, *values: Any) -> Any:
        for layer in range(5):
            rows = torch.arange(tokens, dtype=torch.float32).reshape(1, tokens, 1).expand(groups, tokens, channels)
            number = s.input(tuple(rows.shape), rows.clone(), s.fraction_bits)
            await cache.append(s, layer, number, number)
            await policy.after_prefill(s, cache, layer, Seen(values[layer], queries=8, heads=2))
        return [cache.layers[layer].keys_and_values()[0][:, :, :1] for layer in range(5)]

    kept = [array(x)[0, :, 0].astype(int).tolist() for x in run_plain(program, mass)]
    for members in groups_of_layers:
        importance = sum(array(mass[n]).sum(0) for n in members)[2:-3]
        wanted = sorted(n + 2 for n in largest(importance, 15))
        for layer in members:
            assert kept[layer] == [0, 1, *wanted, 37, 38, 39]
    evicted = {n for members in groups_of_layers for n in members}
    assert all(kept[n] == list(range(tokens)) for n in set(range(5)) - evicted)
    assert kept[groups_of_layers[0][0]] != kept[groups_of_layers[-1][0]]
