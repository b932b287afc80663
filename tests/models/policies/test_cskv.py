"""CSKV: rows of low rank against float torch, every suite, learned and rotary positions; what it is refused with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models.architecture import Architecture
from models.cache import KVCache
from models.checkpoint import load_checkpoint
from models.generation import GenerationPlan, PlainModel, generate_plain
from models.learned import with_learned
from models.policies import parse
from models.policy_file import write
from models.rotary import cosines_and_sines
from mpc.errors import ConfigurationError
from protocols.suite import Suite, Value
from tests.models import random_checkpoints as checkpoints
from tests.models.policies.learned_weights import save_random
from tests.models.policies.policy_cases import Case, grid, tiny
from tests.protocols.suite_harness import run_plain, run_weighing

WINDOW, STEPS = 3, 2
PARTS = [f"low_rank.{rows}.{way}" for rows in ("keys", "values") for way in ("down", "up")]


def rotated(x: Tensor, a: Architecture, back: bool = False) -> Tensor:
    """Rows [G, S, C] of positions 0, 1, ... turned, or turned back; as they are where positions are learned."""
    if a.rotary is None:
        return x
    cos, sin = cosines_and_sines(a.rotary, x.shape[2], 0, x.shape[1])
    half = x.shape[2] // 2
    swapped = torch.cat([-x[..., half:], x[..., :half]], -1)
    return x * cos + swapped * (-sin if back else sin)


class LowRankCase(Case):
    """A case with learned weights [G C, r]: down and up of keys and values, multiples of an eighth."""

    def __init__(self, number: int, learned_positions: bool, rank: int = 3) -> None:
        group, tokens = (1, 2, 4)[number % 3], 2 + number % 11
        a = tiny(heads=2 * group, groups=2)
        a = a.model_copy(update={"rotary": None}) if learned_positions else a
        super().__init__(a, tokens, STEPS, number)
        g = torch.Generator().manual_seed(number + 1)
        self.weights = [grid(8, rank, span=4, step=0.125, generator=g) for _ in PARTS]

    async def program(self, text: str, s: Suite, *values: Value) -> Any:
        """All steps' attention."""
        k, v, q, mass, *weights = values
        policy, n = parse(text), self.tokens
        policy.check(with_learned(self.architecture, policy.weight_shapes(self.architecture)), n)
        named = {f"policy.layers.0.{part}.weight": w for part, w in zip(PARTS, weights, strict=True)}
        cache = KVCache(self.architecture, policy, named)
        await cache.append(s, 0, k[:, :n], v[:, :n])
        await policy.after_prefill(s, cache, 0, self.told(policy, s, mass))
        found = []
        for step in range(STEPS):
            await cache.append(s, 0, k[:, n + step : n + step + 1], v[:, n + step : n + step + 1])
            found.append(await policy.attend(s, cache, 0, await s.mask_queries(q[step])))
            await cache.settle()
            rows = sum(segment.length for segment in cache.layers[0].segments)
            assert rows == n + step + 1
            assert cache.layers[0].length == min(WINDOW, rows)
        return found

    def by_hand(self, low_keys: bool) -> list[Tensor]:
        """The same with rows made again from products of low rank, but the last ones: those of a step, and of the window
        before it."""
        a, (kd, ku, vd, vu) = self.architecture, self.weights

        def again(x: Tensor, down: Tensor, up: Tensor) -> Tensor:
            flat = x.permute(1, 0, 2).flatten(1)
            return (flat @ down @ up.T).reshape(len(flat), *x.shape[::2]).permute(1, 0, 2)

        low_k = rotated(again(rotated(self.k, a, back=True), kd, ku), a) if low_keys else self.k
        low_v, outputs = again(self.v, vd, vu), []
        for step in range(STEPS):
            rows = self.tokens + step + 1
            low = max(0, rows - 1 - WINDOW)
            k, v = (torch.cat([x[:, :low], y[:, low:rows]], 1) for x, y in ((low_k, self.k), (low_v, self.v)))
            outputs.append(torch.softmax(self.q[step] @ k.transpose(1, 2), -1) @ v)
        return outputs


WAYS = [(True, "whole", True), (False, "whole", False), (False, "low", True)]
"""Learned positions; rotary ones with values alone of low rank; with keys that are made anew."""


def text_of(turning: str) -> str:
    return f"cskv:rank={3 / 8},window={WINDOW},turning={turning}|full"


