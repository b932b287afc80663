"""Cached rows in several parts: attention over all of them, rounding, partition, energies; every suite against numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mpc.errors import RangeError
from protocols.observed import Observed
from protocols.suite import Part
from tests.protocols.suite_harness import SECURE, run_plain, run_secure

ALL = [("plain", 1), *SECURE]


def grid(*shape: int, span: int = 8, step: float = 0.25, seed: int = 0) -> Tensor:
    """Multiples of `step` from few values: many exact ties."""
    g = torch.Generator().manual_seed(seed)
    return torch.randint(-span, span + 1, shape, generator=g).double() * step


def evaluated(suite: str, parties: int, program: Any, inputs: list[Tensor]) -> list[Tensor]:
    return run_plain(program, inputs) if suite == "plain" else run_secure(suite, parties, program, inputs)


@pytest.mark.parametrize(("suite", "parties"), ALL)
@pytest.mark.parametrize("rows", [1, 3])
def test_one_softmax_over_parts_of_other_shapes(suite: str, parties: int, rows: int) -> None:
    """Fewer channels, then one matrix for all heads with sums of its own, then the usual one; a mask, and mass."""
    heads, channels = 2, 4
    q, few, low = grid(heads, rows, channels, seed=1), grid(heads, rows, 2, seed=2), grid(1, heads * rows, 3, seed=3)
    k1, v1 = grid(heads, 5, 2, seed=4), grid(heads, 5, channels, seed=5)
    k2, v2 = grid(1, 6, 3, seed=6), grid(1, 6, 7, seed=7)
    k3, v3 = grid(heads, 4, channels, seed=8), grid(heads, 4, channels, seed=9)
    mask = torch.ones(rows, 15, dtype=torch.bool).tril(15 - rows)
    observed = torch.arange(rows) >= rows - 1

    async def program(s: Any, *x: Any) -> Any:
        parts = [Part(x[1], x[3], x[4]), Part(x[2], x[5], x[6], total=1), Part(x[0], x[7], x[8])]
        sums, mass = await s.attention_over(parts, mask, Observed.of_rows(observed, heads))
        return [*sums, mass]

    found = evaluated(suite, parties, program, [q, few, low, k1, v1, k2, v2, k3, v3])
    near = [few @ k1.transpose(1, 2), (low @ k2.transpose(1, 2)).reshape(heads, rows, 6), q @ k3.transpose(1, 2)]
    scores = torch.cat(near, -1).masked_fill(~mask, float("-inf")).numpy()
    e = np.exp(scores - scores.max(-1, keepdims=True))
    p = torch.from_numpy(e / e.sum(-1, keepdims=True))
    expected = [p[..., :5] @ v1 + p[..., 11:] @ v3, p[..., 5:11] @ v2[0], p[:, observed].sum(1)]
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max() < (1e-9 if suite == "plain" else 2e-3)


@pytest.mark.parametrize(("suite", "parties"), ALL)
@pytest.mark.parametrize("shared", [False, True])
def test_rows_with_few_fraction_bits_beside_exact_ones(suite: str, parties: int, shared: bool) -> None:
    """What lies on the grid of two fraction bits is held exactly; parts grow by more such rows."""
    heads, channels = 2, 4
    q, k, v = grid(heads, 1, channels, seed=1), grid(heads, 9, channels, seed=2), grid(heads, 9, channels, seed=3)
    ke, ve = grid(heads, 4, channels, step=0.125, seed=4), grid(heads, 4, channels, step=0.125, seed=5)

    async def program(s: Any, q: Any, k: Any, v: Any, ke: Any, ve: Any) -> Any:
        if not shared:
            k, v = await s.mask_for_cache(k), await s.mask_for_cache(v)
        low = []
        for x, factor in ((k, "keys"), (v, "values")):
            first, more = await s.hold(x[:, :6], 2, factor), await s.hold(x[:, 6:], 2, factor)
            low.append(s.concat([first, more], 1))
        assert tuple(low[0].shape) == (heads, 9, channels)
        q = await s.mask_queries(q)
        observed = Observed.of_rows(torch.ones(1, dtype=torch.bool), heads)
        (out,), mass = await s.attention_over([Part(q, *low), Part(q, ke, ve)], None, observed)
        (alone,), _ = await s.attention_over([Part(q, *low)])
        return [out, mass, alone]

    found = evaluated(suite, parties, program, [q, k, v, ke, ve])
    keys, values = torch.cat([k, ke], 1), torch.cat([v, ve], 1)
    p = torch.softmax(q @ keys.transpose(1, 2), -1)
    low = torch.softmax(q @ k.transpose(1, 2), -1) @ v
    for one, other in zip(found, (p @ values, p[:, 0], low), strict=True):
        assert (one - other).abs().max() < (1e-9 if suite == "plain" else 2e-3)


@pytest.mark.parametrize(("suite", "parties"), SECURE)
@pytest.mark.parametrize("masked", [False, True])
def test_rounding_is_to_a_neighbour_and_right_on_average(suite: str, parties: int, masked: bool) -> None:
    x = torch.full((1, 64, 64), 0.3125, dtype=torch.float64)
    x[0, :, 0], x[0, :, 1] = 1.25, -1.25

    async def program(s: Any, x: Any) -> Any:
        return await s.recast(await s.mask_for_cache(x) if masked else x, 2)

    (found,) = run_secure(suite, parties, program, [x])
    assert torch.equal(found[0, :, :2], x[0, :, :2])
    assert set(found[0, :, 2:].unique().tolist()) == {0.25, 0.5}
    assert abs(float(found[0, :, 2:].mean()) - 0.3125) < 0.01  # of 3 968 values, deviation 0.0017
    (plain,) = run_plain(program, [x])
    assert set(plain[0, :, 2:].unique().tolist()) == {0.25}


@pytest.mark.parametrize(("suite", "parties"), ALL)
@pytest.mark.parametrize(("count", "k"), [(7, 3), (2, 1), (30, 29)])
def test_partition_keeps_both_orders(suite: str, parties: int, count: int, k: int) -> None:
    marks, a, b = grid(2, count, span=3), grid(2, count, 3, seed=1), grid(2, count, 1, seed=2)

    async def program(s: Any, m: Any, a: Any, b: Any) -> Any:
        keep = await s.keep_largest(m, k, 2.0)
        return await s.partition(keep, [a, await s.mask_for_cache(b)], k)

    found = evaluated(suite, parties, program, [marks, a, b])
    for out, rows in zip(found, (a, b), strict=True):
        for i in range(2):
            kept = np.sort(np.argsort(-marks[i].numpy(), kind="stable")[:k])
            order = np.concatenate([kept, np.setdiff1d(np.arange(count), kept)])
            assert (out[i] - rows[i][torch.from_numpy(order)]).abs().max() < 2.0**-12


@pytest.mark.parametrize(("suite", "parties"), ALL)
@pytest.mark.parametrize(("queries", "keys"), [(4, 16), (3, 11)])
def test_channels_by_energy(suite: str, parties: int, queries: int, keys: int) -> None:
    q, k = grid(2, queries, 6, span=4, step=0.5), grid(2, keys, 6, span=4, step=0.5, seed=1)

    async def program(s: Any, q: Any, k: Any) -> Any:
        q, k = await s.mask_queries(q), await s.mask_for_cache(k)
        energies, bound = await s.channel_energies(q, k)
        chosen = await s.mask_for_reuse(await s.top_k(energies, 3, bound))
        return [energies, chosen, await s.choose_channels(q, chosen), await s.choose(chosen, k.transpose(1, 2))]

    energies, chosen, qs, ks = evaluated(suite, parties, program, [q, k])
    wanted = (q**2).sum(1) / (1 << (queries - 1).bit_length()) * (k**2).sum(1) / (1 << (keys - 1).bit_length())
    assert (energies - wanted).abs().max() < 1e-2
    best = np.argsort(-wanted.numpy(), axis=-1, kind="stable")[:, :3]
    if queries == 4 or suite == "plain":  # multiples of 2^-10, exact
        assert np.array_equal(chosen.argmax(-1).numpy(), best)
        index = torch.from_numpy(best)[:, None]
        assert torch.allclose(qs, q.gather(2, index.expand(2, queries, 3)))
        assert torch.allclose(ks, k.gather(2, index.expand(2, keys, 3)).transpose(1, 2))


def test_rows_that_are_held_with_few_bits_join_their_like_alone() -> None:
    async def program(s: Any, x: Any) -> Any:
        return s.concat([await s.hold(x, 2, "keys"), x], 1)

    with pytest.raises(RangeError, match="joined with such rows alone"):
        run_secure("masked", 2, program, [grid(1, 2, 2)])
