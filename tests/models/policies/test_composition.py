"""A system of the reader's own, as docs/policies.md shows it: axes named once, the same tokens in every suite."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from models.cache import CachePolicy
from models.policies.axes.budget import Share
from models.policies.axes.keep import Keep
from models.policies.axes.schedule import Schedule
from models.policies.axes.scorers import Accumulated
from models.policies.composition import Axes, System
from tests.models.policies.policy_cases import Case, tiny
from tests.protocols.suite_harness import run_plain, run_secure

PAGE = Path(__file__).parents[3] / "docs" / "policies.md"
TOKENS, STEPS = 40, 18


def shown() -> CachePolicy:
    """The page's example, made."""
    text = PAGE.read_text(encoding="utf-8")
    start = text.index("    @dataclass", text.index("## Axes"))
    code = textwrap.dedent(text[start : text.index("\n## ", start)])
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
