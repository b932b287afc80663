"""MiKV: which rows stay exact, and those that do not, against numpy; every suite; what it does not go together with."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from models.cache import KVCache
from models.policies import parse
from models.segments import Segment
from mpc.errors import ConfigurationError
from protocols.masked.values import MaskedTensor
from protocols.suite import Suite, Value
from tests.models.policies.oracles import Array, order
from tests.models.policies.policy_cases import Case, tiny
from tests.protocols.suite_harness import run_plain, run_secure

SECURE = [("crypten", 2), ("crypten", 3), ("masked", 2), ("masked", 3)]


async def held_rows(text: str, case: Case, s: Suite, *values: Value) -> Any:
    """All steps' attention [steps, G, R, C], then keys and values of what stays exact, then of what does not."""
    k, v, q, mass = values
    policy, n = parse(text), case.tokens
    policy.check(case.architecture, n)
    cache = KVCache(case.architecture, policy)
    await cache.append(s, 0, k[:, :n], v[:, :n])
    await policy.after_prefill(s, cache, 0, case.told(policy, s, mass))
    cache.seen, found = n, []
    for step in range(case.steps):
        await cache.append(s, 0, k[:, n + step : n + step + 1], v[:, n + step : n + step + 1])
        found.append(await policy.attend(s, cache, 0, await s.mask_queries(q[step])))
        await cache.settle()
        cache.seen += 1
    low, exact = cache.layers[0].segments
    assert type(low) is type(exact) is Segment
    return [*found, exact.k, exact.v, readable(low.k), readable(low.v)]


def readable(x: Value) -> Value:
    """Rows that are held for attention, as a value that can be put out."""
    if isinstance(x, MaskedTensor) and x.packed is not None:
        return MaskedTensor(x.context, x.magnitude, masked=x.packed.whole())
    return x


class ByHand:
    """MiKV with one set a layer, in numpy. margin: by which scores that decide are apart, or 0 where they are equal."""

    def __init__(self, case: Case, kept: int, every: int, bits: int) -> None:
        self.kept, self.recent, self.bits, self.margin = kept, max(1, round(kept / 2)), bits, 1.0
        self.case, self.rows, self.low = case, np.arange(case.tokens), np.arange(0)
        self.scores = np.asarray(case.mass.sum(0))
        self.outputs: list[Array] = []
        self._demote()
        for step in range(case.steps):
            self.rows, self.scores = np.append(self.rows, case.tokens + step), np.append(self.scores, 0.0)
            self._attend(step)
            if len(self.rows) == kept + every:
                self._demote()

    def held(self, x: torch.Tensor) -> tuple[Array, Array]:
        """Rows that stay exact, and the others, rounded."""
        rows = x.numpy()
        return rows[:, self.rows], np.round(rows[:, self.low] * 2.0**self.bits) * 2.0**-self.bits

    def _attend(self, step: int) -> None:
        k, v = (np.concatenate(self.held(x)[::-1], 1) for x in (self.case.k, self.case.v))
        near = self.case.q[step].numpy() @ k.transpose(0, 2, 1)
        e = np.exp(near - near.max(-1, keepdims=True))
        p = e / e.sum(-1, keepdims=True)
        self.outputs.append(p @ v)
        self.scores += p[..., len(self.low) :].sum((0, 1))

    def _demote(self) -> None:
        count, older = self.kept - self.recent, len(self.rows) - self.recent
        best = np.sort(self.scores[:older])[::-1]
        gap = float(best[count - 1] - best[count])
        self.margin = min(self.margin, gap if gap else 1.0)
        stay = order(self.scores[:older], count)
        self.low = np.append(self.low, self.rows[np.setdiff1d(np.arange(older), stay)])
        stay = np.append(stay, np.arange(older, len(self.rows)))
        self.rows, self.scores = self.rows[stay], self.scores[stay]


def drawn(number: int, steps: int, step: float = 0.25) -> tuple[str, Case, ByHand]:
    """A case of R = 1, 2 or 4: from one important token to all but one demoted; values on the grid of 2 fraction bits, or
    between its points."""
    g = np.random.default_rng(number)
    tokens, every, bits = int(g.integers(3, 20)), int(g.integers(1, 5)), int(g.integers(0, 4))
    kept = (2, tokens - 1, int(g.integers(2, tokens)))[number % 3]
    case = Case(tiny(heads=2 * (1, 2, 4)[number % 5 % 3], groups=2), tokens, steps, number, step)
    text = f"mikv:budget={kept / tokens:.17g},every={every},fraction_bits={bits}"
    return text, case, ByHand(case, kept, every, bits)


def evaluated(text: str, case: Case, runner: Any) -> list[Array]:
    async def program(s: Suite, *values: Value) -> Any:
        return await held_rows(text, case, s, *values)

    return [np.asarray(x) for x in runner(program, case.inputs)]


