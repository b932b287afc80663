"""A system of the reader's own, as docs/policies.md shows it: axes named once, the same tokens in every suite."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from models.cache import CachePolicy
from models.observation import Observation
from models.policies.axes.budget import Share
from models.policies.axes.keep import Keep
from models.policies.axes.schedule import Schedule
from models.policies.axes.scorers import Accumulated, Scorer
from models.policies.composition import Axes, System
from models.policies.eviction import Scores
from tests.models.policies.policy_cases import Case, tiny
from tests.protocols.suite_harness import run_plain, run_secure

PAGE = Path(__file__).parents[3] / "docs" / "policies.md"
TOKENS, STEPS = 40, 18


def shown() -> CachePolicy:
    """The page's example, made."""
    text = PAGE.read_text(encoding="utf-8")
    start = text.index("    @dataclass", text.index("## Axes"))
    code = textwrap.dedent(text[start : text.index("\nA scorer of your own", start)])
    names: dict[str, Any] = {
        "__name__": __name__,
        **{kind.__name__: kind for kind in (Accumulated, Axes, Keep, Schedule, Share, System)},
        "ClassVar": ClassVar,
        "dataclass": dataclass,
    }
    exec(code, names)
    made = names["SinksAndHeavy"](budget=0.5)
    assert isinstance(made, CachePolicy)
    return made


def test_the_page_s_system_keeps_what_it_says() -> None:
    """Of a layer: four sinks, the recent half, and of the rest the most attended by all queries, once in 16 tokens."""
    case = Case(tiny(heads=4, groups=2), TOKENS, STEPS, 3)
    policy = shown()
    policy.check(case.architecture, TOKENS)

    async def program(s: Any, *values: Any) -> Any:
        return await case.run(policy, s, *values)

    found = run_plain(program, case.inputs)
    kept = TOKENS // 2
    scores = [float(x) for x in case.mass.sum(0)]
    rows = _left(scores, list(range(TOKENS)), kept)
    for step in range(STEPS):
        rows.append(TOKENS + step)
        scores.append(0.0)
        for group in range(2):
            p = torch.softmax(case.q[step, group] @ case.k[group, rows].T, -1)
            torch.testing.assert_close(found[step][group], p @ case.v[group, rows])
            for token, more in zip(rows, p.sum(0).tolist(), strict=True):
                scores[token] += more
        if len(rows) == kept + 16:
            rows = _left(scores, rows, kept)
    assert torch.equal(found[-2], case.k[:, rows])


def _left(scores: list[float], rows: list[int], kept: int) -> list[int]:
    recent = kept // 2
    older = rows[4 : len(rows) - recent]
    best = sorted(range(len(older)), key=lambda i: (-scores[older[i]], i))[: kept - recent - 4]
    return [*rows[:4], *(older[i] for i in sorted(best)), *rows[len(rows) - recent :]]


@pytest.mark.parametrize(("suite", "parties"), [("masked", 2), ("masked", 3), ("crypten", 2)])
def test_the_page_s_system_on_shares(suite: str, parties: int) -> None:
    case, policy = Case(tiny(heads=4, groups=2), TOKENS, STEPS, 3), shown()

    async def program(s: Any, *values: Any) -> Any:
        return await case.run(policy, s, *values)

    plain, secure = run_plain(program, case.inputs), run_secure(suite, parties, program, case.inputs)
    for expected, value in zip(plain, secure, strict=True):
        assert (value - expected).abs().max() < 4e-3


def shown_scorer() -> CachePolicy:
    """The page's example of a scorer, made; no more than 40 lines."""
    text = PAGE.read_text(encoding="utf-8")
    start = text.index("    @dataclass", text.index("A scorer of your own"))
    code = textwrap.dedent(text[start : text.index("\n## ", start)])
    assert len(code.strip().splitlines()) <= 40
    kinds = (Axes, Keep, Observation, Scorer, Scores, Share, System)
    names: dict[str, Any] = {
        "__name__": __name__,
        **{kind.__name__: kind for kind in kinds},
        **{"ClassVar": ClassVar, "dataclass": dataclass, "torch": torch},
    }
    exec(code, names)
    made = names["LateKV"](budget=0.5)
    assert isinstance(made, CachePolicy)
    return made


@pytest.mark.parametrize(("suite", "parties"), [("plain", 1), ("masked", 2), ("masked", 3), ("crypten", 2)])
def test_the_page_s_scorer(suite: str, parties: int) -> None:
    """Votes and half of a place's share of the prompt; the last eight stay. Later tokens come first among equal votes."""
    case, policy = Case(tiny(heads=4, groups=2), TOKENS, 1, 3), shown_scorer()
    policy.check(case.architecture, TOKENS)

    async def program(s: Any, *values: Any) -> Any:
        return await case.run(policy, s, *values)

    found = run_plain(program, case.inputs) if suite == "plain" else run_secure(suite, parties, program, case.inputs)
    stop = TOKENS - 8
    for group in range(2):
        scores = case.mass[group, :stop] + torch.arange(stop) * (0.5 / stop)
        stay = sorted(sorted(range(stop), key=lambda i: -float(scores[i]))[:12])
        expected = case.k[group, [*stay, *range(stop, TOKENS + 1)]]
        assert (found[-2][group] - expected).abs().max() < 2.0**-12