def test_rows_that_left_the_window_are_of_low_rank() -> None:
    """1 000 cases: R = 1, 2 and 4, prompts below and above the window, learned and rotary positions."""
    for number in range(1000):
        learned_positions, turning, low_keys = WAYS[number % 7 % 3]
        case = LowRankCase(number, learned_positions)

        async def program(s: Any, *x: Any, case: LowRankCase = case, text: str = text_of(turning)) -> Any:
            return await case.program(text, s, *x)

        found = run_plain(program, [*case.inputs, *case.weights])
        for one, other in zip(found, case.by_hand(low_keys), strict=True):
            assert (one - other).abs().max() < 1e-9, number


@pytest.mark.covering(2)
@pytest.mark.parametrize(("suite", "parties"), [("crypten", 2), ("crypten", 3), ("masked", 2), ("masked", 3)])
@pytest.mark.parametrize(("learned_positions", "turning", "low_keys"), WAYS)
def test_every_suite_holds_the_same(suite: str, parties: int, learned_positions: bool, turning: str, low_keys: bool) -> None:
    text = text_of(turning)
    for number in (2, 7):
        case = LowRankCase(number, learned_positions)

        async def program(s: Any, *x: Any, case: LowRankCase = case) -> Any:
            return await case.program(text, s, *x)

        found = run_weighing(suite, parties, program, case.inputs, case.weights)
        for one, other in zip(found, case.by_hand(low_keys), strict=True):
            assert (one - other).abs().max() < 6e-3, (number, text)


CHECKPOINTS = [("gpt2", "whole"), ("llama-grouped", "whole"), ("llama-grouped", "low")]


@pytest.mark.parametrize(("family", "turning"), CHECKPOINTS)
def test_full_rank_is_the_full_cache(family: str, turning: str, tmp_path: Path) -> None:
    """Of whole models, also where a prompt comes in chunks: all channels, held as they are, give the same tokens."""
    checkpoints.save(family, tmp_path)
    a = load_checkpoint(tmp_path).architecture
    text = f"cskv:rank={1 - 1e-9},window=2,turning={turning}|full"
    channels = a.kv_heads * a.head_channels
    assert set(parse(text).weight_shapes(a).values()) == {(channels, channels)}
    names = parse(text).weight_shapes(a)
    write(tmp_path, {name: torch.eye(channels) for name in names}, tmp_path)
    checkpoint, ids = load_checkpoint(tmp_path), list(range(3, 23))
    expected = generate_plain(checkpoint, ids, GenerationPlan(len(ids), 6), dtype=torch.float64)
    for one in (text, f"chunked:tokens=6|{text}", "cskv:rank=1|full"):
        plan = GenerationPlan(len(ids), 6, policy=one)
        assert PlainModel(checkpoint, torch.float64, policy=parse(one)).generate(ids, plan) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cskv|h2o", "policy cskv: 'h2o' reads or moves whole keys"),
        ("cskv|mikv", "policy cskv: 'mikv' holds rows in another way already"),
        ("cskv|think|full", "policy cskv: 'think:keep=0.6.full' reads or moves whole keys"),
        ("batches:tokens=64|cskv|compresskv", "policy batches: 'cskv:rank=0.2.compresskv' holds rows"),
        ("cskv|snapkv", "policy cskv: 'snapkv' keeps other tokens for each head"),
        ("cskv:turning=low|compresskv", "policy cskv: turning=low needs keys at public positions, which 'compresskv'"),
        ("cskv:turning=no|full", "policy cskv: turning = 'no' must be one of whole, low"),
        ("cskv:rank=0|full", "policy cskv: rank = 0.0 must be a share above 0"),
        ("cskv:window=0|full", "policy cskv: window = 0 must be a whole number, 1 or more"),
    ],
)
def test_what_does_not_go_together_is_refused_with_both_names(text: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        parse(text)


def test_models_that_it_cannot_serve_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"needs weights.*mpcache fit --policy cskv:rank=0\.2.full"):
        parse("cskv|full").check(tiny(), 64)
    checkpoints.save("gpt2", tmp_path)
    save_random(tmp_path, "cskv:rank=0.25|full")
    a = load_checkpoint(tmp_path).architecture
    with pytest.raises(ConfigurationError, match=r"'low_rank.keys.down.weight' \[\d+, \d+\], the model has"):
        parse("cskv:rank=0.5|full").check(a, 64)
    rotary = tiny().rotary
    assert rotary is not None
    longer = tiny().model_copy(update={"rotary": rotary.model_copy(update={"scaling": "dynamic"})})
    policy = parse("cskv:turning=low|full")
    with pytest.raises(ConfigurationError, match="turning=low cannot turn keys again"):
        policy.check(with_learned(longer, policy.weight_shapes(longer)), 64)