def test_which_rows_stay_exact_and_what_is_left_of_the_others() -> None:
    """1 000 prompts with many ties."""
    for number in range(1000):
        text, case, hand = drawn(number, 0)
        keys, values, *low = evaluated(text, case, run_plain)
        for x, exact, few in ((case.k, keys, low[0]), (case.v, values, low[1])):
            expected = hand.held(x)
            assert np.array_equal(exact, expected[0]), (number, text)
            assert np.array_equal(few, expected[1]), (number, text)


def test_rows_are_demoted_while_decoding() -> None:
    """What was demoted is attended to and stays demoted; scores add up over all that look."""
    done = 0
    for number in range(80):
        text, case, hand = drawn(number, 9)
        found = evaluated(text, case, run_plain)
        if hand.margin < 1e-9:
            continue
        done += 1
        expected = [*hand.outputs, *(hand.held(x)[n] for n in (0, 1) for x in (case.k, case.v))]
        for one, other in zip(found, expected, strict=True):
            assert one.shape == other.shape
            assert np.abs(one - other).max() < 1e-9, (number, text)
    assert done > 60


@pytest.mark.covering(1)
@pytest.mark.parametrize(("suite", "parties"), SECURE)
def test_the_same_rows_on_shares(suite: str, parties: int) -> None:
    """Rows on the grid are held exactly, others as a neighbour of theirs, by chance: then the prompt alone, since later
    scores follow from it."""

    def secure(program: Any, inputs: list[torch.Tensor]) -> Any:
        return run_secure(suite, parties, program, inputs)

    every = [drawn(number, 0 if drawn(number, 0)[2].bits < 2 else 5) for number in range(60)]
    apart = [found for found in every if found[2].margin > 1e-2]
    for text, case, hand in apart[: 6 if suite == "masked" else 3]:
        found = evaluated(text, case, secure)
        unit = 2.0**-hand.bits
        for n, x in enumerate((case.k, case.v)):
            exact, low = found[case.steps + n], found[case.steps + 2 + n]
            assert np.abs(exact - hand.held(x)[0]).max() < 2.0**-12, text
            assert np.abs(low / unit - np.round(low / unit)).max() == 0
            assert np.abs(low - x.numpy()[:, hand.low]).max() < unit, text
            if hand.bits >= 2:
                assert np.array_equal(low, hand.held(x)[1]), text
                if n == 1:
                    for one, other in zip(found, hand.outputs, strict=False):
                        assert np.abs(one - other).max() < 4e-3, text


@pytest.mark.parametrize("inner", ["snapkv:budget=0.5,window=4", "cake:budget=0.5,window=4", "h2o:budget=0.5"])
def test_whatever_would_go_can_be_demoted(inner: str) -> None:
    """The rows that stay exact are those that the policy inside keeps."""
    case = Case(tiny(heads=4, groups=2), 16, 3, 5)

    async def program(s: Suite, *values: Value) -> Any:
        return await held_rows(f"demote:fraction_bits=1|{inner}", case, s, *values)

    async def alone(s: Suite, *values: Value) -> Any:
        return await Case(case.architecture, 16, 0, 5).run(parse(inner), s, *values)

    keys, values, low, _ = run_plain(program, case.inputs)[case.steps :]
    if inner[:3] == "h2o":
        assert (keys.shape[1], low.shape[1]) == (8, 11)
        return
    expected = run_plain(alone, case.inputs)[-2:]
    assert torch.equal(keys[:, :8], expected[0])
    assert torch.equal(values[:, :8], expected[1])
    assert low.shape[1] == 8


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("think|mikv", "policy think: 'mikv' holds rows in another way already"),
        ("think|demote|snapkv", "policy think: 'demote:fraction_bits=2.snapkv' holds"),
        ("batches:tokens=16|mikv", "policy batches: 'mikv' holds rows in another way"),
        ("merge|mikv", "policy merge: 'mikv' demotes already"),
        ("demote|mikv", "policy demote: 'mikv' demotes already"),
        ("demote|d2o", "policy demote: 'd2o' merges already"),
        ("demote|quest", "policy demote: 'quest' is no system of axes"),
        ("demote:fraction_bits=9|h2o", "policy demote: fraction_bits = 9 must be at most 4"),
        ("mikv:fraction_bits=-1", "policy mikv: fraction_bits = -1 must be a whole number"),
        ("mikv:every=0", "policy mikv: every = 0 must be a whole number, 1 or more"),
        ("mikv:budget=0", "policy mikv: budget = 0.0 must be a share"),
    ],
)
def test_what_does_not_go_together_is_refused_with_both_names(text: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        parse(text)


def test_rows_of_few_bits_are_refused_where_scores_are_capped() -> None:
    capped = tiny().model_copy(update={"score_cap": 50.0})
    for text in ("mikv", "demote|snapkv"):
        with pytest.raises(ConfigurationError, match="the model caps scores"):
            parse(text).check(capped, 512)
