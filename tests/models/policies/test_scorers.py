"""Which tokens stay, against the systems' own formulas in numpy (their authors' code says the same), with many ties."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch

from models.cache import KVCache
from models.observation import Seen
from models.policies import parse
from models.policies.axes.recurrence import Recurrence
from models.policies.eviction import EvictingPolicy
from tests.models.policies.policy_cases import Case, tiny
from tests.protocols.suite_harness import run_plain, run_secure

Array = np.ndarray[Any, Any]


def order(x: Array, k: int) -> Array:
    """The k largest, ties to the earlier, in order of position."""
    return np.sort(np.argsort(-x, axis=-1, kind="stable")[..., :k], -1)


def pool(x: Array, n: int) -> Array:
    """Average pooling, zeros beyond the ends."""
    y = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(n // 2, n // 2)])
    return np.asarray(sum(y[..., i : i + x.shape[-1]] for i in range(n)) / n)


def cake_indicator(p: Array, gamma: float, n: int) -> Array:
    """Of antgroup/cakekv: [G, R, W, T] -> [G, T - W]."""
    w = p.shape[2]
    return np.asarray(pool((p.mean(2) + gamma * p.var(2, ddof=1))[..., :-w], n).mean(1))


def compresskv_votes(p: Array, heads: list[int], n: int) -> Array:
    """Of TUDa-HWAI/CompressKV: [H, W, T], query heads -> [T - W]."""
    return np.asarray(pool(p[heads].sum(1)[:, : -p.shape[1]], n).mean(0))


class Drawn:
    """Probabilities [G, R, W, T] of few values, exact in fixed point; each row adds up to 1 at most."""

    def __init__(self, generator: np.random.Generator, group: int, window: int, tokens: int) -> None:
        places = generator.integers(0, tokens, (2, group, window, 4))
        self.p = np.zeros((2, group, window, tokens))
        for index in np.ndindex(places.shape):
            self.p[(*index[:3], places[index])] += 1 / 4 if generator.random() < 0.5 else 1 / 8

    def told(self, squares: bool, heads: list[int] | None) -> list[torch.Tensor]:
        """The sums that a policy is told."""
        flat = self.p.reshape(-1, *self.p.shape[2:])
        rows = flat if heads is None else flat[heads]
        found = [rows.sum(1), (rows**2).sum(1)] if squares else [rows.sum(1)]
        return [torch.from_numpy(x) for x in found]


def kept(text: str, told: list[torch.Tensor], group: int, window: int, runner: Any = run_plain) -> Array:
    """Positions [G, B] that stay."""
    policy, tokens = parse(text), told[0].shape[1]
    assert isinstance(policy, EvictingPolicy)
    a = tiny(heads=2 * group, groups=2)
    policy.check(a, tokens)
    asked = policy.observation(tokens, 0)
    assert asked.sums(a.heads, 2) == told[0].shape[0]

    async def program(s: Any, k: Any, *sums: Any) -> Any:
        cache = KVCache(a, policy)
        await cache.append(s, 0, k, k)
        seen = Seen(sums[0], window, 1, sums[1] if asked.squares else None)
        await policy.after_prefill(s, cache, 0, seen)
        return [cache.layers[0].keys_and_values()[0]]

    numbers = torch.arange(tokens, dtype=torch.float64).reshape(1, tokens, 1).expand(2, tokens, 4).contiguous()
    (found,) = runner(program, [numbers, *told])
    return np.asarray(found[..., 0].round().to(torch.int64))


def drawn(number: int, window: int) -> tuple[Drawn, int, int]:
    """A case: probabilities, R, and how many tokens stay: from a voted one to all but one."""
    generator = np.random.default_rng(number)
    group, tokens = (1, 2, 4)[number % 3], int(generator.integers(window + 2, 48))
    count = (window + 1, tokens - 1, int(generator.integers(window + 1, tokens)))[number // 3 % 3]
    return Drawn(generator, group, window, tokens), group, count


def cake_case(number: int) -> tuple[str, list[torch.Tensor], int, int, Array]:
    window = (2, 4, 7)[number % 5 % 3]
    case, group, count = drawn(number, window)
    gamma, kernel = (200, 3, 0)[number % 7 % 3], (5, 1)[number % 2]
    tokens = case.p.shape[3]
    expected = order(np.round(cake_indicator(case.p, gamma, kernel), 9), count - window)
    text = f"cake:budget={count / tokens:.17g},window={window},gamma={gamma},kernel={kernel}"
    return text, case.told(True, None), group, window, expected


def compresskv_case(number: int) -> tuple[str, list[torch.Tensor], int, int, Array]:
    window = (1, 4, 8)[number % 5 % 3]
    case, group, count = drawn(number, window)
    tokens, heads = case.p.shape[3], [[0], [1, 0], list(range(2 * group))][number % 4 % 3]
    flat = case.p.reshape(-1, window, tokens)
    expected = order(np.round(compresskv_votes(flat, heads, 5), 9), count - window)
    names = " ".join(f"0.{head}" for head in heads)
    text = f"compresskv:budget={count / tokens:.17g},window={window},heads={names}"
    return text, case.told(False, heads), group, window, np.stack([expected, expected])


CASES = {"cake": cake_case, "compresskv": compresskv_case}


@pytest.mark.parametrize("name", CASES)
def test_the_tokens_that_stay_are_the_formulas(name: str) -> None:
    """Cases with R = 1, 2 and 4, from B = window + 1 to T = B + 1; the window itself stays."""
    for number in range(420):  # a third of what all remainders make together: every pair of choices occurs
        text, told, group, window, expected = CASES[name](number)
        found = kept(text, told, group, window)
        tokens = told[0].shape[1]
        assert np.array_equal(found[:, :-window], expected), (number, text)
        assert np.array_equal(found[:, -window:], np.arange(tokens - window, tokens)[None].repeat(2, 0))


@pytest.mark.covering(2)
@pytest.mark.parametrize(("suite", "parties"), [("crypten", 2), ("crypten", 3), ("masked", 2), ("masked", 3)])
@pytest.mark.parametrize("name", CASES)
def test_the_same_tokens_stay_on_shares(name: str, suite: str, parties: int) -> None:
    def secure(program: Any, inputs: list[torch.Tensor]) -> Any:
        return run_secure(suite, parties, program, inputs)

    for number in range(6 if suite == "masked" else 3):
        text, told, group, window, expected = CASES[name](number + 41)
        assert np.array_equal(kept(text, told, group, window, secure)[:, :-window], expected)


def lazy_step(ts: Array, mri: Array, a: Array, t: int, alpha: float) -> tuple[Array, Array]:
    """One query at time t; a [S]: what it pays."""
    hit, gap = a > alpha, t - ts
    return np.where(hit, t, ts), np.where(hit, np.maximum(mri, gap), mri)


def lazy_score(ts: Array, mri: Array, t: int) -> Array:
    def twice_logistic(x: Array) -> Array:
        return np.asarray(2 / (1 + np.exp(-x)))

    m = np.maximum(mri, 1)
    return twice_logistic(-(t - ts) / m) + twice_logistic(-1 / m)


class Lazy:
    """A prompt and the tokens behind it by hand. margin: by which the last score that stays is above the next one."""

    def __init__(self, case: Case, told: Array, kept: int, every: int, alpha: float) -> None:
        self.case, self.kept, self.every, self.alpha = case, kept, every, alpha
        self.rows = np.arange(case.tokens)
        self.ts, self.mri = self.rows.copy(), np.zeros(case.tokens, dtype=int)
        self.margin = 1.0
        for n, paid in enumerate(told):
            self._hear(paid, case.tokens - len(told) + n)
        self._drop(case.tokens - 1)
        for step in range(case.steps):
            time = case.tokens + step
            self.rows, self.ts, self.mri = (
                np.append(x, new) for x, new in ((self.rows, time), (self.ts, time), (self.mri, 0))
            )
            scores = case.q[step] @ case.k[:, self.rows].transpose(1, 2)
            self._hear(np.asarray(torch.softmax(scores, -1).mean((0, 1))), time)
            if len(self.rows) == kept + every:
                self._drop(time)

    def _hear(self, paid: Array, time: int) -> None:
        self.margin = min(self.margin, 16 * float(np.abs(paid - self.alpha).min()))
        self.ts, self.mri = lazy_step(self.ts, self.mri, paid, time, self.alpha)

    def _drop(self, time: int) -> None:
        count = self.kept - self.every
        scores = lazy_score(self.ts, self.mri, time)[: len(self.rows) - self.every]
        best = np.sort(scores)[::-1]
        self.margin = min(self.margin, float(best[count - 1] - best[count]))
        stay = np.append(order(scores, count), np.arange(len(scores), len(self.rows)))
        self.rows, self.ts, self.mri = (x[stay] for x in (self.rows, self.ts, self.mri))


def lazy_case(seed: int) -> tuple[str, Case, Lazy]:
    group = (1, 2, 4)[seed % 3]
    case = Case(tiny(heads=2 * group, groups=2), tokens=18, steps=11, seed=seed)
    case.k[:, :, 1:] = 0  # scores of few values
    case.mass = torch.where(case.mass > 0.5, case.mass, 0)
    alpha = 0.07
    told = np.stack([np.roll(case.mass[(n + 1) % 2], -(n + 1)) for n in range(5)]) / (2 * group)
    text = f"lazyeviction:budget={10 / 18:.17g},every=4,alpha={alpha},observed=5"
    return text, case, Lazy(case, told, 10, 4, alpha)


def lazy_found(text: str, case: Case, runner: Any) -> tuple[Array, Array]:
    policy = parse(text)
    policy.check(case.architecture, case.tokens)

    async def program(s: Any, *values: Any) -> Any:
        return await case.run(policy, s, *values)

    return tuple(np.asarray(x) for x in runner(program, case.inputs)[-2:])  # type: ignore[return-value]


def test_lazy_eviction_keeps_what_comes_back() -> None:
    """A prompt of 18 tokens to 10, then twice 14 to 10; where scores are told apart by more than floats round."""
    done = 0
    for seed in range(90):
        text, case, hand = lazy_case(seed)
        if hand.margin < 1e-7 and hand.margin != 0:
            continue
        done += 1
        keys, values = lazy_found(text, case, run_plain)
        assert np.array_equal(keys, case.k[:, hand.rows]), seed
        assert np.array_equal(values, case.v[:, hand.rows])
    assert done > 45


def hits_of(seed: int) -> list[Array]:
    """What prompts of two batches and three tokens pay, summed over heads: at, just above or far from the threshold 0.25."""
    g = np.random.default_rng(seed)
    first, second, queries = 3 + seed % 5, 1 + seed % 4, 1 + seed % 3
    shapes = [(queries, first), (min(queries, second), first + second)]
    shapes += [(1, first + second + n) for n in (1, 2, 3)]
    found = [g.choice([0.0, 0.25, 0.25 + 2.0**-14, 0.75], shape) for shape in shapes]
    for paid in found:
        late = np.arange(paid.shape[1]) > paid.shape[1] - paid.shape[0] + np.arange(paid.shape[0])[:, None]
        paid[late] = 0  # of tokens that are not cached yet
    return found


async def recurrences(s: Any, batches: list[Any]) -> list[Any]:
    """What `Recurrence` makes of them: ages and longest gaps."""
    scorer = Recurrence(0.25, 5)
    state = scorer.new_state()
    for x in batches:
        await scorer.token(s, state, Seen(x, 1, each=True))
    return [state.age, state.longest]


def by_steps(batches: list[Array]) -> list[Array]:
    """The same, one query after the other."""
    ts, mri, time = np.zeros(0), np.zeros(0), 0
    for paid in batches:
        new = paid.shape[1] - len(ts)
        start = time + new - len(paid)  # queries that are not observed pass
        ts, mri = np.r_[ts, time + np.arange(new)], np.r_[mri, np.zeros(new)]
        for n, one in enumerate(paid):
            ts, mri = lazy_step(ts, mri, one, start + n, 0.25)
        time += new
    return [time - 1 - ts, mri]


@pytest.mark.parametrize(
    ("suite", "parties", "cases"), [("plain", 1, 400), ("masked", 2, 2), ("masked", 3, 1), ("crypten", 2, 1)]
)
def test_ages_and_gaps_are_those_of_one_query_after_the_other(suite: str, parties: int, cases: int) -> None:
    """Many hits at once, attention at the threshold and 2^-14 above it."""
    given = [hits_of(seed) for seed in range(cases)]
    flat = [torch.from_numpy(x) for one in given for x in one]

    async def program(s: Any, *values: Any) -> Any:
        return [x for n in range(0, len(values), 5) for x in await recurrences(s, list(values[n : n + 5]))]

    found = run_plain(program, flat) if suite == "plain" else run_secure(suite, parties, program, flat)
    for n, one in enumerate(given):
        for value, wanted in zip(found[2 * n : 2 * n + 2], by_steps(one), strict=True):
            assert np.array_equal(value[0].numpy(), wanted), (suite, n)


@pytest.mark.covering(1)
@pytest.mark.parametrize(("suite", "parties"), [("crypten", 2), ("masked", 2), ("masked", 3)])
def test_lazy_eviction_on_shares(suite: str, parties: int) -> None:
    """Where scores, and attention and its threshold, are further apart than their errors."""

    def secure(program: Any, inputs: list[torch.Tensor]) -> Any:
        return run_secure(suite, parties, program, inputs)

    apart = list(islice((case for case in map(lazy_case, range(400)) if case[2].margin > 6e-3), 3))
    assert len(apart) == 3
    for text, case, hand in apart:
        keys, values = lazy_found(text, case, secure)
        assert np.abs(keys - np.asarray(case.k[:, hand.rows])).max() < 2.0**-12
        assert np.abs(values - np.asarray(case.v[:, hand.rows])).max() < 2.0**-12
