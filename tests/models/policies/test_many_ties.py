"""Learned scores and channels in plaintext against their definitions in numpy, most cases with ties: a few of each, or

    python -m tests.models.policies.test_many_ties

for 1 000 of each, a minute of one core.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.architecture import Architecture
from models.cache import Batch, CachePolicy, KVCache
from models.observation import Seen
from models.policies import parse
from models.policies.axes.gate import READ, WRITE
from models.policies.axes.retaining import FIRST, SECOND
from protocols.plain.suite import PlainSuite, tensor_of
from tests.models.policies import test_attention_gate as gated
from tests.models.policies import test_locret as retained
from tests.models.policies import test_think as thinned
from tests.models.policies.oracles import order
from tests.models.policies.policy_cases import grid, tiny

FEW, MANY = 60, 1000
ROWS = 40
ARCHITECTURE = tiny(heads=4, groups=2).model_copy(update={"activation": "relu"})


def left(policy: CachePolicy, weights: dict[str, Tensor], features: Tensor) -> np.ndarray[Any, Any]:
    """The numbers [G, n] of the tokens that are left of a prompt in the policy's batches, of these features [T, F]."""
    suite = PlainSuite(torch.float64)
    tokens = len(features)
    numbers = torch.arange(tokens, dtype=torch.float64).reshape(1, tokens, 1).expand(2, tokens, 4).contiguous()

    async def program() -> Any:
        given = {f"policy.layers.0.{name}.weight": suite.input(x.shape, x, 0) for name, x in weights.items()}
        k, x = suite.input(numbers.shape, numbers, 0), suite.input(features.shape, features, 0)
        cache = KVCache(ARCHITECTURE, policy, given)
        cache.prompt_tokens = tokens
        for start, stop in pairwise(accumulate(policy.prompt_batches(tokens), initial=0)):
            await cache.append(suite, 0, k[:, start:stop], k[:, start:stop])
            batch = Batch(tokens, start, stop - start)
            await policy.after_batch(suite, cache, 0, batch, Seen(features=x[start:stop], last=batch.last))
            await cache.settle()
            cache.seen = stop
        return cache.layers[0].keys_and_values()[0]

    return np.asarray(tensor_of(suite.run(program()))[..., 0].to(torch.int64))


def features(seed: int, generator: torch.Generator) -> Tensor:
    """Few different rows, again and again: tokens of equal scores; of each seventh case all alike."""
    kinds = grid(1 if seed % 7 == 0 else 3 + seed % 12, 32, span=2, step=0.25, generator=generator)
    return kinds[torch.randint(0, len(kinds), (ROWS,), generator=generator)]


def retaining_heads(cases: int) -> None:
    policy = parse(retained.TEXT)
    ends = list(accumulate(policy.prompt_batches(ROWS), initial=0))
    for seed in range(cases):
        g = torch.Generator().manual_seed(seed)
        x = features(seed, g)
        first = grid(32, retained.WIDTH, span=2, step=0.125, generator=g)
        second = grid(retained.WIDTH, 2, span=2, step=0.125, generator=g)
        found = left(policy, {FIRST: first, SECOND: second}, x)
        assert found.tolist() == retained.by_hand(x.numpy(), first.numpy(), second.numpy(), ends), seed


def gates(cases: int) -> None:
    """Gates that floats do not tell apart are ties, or left out: sums in another order differ in their last bits."""
    policy, done = parse(gated.TEXT), 0
    for seed in range(2 * cases):
        g = torch.Generator().manual_seed(seed)
        x = features(seed, g)
        read, write = (grid(*shape, span=2, step=0.125, generator=g) for shape in ((32, 18), (6, 2)))
        said = gated.gate(x.numpy(), read.numpy(), write.numpy())[:, 1:-1]
        ranked = -np.sort(-said, 1)
        if (ranked[:, 17] - ranked[:, 18]).min() < 1e-9 and seed % 7:
            continue
        found = left(policy, {READ: read, WRITE: write}, x)
        if seed % 7:
            chosen = 1 + order(said, 18)
            assert np.array_equal(found, np.c_[[0, 0], chosen, [ROWS - 1] * 2]), seed
        else:  # all alike: whatever rounding says of them, so many stay in their order
            assert found.shape == (2, 20)
            assert (np.diff(found, axis=1) > 0).all()
        done += 1
        if done == cases:
            break
    assert done == cases


def channels(cases: int) -> None:
    suite, policy = PlainSuite(torch.float64), parse(f"think:keep=0.6,window={thinned.WINDOW}|full")
    for seed in range(cases):
        case = thinned.Inputs(seed)
        k, q = case.k[:, : thinned.TOKENS], case.last
        if seed % 5 == 0:
            k, q = k.sign(), q.sign()  # channels of one, two or three scores

        async def program(k: Tensor = k, q: Tensor = q, a: Architecture = case.architecture) -> Any:
            cache = KVCache(a, policy)
            keys = suite.input(k.shape, k, 0)
            await cache.append(suite, 0, keys, keys)
            cache.layers[0].queries = suite.input(q.shape, q, 0)
            await policy.after_prefill(suite, cache, 0, Seen())
            return cache.layers[0].segments[0].k

        held = tensor_of(suite.run(program())).numpy()
        kept = thinned.think(q.reshape(2, 2, thinned.WINDOW, 8).numpy(), k.numpy(), 5)
        stop = thinned.TOKENS - thinned.WINDOW
        for g in range(2):
            wanted = k[g, :stop].numpy()[:, kept[g]]
            assert np.array_equal(np.sort(held[g].T, 0), np.sort(wanted.T, 0)), seed


@pytest.mark.parametrize("kind", [retaining_heads, gates, channels])
def test_what_stays_is_what_the_definition_says(kind: Callable[[int], None]) -> None:
    kind(FEW)


if __name__ == "__main__":
    for kind in (retaining_heads, gates, channels):
        kind(MANY)
