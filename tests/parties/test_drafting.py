"""Drafted tokens over whole sessions: several tokens in the rounds of one, exactly those of plain greedy decoding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from models.checkpoint import load_checkpoint
from models.costs.estimation import estimate
from models.costs.tracing import Setting
from models.drafting import DraftPlan, Guess
from models.generation import GenerationPlan, PlainModel
from parties.client.client import GenerationResult
from parties.client.drafting import Draft
from parties.program import DECODER
from tests.models import random_checkpoints as checkpoints
from tests.parties.deployment import Deployment

PROMPT = [5, 17, 60, 3, 9, 12, 13, 14, 15, 5, 17, 60]
NEW = 9


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("checkpoint")
    checkpoints.save("llama-grouped", made)
    return made


@pytest.fixture(scope="module")
def plain(folder: Path) -> PlainModel:
    return PlainModel(load_checkpoint(folder))


def running(parties: int) -> Any:
    @pytest.fixture(scope="module")
    def fixture(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Iterator[Deployment]:
        with Deployment(tmp_path_factory.mktemp("running"), parties, DECODER) as deployment:
            deployment.share(folder)
            yield deployment

    return fixture


pair, trio = running(2), running(3)


def wanted(plain: PlainModel, policy: str = "full", new: int = NEW) -> list[int]:
    """Plain greedy decoding, one token a step."""
    return plain.generate(PROMPT, GenerationPlan(len(PROMPT), new, policy=policy))


def draft(tokens: int, guess: Guess) -> Draft:
    return Draft(DraftPlan(tokens), lambda: guess)


def knowing(answer: Sequence[int], right: Callable[[int], bool] = lambda place: True) -> Guess:
    """Guesses from the answer itself; wrong ones at places that are not `right`."""

    def guess(text: Sequence[int], count: int) -> list[int]:
        places = range(len(text) - len(PROMPT), len(text) - len(PROMPT) + count)
        known = [answer[place] if place < len(answer) else 0 for place in places]
        return [token if right(place) else (token + 1) % 90 for place, token in zip(places, known, strict=True)]

    return guess


def ask(deployment: Deployment, guess: Guess, tokens: int = 3, new: int = NEW, **options: Any) -> GenerationResult:
    options = {"suite": "masked", "stop_ids": (), **options}
    return deployment.client().ask(PROMPT, new, draft=draft(tokens, guess), **options)


def steps(result: GenerationResult, party: str = "party0") -> int:
    """Steps after the first token."""
    stages = {name.partition("/")[0] for name, cost in result.costs[party]["stages"].items() if cost["rounds"]}
    return sum(name.startswith("token ") and name != "token 0" for name in stages)


@pytest.mark.parametrize(("which", "suite"), [("pair", "masked"), ("pair", "crypten"), ("trio", "masked")])
def test_tokens_are_those_of_greedy_decoding(
    which: str, suite: str, plain: PlainModel, request: pytest.FixtureRequest
) -> None:
    deployment: Deployment = request.getfixturevalue(which)
    answer = wanted(plain)
    for right, least in ((lambda place: True, 2), (lambda place: place % 3 != 2, 3), (lambda place: False, 8)):
        seen: list[int] = []
        result = ask(deployment, knowing(answer, right), suite=suite, on_token=seen.append)
        assert result.tokens == seen == answer
        assert result.finish_reason == "length"
        assert steps(result) >= least
        if right(2):
            assert steps(result) == 2


@pytest.mark.parametrize("policy", ["full", "streaming-llm:budget=0.5,sinks=2"])
def test_costs_are_those_that_were_predicted(pair: Deployment, plain: PlainModel, policy: str) -> None:
    """Rounds, bytes sent and bytes dealt of all steps, which keep all of their rows."""
    answer = wanted(plain, policy)
    result = ask(pair, knowing(answer), policy=policy)
    assert result.tokens == answer
    setting = Setting("masked", policy=policy, draft=DraftPlan(3))
    predicted = estimate(plain.architecture, setting, len(PROMPT), NEW, kept=4)
    assert predicted.steps == steps(result) == 2
    for party, field in (("party0", "rounds"), ("party0", "bytes_sent"), ("party1", "offline_bytes")):
        stages = result.costs[party]["stages"]
        parts = [name for name in stages if name.startswith("token ") and name.partition("/")[0] != "token 0"]
        assert sum(stages[name][field] for name in parts) == predicted.further.total(field), field
