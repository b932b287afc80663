"""Cache policies: on every suite what the suite `plain` does, on inputs that are exact in fixed point, ties included."""

from __future__ import annotations

from typing import Any

import pytest

from models.policies import POLICIES, parse
from tests.models.policy_cases import Case, tiny
from tests.protocols.suite_harness import run_plain, run_secure

MPCACHE = "static=0.5,dynamic=0.4,fine=4,coarse=8,sinks=4,window=4,alpha=0.5,sharing=1"
MATRIX = {
    "full": ["full"],
    "mpcache": [
        f"mpcache:{MPCACHE}",
        f"mpcache:{MPCACHE},levels=1",
        f"mpcache:{MPCACHE},linear=false",
        "mpcache:static=1,dynamic=0.4,fine=2,coarse=4,sinks=0,window=0,alpha=0.5,sharing=1",
        "mpcache:static=0.3,dynamic=1,sinks=2,window=3,fine=4,coarse=8,sharing=1",
    ],
    "streaming-llm": ["streaming-llm:budget=0.3", "streaming-llm:budget=0.3,sinks=0"],
    "h2o": ["h2o:budget=0.3"],
    "snapkv": ["snapkv:budget=0.5,window=6,kernel=3", "snapkv:budget=0.5,window=6,kernel=1"],
    "tova": ["tova:budget=0.4"],
    "quest": ["quest:budget=0.4,page=4,skip=0"],
    "dynamic-top-k": ["dynamic-top-k:budget=0.3"],
}
TEXTS = [text for texts in MATRIX.values() for text in texts]


def outcomes(text: str, suite: str, parties: int, case: Case) -> tuple[list[Any], list[Any]]:
    policy = parse(text)
    policy.check(case.architecture, case.tokens)

    async def program(s: Any, *values: Any) -> Any:
        return await case.run(policy, s, *values)

    return run_plain(program, case.inputs), run_secure(suite, parties, program, case.inputs)


def test_every_policy_is_in_the_matrix() -> None:
    assert set(MATRIX) == set(POLICIES)


@pytest.mark.parametrize(("suite", "parties"), [("crypten", 2), ("masked", 2), ("masked", 3)])
@pytest.mark.parametrize("text", TEXTS)
def test_same_tokens_stay_and_count(text: str, suite: str, parties: int) -> None:
    """Grouped queries (R = 2), a prompt of 40 tokens and five more: a cluster fills up on the way."""
    case = Case(tiny(heads=4, groups=2), tokens=40, steps=5, seed=len(text))
    plain, found = outcomes(text, suite, parties, case)
    for expected, value in zip(plain, found, strict=True):
        assert value.shape == expected.shape
        assert (value - expected).abs().max() < 4e-3
    for expected, value in zip(plain[-2:], found[-2:], strict=True):  # keys and values: the very same rows
        assert (value - expected).abs().max() < 2.0**-12
