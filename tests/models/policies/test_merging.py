"""Systems that merge: the plain suite against definitions in numpy, the other suites against the plain one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.cache import CachePolicy, KVCache
from models.observation import Seen
from models.policies import parse
from mpc.errors import ConfigurationError
from tests.models.policies import oracles
from tests.models.policies.policy_cases import Case, grid, tiny
from tests.protocols.suite_harness import run_plain, run_secure

CASES = 1000
ROUNDING = 2.0**-12
SECURE = [("masked", 2), ("masked", 3), ("crypten", 2)]


def program(policy: CachePolicy, groups: int, channels: int, heads: int = 1) -> Any:
    """What a layer holds after a prompt of keys, values, and what its tokens receive."""
    architecture = tiny(heads=groups * heads, groups=groups, channels=channels)

    async def run(s: Any, k: Any, v: Any, mass: Any) -> Any:
        cache = KVCache(architecture, policy)
        await cache.append(s, 0, k, v)
        await policy.after_prefill(s, cache, 0, Seen(mass, k.shape[1]))
        await cache.settle()
        return list(cache.layers[0].keys_and_values())

    return run


def inputs(seed: int, tokens: int, groups: int, channels: int, kind: int = 0) -> list[Tensor]:
    """Keys, values, and what tokens receive: many equal, or all, or one takes all."""
    g = torch.Generator().manual_seed(seed)
    k, v = (grid(groups, tokens, channels, span=6, step=0.25, generator=g) for _ in range(2))
    mass = torch.randint(0, 6, (groups, tokens), generator=g).double() * 0.125
    if kind == 1:
        mass[:] = 0.25
    if kind == 2:
        mass = torch.zeros_like(mass).scatter(1, torch.randint(0, tokens, (groups, 1), generator=g), 1.0)
    return [k, v, mass]


def sizes(seed: int) -> tuple[int, int, int]:
    """Tokens, groups, channels."""
    return 8 + seed % 23, 1 + seed % 3, (2, 4, 6)[seed % 3]


def test_elastic_averages_into_the_nearest_anchor() -> None:
    for seed in range(CASES):
        tokens, groups, channels = sizes(seed)
        stays = 6 + seed % (tokens - 6)
        policy = parse(f"elastic:budget={stays / tokens}")
        policy.check(tiny(groups, groups, channels), tokens)
        k, v, mass = inputs(seed, tokens, groups, channels, seed % 5)
        found = run_plain(program(policy, groups, channels), [k, v, mass])
        expected = oracles.elastic(k.numpy(), v.numpy(), mass.sum(0).numpy(), stays)
        for value, wanted in zip(found, expected, strict=True):
            assert value.shape == wanted.shape
            assert np.abs(value.numpy() - wanted).max() < 1e-6


def test_values_that_join_the_nearest_leave_keys_as_they_are() -> None:
    """`merge` around sets of heads and of a layer: keys are those that stay, values are averages."""
    for seed in range(CASES // 2):
        tokens, groups, channels = sizes(seed)
        stays = 4 + seed % (tokens - 4)
        inner = ("h2o", "tova")[seed % 2]
        k, v, mass = inputs(seed, tokens, groups, channels, seed % 5)
        found = run_plain(
            program(parse(f"merge:how=nearest|{inner}:budget={stays / tokens}"), groups, channels), [k, v, mass]
        )
        recent = round(stays / 2) if inner == "h2o" else 0
        scores = mass.numpy() if inner == "h2o" else np.repeat(mass.sum(0, keepdim=True).numpy(), groups, 0)
        for g in range(groups):
            places = oracles.order(scores[g, : tokens - recent], stays - recent)
            every = np.r_[places, tokens - recent : tokens]
            values = np.r_[
                oracles.nearest(v[g].numpy(), places, 0, tokens - recent),
                v[g, tokens - recent :].numpy(),
            ]
            assert np.array_equal(found[0][g].numpy(), k[g].numpy()[every])
            assert np.abs(found[1][g].numpy() - values).max() < 1e-6


def halves(seed: int, tokens: int, groups: int, channels: int) -> list[Tensor]:
    """Inputs of keys whose lengths are powers of two: similarities are exact, and many are equal."""
    g = torch.Generator().manual_seed(seed)
    k, v, mass = inputs(seed, tokens, groups, channels, seed % 5)
    signs = torch.randint(0, 2, k.shape, generator=g).double() * 2 - 1
    return [signs * 2.0 ** torch.randint(-1, 2, (groups, tokens, 1), generator=g).double(), v, mass]


def test_d2o_merges_into_the_most_similar() -> None:
    for seed in range(CASES):
        tokens, groups, channels = sizes(seed)[0], sizes(seed)[1], 4
        stays, rows = 6 + seed % (tokens - 6), ("both", "values")[seed % 2]
        policy = parse(f"d2o:budget={stays / tokens},sinks=2,rows={rows}")
        k, v, mass = halves(seed, tokens, groups, channels)
        found = run_plain(program(policy, groups, channels), [k, v, mass])
        recent = round(stays / 2)
        scores = mass.numpy()[:, 2 : tokens - recent]
        kept = 2 + oracles.order(scores, stays - recent - 2)
        gone = np.stack([np.setdiff1d(np.arange(2, tokens - recent), one) for one in kept])
        merged = oracles.similar(k.numpy(), v.numpy(), kept, gone)
        for n, (value, before) in enumerate(zip(found, (k.numpy(), v.numpy()), strict=True)):
            middle = merged[n] if rows == "both" or n else oracles.take(k.numpy(), kept)
            wanted = np.concatenate([before[:, :2], middle, before[:, tokens - recent :]], 1)
            assert np.abs(value.numpy() - wanted).max() < 1e-6


WEIGHTS: list[tuple[str, Callable[..., oracles.Array]]] = [
    ("received", oracles.received),
    ("gaussian", oracles.gaussian),
]


def merged_runs(
    seed: int, text: str, weigh: Callable[..., oracles.Array], ties: bool = True
) -> tuple[CachePolicy, list[Tensor], list[Tensor]]:
    """A policy, keys, values and what tokens receive, and the keys and values that are left, by the oracle. ties: of
    cosines, too, which are not equal on shares, where rows of length 1 are rounded."""
    tokens, groups, channels = sizes(seed)[0], sizes(seed)[1], 4
    stays, longest = tokens // 3 + 1 + seed % (tokens // 2), (0, 8, 3)[seed % 3]
    policy = parse(f"kvmerger:budget={stays / tokens},recent=0.3,longest={longest},weights={text}")
    given = halves(seed, tokens, groups, channels)
    if not ties:
        drawn = torch.Generator().manual_seed(seed)
        given[0] = (torch.randn(given[0].shape, generator=drawn, dtype=torch.float64) * 128).round() / 64
    k, v, mass = (x.numpy() for x in given)
    recent = max(1, round(0.3 * stays))
    stop, expected = tokens - recent, []
    for g in range(groups):
        of = k[g, :stop], v[g, :stop], mass[g, :stop]
        both = oracles.runs(*of, stays - recent, longest, weigh)
        expected.append([np.r_[found, before[g, stop:]] for found, before in zip(both, (k, v), strict=True)])
    return policy, given, [torch.from_numpy(np.stack(x)) for x in zip(*expected, strict=True)]


@pytest.mark.parametrize(("text", "weigh"), WEIGHTS)
def test_kvmerger_merges_runs_of_similar_neighbours(text: str, weigh: Callable[..., oracles.Array]) -> None:
    for seed in range(CASES // 3):
        policy, given, expected = merged_runs(seed, text, weigh)
        found = run_plain(program(policy, given[0].shape[0], 4), given)
        for value, wanted in zip(found, expected, strict=True):
            assert (value - wanted).abs().max() < 1e-6


@pytest.mark.parametrize(("suite", "parties"), [*SECURE, ("crypten", 3)])
@pytest.mark.parametrize(("text", "weigh"), WEIGHTS)
def test_kvmerger_on_shares(text: str, weigh: Callable[..., oracles.Array], suite: str, parties: int) -> None:
    """Pivots are those of the oracle, ties included."""
    policy, given, expected = merged_runs(4, text, weigh, ties=False)
    found = run_secure(suite, parties, program(policy, given[0].shape[0], 4), given)
    for value, wanted in zip(found, expected, strict=True):
        assert (value - wanted).abs().max() < ROUNDING * 8


TEXTS = {
    "elastic": ["elastic:budget=0.4", "elastic:budget=0.6,sinks=0"],
    "d2o": ["d2o:budget=0.4,every=3,candidates=5", "lag:every=2|merge:rows=values|tova:budget=0.4"],
    "ems": ["ems:budget=0.4,window=4,every=3", "ems:budget=0.4,window=6,every=2,rows=values,candidates=5"],
    "nearest": ["merge:how=nearest|snapkv:budget=0.3,window=6", "lag:every=3|merge:how=nearest,rows=both|h2o:budget=0.3"],
}


@pytest.mark.covering(1)
@pytest.mark.parametrize(("suite", "parties"), SECURE)
@pytest.mark.parametrize("text", [text for texts in TEXTS.values() for text in texts])
def test_shares_merge_as_plaintext_does(text: str, suite: str, parties: int) -> None:
    """Grouped queries, a prompt of 40 tokens and five more; a seed without cosines or means that rounding makes equal."""
    case, policy = Case(tiny(heads=4, groups=2), tokens=40, steps=5, seed=2), parse(text)
    policy.check(case.architecture, case.tokens)

    async def run(s: Any, *values: Any) -> Any:
        return await case.run(policy, s, *values)

    plain, found = run_plain(run, case.inputs), run_secure(suite, parties, run, case.inputs)
    for expected, value in zip(plain, found, strict=True):
        assert value.shape == expected.shape
        assert (value - expected).abs().max() < 4e-3
    for expected, value in zip(plain[-2:], found[-2:], strict=True):
        assert (value - expected).abs().max() < ROUNDING * 4


def test_a_decoded_token_takes_the_place_of_one_that_far_from_the_end() -> None:
    case, policy = Case(tiny(), tokens=20, steps=6, seed=3), parse("elastic:budget=0.6,distance=5")

    async def run(s: Any, k: Any, v: Any, q: Any, mass: Any) -> Any:
        cache = KVCache(case.architecture, policy)
        await cache.append(s, 0, k[:, :20], v[:, :20])
        await policy.after_prefill(s, cache, 0, Seen(mass, 20))
        left = cache.layers[0].k
        for step in range(case.steps):
            await cache.append(s, 0, k[:, 20 + step : 21 + step], v[:, 20 + step : 21 + step])
            await policy.attend(s, cache, 0, q[step])
        return [left, cache.layers[0].k]

    before, after = run_plain(run, case.inputs)
    expected = torch.cat([before, case.k[:, 20:]], 1)
    for _ in range(case.steps):
        expected = torch.cat([expected[:, :7], expected[:, 8:]], 1)  # 12 tokens stay
    assert torch.equal(after, expected)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("merge:how=nearest|elastic", "merge: 'elastic' merges already"),
        ("merge:how=nearest|mpcache", "merge: 'mpcache' reads some of what stays"),
        ("merge:how=far|h2o", "how = 'far' must be one of nearest, similar"),
        ("merge:rows=keys|h2o", "rows = 'keys' must be one of values, both"),
        ("merge:how=nearest|merge:how=nearest|h2o", "is changed so already"),
        ("elastic:distance=0", "distance = 0 must be a whole number, 1 or more"),
        ("elastic:budget=1.5", "budget = 1.5 must be a share"),
    ],
)
def test_what_does_not_go_together_is_refused(text: str, named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        parse(text)


def test_a_budget_without_an_anchor_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"keeps 5 of 50 tokens.*sinks = 4, an anchor and the last token"):
        parse("elastic:budget=0.1").check(tiny(), 50)
