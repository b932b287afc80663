"""ThinK: channels against numpy, every suite against plaintext, what it does not go together with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.cache import KVCache
from models.costs.tracing import STEP, Setting, trace_session
from models.generation import GenerationPlan, PlainModel, generate_plain
from models.policies import parse
from models.shapes import SHAPES
from mpc.errors import ConfigurationError
from protocols.suite import Suite, Value
from tests.models.policies.policy_cases import Case, grid, tiny
from tests.models.test_decoder import saved
from tests.protocols.suite_harness import run_plain, run_secure

TOKENS, STEPS, WINDOW = 16, 3, 4


def think(q: np.ndarray, k: np.ndarray, keep: int) -> np.ndarray:
    """The kept channels of each head, in order. q [G, R, W, C], k [G, T, C]."""
    score = (q**2).mean(2).mean(1) * (k**2).mean(1)
    return np.sort(np.argsort(-score, axis=-1, kind="stable")[..., :keep], -1)


class Inputs(Case):
    """A case with the prompt's last queries [G, R W, C]."""

    def __init__(self, seed: int) -> None:
        super().__init__(tiny(heads=4, groups=2, channels=8), TOKENS, STEPS, seed)
        g = torch.Generator().manual_seed(seed + 1)
        self.last = grid(2, 2 * WINDOW, 8, span=4, step=0.5, generator=g)

    async def program(self, text: str, s: Suite, k: Value, v: Value, q: Value, mass: Value, last: Value) -> Any:
        """Attention of all steps, then the keys of all segments."""
        policy = parse(text)
        cache = KVCache(self.architecture, policy)
        await cache.append(s, 0, k[:, :TOKENS], v[:, :TOKENS])
        entry = cache.layers[0]
        entry.queries = await s.mask_queries(last) if policy.noted_queries(TOKENS, 0) else None
        await policy.after_prefill(s, cache, 0, self.told(policy, s, mass))
        found = []
        for step in range(STEPS):
            place = slice(TOKENS + step, TOKENS + step + 1)
            await cache.append(s, 0, k[:, place], v[:, place])
            found.append(await policy.attend(s, cache, 0, await s.mask_queries(q[step])))
        return [*found, *(segment.k for segment in entry.segments)]


@pytest.mark.parametrize("seed", range(8))
def test_the_channels_are_those_of_the_definition(seed: int) -> None:
    """Squares of half numbers: many exact ties, which go to the earlier channel."""
    case = Inputs(seed)

    async def program(s: Any, *x: Any) -> Any:
        return await case.program(f"think:keep=0.6,window={WINDOW}|full", s, *x)

    *found, held, exact = run_plain(program, [*case.inputs, case.last])
    kept = think(case.last.reshape(2, 2, WINDOW, 8).numpy(), case.k[:, :TOKENS].numpy(), 5)
    stop = TOKENS - WINDOW
    for g in range(2):
        assert np.array_equal(np.sort(held[g].T.numpy(), 0), np.sort(case.k[g, :stop][:, kept[g]].T.numpy(), 0))
    assert torch.equal(exact, case.k[:, stop:])
    zeroed = case.k.clone()
    for g in range(2):
        zeroed[g, :stop, np.setdiff1d(np.arange(8), kept[g])] = 0
    for step, out in enumerate(found):
        rows = TOKENS + step + 1
        p = torch.softmax(case.q[step] @ zeroed[:, :rows].transpose(1, 2), -1)
        torch.testing.assert_close(out, p @ case.v[:, :rows])


@pytest.mark.covering(2)
@pytest.mark.parametrize(("suite", "parties"), [("crypten", 2), ("crypten", 3), ("masked", 2), ("masked", 3)])
@pytest.mark.parametrize("inner", ["full", "snapkv:budget=0.6,window=4,kernel=3"])
def test_every_suite_holds_the_same_channels(suite: str, parties: int, inner: str) -> None:
    case = Inputs(3)

    async def program(s: Any, *x: Any) -> Any:
        return await case.program(f"think:keep=0.5,window={WINDOW}|{inner}", s, *x)

    inputs = [*case.inputs, case.last]
    expected, found = run_plain(program, inputs), run_secure(suite, parties, program, inputs)
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max() < 4e-3
    for one, other in zip(found[-2:], expected[-2:], strict=True):
        assert (one - other).abs().max() < 2.0**-12


def test_keeping_all_channels_is_the_policy_inside(tmp_path: Path) -> None:
    _, checkpoint, ids = saved("llama-grouped", tmp_path)
    plans = [GenerationPlan(len(ids), 6, policy=text) for text in ("full", "think:keep=1|full")]
    assert len({tuple(generate_plain(checkpoint, ids, plan, dtype=torch.float64)) for plan in plans}) == 1


def test_a_whole_model_notes_its_last_queries_also_in_chunks(tmp_path: Path) -> None:
    """The prompt in one batch and in several: the same tokens, and fewer channels in every layer."""
    _, checkpoint, ids = saved("llama-grouped", tmp_path)
    results = []
    for text in ("think:keep=0.5,window=3|full", "chunked:tokens=4|think:keep=0.5,window=3|full"):
        plain = PlainModel(checkpoint, torch.float64, policy=parse(text))
        results.append(plain.generate(ids, GenerationPlan(len(ids), 5, policy=text)))
    assert results[0] == results[1]


def test_costs_follow_from_lengths() -> None:
    """Traced twice: the same; a token takes one round more a layer than with all channels."""
    a = SHAPES["tiny"]

    def rounds(text: str) -> list[int]:
        return [trace.ledger.total(STEP).rounds for trace in trace_session(a, Setting("masked", policy=text), 48, 3)]

    few, whole = rounds("think:keep=0.5|full"), rounds("think:keep=1|full")
    assert few == rounds("think:keep=0.5|full")
    assert few[1] - whole[1] == few[2] - whole[2] == a.layers


@pytest.mark.parametrize("inner", ["h2o", "tova", "quest", "mpcache", "think|full"])
def test_what_does_not_go_together_is_refused_with_both_names(inner: str) -> None:
    with pytest.raises(ConfigurationError, match=f"policy think: '{inner.split('|')[0]}"):
        parse(f"think:keep=0.6|{inner}")
    with pytest.raises(ConfigurationError, match=r"keep = 1\.5 must be a share"):
        parse("think:keep=1.5|full")
    with pytest.raises(ConfigurationError, match=r"policy batches: 'think:keep=0\.6\|snapkv' holds rows"):
        parse("batches:tokens=64|think:keep=0.6|snapkv")
