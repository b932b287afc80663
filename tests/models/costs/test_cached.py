"""What a session's cache takes in memory: predicted from the very values that a party holds, whatever holds them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from models.cache import KVCache
from models.costs.cached import cache_bytes, held_bytes
from models.costs.estimation import Estimate, estimate
from models.costs.tracing import Setting
from models.policies import parse
from models.shapes import SHAPES, with_layers
from protocols.masked.values import MaskedTensor
from protocols.suite import Suite, Value
from tests.models.policies.policy_cases import Case, tiny
from tests.protocols.suite_harness import run_secure

PROMPT, NEW = 1020, 2
ROW = 2 * 768 * 16  # bytes of a token's keys and values in a layer of GPT-2


def of(policy: str, suite: str = "masked", layers: int = 1) -> Estimate:
    return estimate(with_layers(SHAPES["gpt2"], layers), Setting(suite, policy=policy), PROMPT, NEW)


def test_the_full_cache() -> None:
    """By its formula, and traced as a policy that keeps everything."""
    whole = (PROMPT + NEW - 1) * ROW
    for policy in ("full", "snapkv:budget=1"):
        found = of(policy)
        assert (found.cached.most, found.cached.last) == (whole, whole)
    assert cache_bytes(found.architecture, PROMPT, NEW) == whole


@pytest.mark.parametrize(
    ("policy", "share"),
    [("mikv", 0.551), ("mikv:budget=0.2", 0.60), ("cskv|full", 0.226), ("think|full", 0.823), ("h2o:budget=0.1", 0.1)],
)
def test_what_policies_and_codecs_leave(policy: str, share: float) -> None:
    """MiKV at most 60 % of the full cache, CSKV at most 25 %; while the prompt's layer is still worked on, all of it."""
    whole, found = (PROMPT + NEW - 1) * ROW, of(policy)
    assert abs(found.cached.last / whole - share) < 2e-3
    assert found.cached.last < PROMPT * ROW <= found.cached.most
    assert found.memory_bytes > found.cached.most


def test_a_second_layer_is_not_there_before_the_first_was_worked_on() -> None:
    """The prompt's layers are not all whole at once, but in chunks, which all see them."""
    whole = (PROMPT + NEW - 1) * ROW
    one = of("cskv|full", layers=3).cached.most
    assert one < 1.8 * whole < 1.9 * whole < of("chunked:tokens=512|cskv|full", layers=3).cached.most


def test_one_ring_saves_nothing_of_few_bits() -> None:
    assert of("mikv", "crypten").cached.last == (PROMPT + NEW - 1) * ROW


def tensors_of(x: Value) -> list[torch.Tensor]:
    """What stands for a value of the suite `masked` at a role."""
    assert isinstance(x, MaskedTensor)
    if x.packed is not None:
        return [*x.packed._m.planes, *x.packed._lam.planes]
    assert x.masked is not None
    return [x.masked.m, x.masked.lam]


@pytest.mark.parametrize("text", ["mikv:budget=0.4", "full", "snapkv:budget=0.5,window=4"])
def test_it_is_what_tensors_take(text: str) -> None:
    """Of a layer on shares, at parties."""
    case, policy = Case(tiny(heads=4, groups=2), 20, 0, 1), parse(text)
    taken: list[tuple[int, int]] = []

    async def program(s: Suite, k: Value, v: Value, q: Value, mass: Value) -> Any:
        cache = KVCache(case.architecture, policy)
        await cache.append(s, 0, k, v)
        await policy.after_prefill(s, cache, 0, case.told(policy, s, mass))
        values = [x for segment in cache.layers[0].segments for x in segment.rows]
        tensors = [t for x in values for t in tensors_of(x)]
        if not any(t.is_meta for t in tensors):
            taken.append((held_bytes(cache), sum(t.numel() * t.element_size() for t in tensors)))
        return [k]

    run_secure("masked", 2, program, case.inputs)
    assert len(taken) >= 2
    assert all(said == there for said, there in taken)
