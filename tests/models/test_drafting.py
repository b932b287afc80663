"""Drafted tokens in plaintext: the answer is that of greedy decoding for every family and policy that can verify."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from models.checkpoint import load_checkpoint
from models.drafting import MOST_GUESSES, DraftPlan, Guess, drafted_rows, rows_that_stay
from models.generation import GenerationPlan, PlainModel
from mpc.errors import ConfigurationError
from parties.client.draft_model import _Guesses
from tests.models import random_checkpoints as checkpoints

PROMPT = [(7 * n * n + 3 * n) % 90 + 3 for n in range(18)]
NEW = 11
POLICIES = (
    "snapkv:budget=0.5,window=4",
    "streaming-llm:budget=0.5,sinks=2",
    "h2o:budget=1",
    "dynamic-top-k:budget=0.3",
    "mpcache:preset=clusters,static=0.6,dynamic=1,sinks=1,window=2,sharing=1,apart=0",
    "mpcache:preset=clusters,static=0.8,dynamic=0.4,fine=3,sinks=1,window=4,sharing=2,apart=0",
    "mpcache:preset=clusters,static=1,dynamic=0.6,fine=2,coarse=4,sinks=1,window=8,sharing=2,apart=0",
    "chunked:tokens=8|dynamic-top-k:budget=0.3@0;full",
)


def plain(name: str, folder: Path) -> PlainModel:
    checkpoints.save(name, folder)
    return PlainModel(load_checkpoint(folder))


def knowing(answer: Sequence[int], right: Callable[[int], bool]) -> Guess:
    """Guesses from the answer; wrong ones at places that are not `right`."""

    def guess(text: Sequence[int], count: int) -> list[int]:
        first = len(text) - len(PROMPT)
        known = [(place, answer[place] if place < len(answer) else 0) for place in range(first, first + count)]
        return [token if right(place) else (token + 1) % 90 for place, token in known]

    return guess


def same(model: PlainModel, policy: str, tokens: int) -> None:
    """Greedy decoding with all, some and no guesses right, and with none at all."""
    wanted = model.generate(PROMPT, GenerationPlan(len(PROMPT), NEW, policy=policy))
    plan = GenerationPlan(len(PROMPT), NEW, policy=policy, draft=DraftPlan(tokens))
    guesses: list[Guess] = [knowing(wanted, right) for right in (lambda n: True, lambda n: n % 3 != 2, lambda n: False)]
    for guess in (*guesses, lambda text, count: ()):
        assert model.generate(PROMPT, plan, guess=guess) == wanted


@pytest.mark.parametrize(
    "name", ["gpt2", "llama-grouped", "mistral-window", "qwen2-window-from-layer-1", "llama-rope-llama3"]
)
def test_families(name: str, tmp_path: Path) -> None:
    model = plain(name, tmp_path)
    for tokens in (1, 3):
        same(model, "full", tokens)


@pytest.mark.parametrize("policy", POLICIES)
def test_policies(policy: str, tmp_path: Path) -> None:
    same(plain("llama-grouped", tmp_path), policy, 3)


@pytest.mark.parametrize(
    ("policy", "tokens"),
    [
        ("h2o:budget=0.5", 1),
        ("tova:budget=0.5", 1),
        ("quest:budget=0.5", 1),
        ("mpcache:preset=clusters,window=4", 4),
        ("full@0;h2o:budget=0.5", 1),
    ],
)
def test_policies_that_cannot_verify(policy: str, tokens: int) -> None:
    with pytest.raises(
        ConfigurationError, match=rf"policy .* cannot verify {tokens} drafted tokens a step: .* use draft 'off'"
    ):
        GenerationPlan(40, 4, policy=policy, draft=DraftPlan(tokens))


@pytest.mark.parametrize(("decoding", "temperature"), [("sample", 1.0), ("logits", None)])
def test_samples_and_logits_cannot_be_verified(decoding: str, temperature: float | None) -> None:
    with pytest.raises(ConfigurationError, match=f"decoding = '{decoding}' cannot verify drafted tokens.* draft 'off'"):
        GenerationPlan(4, 4, decoding, temperature=temperature, draft=DraftPlan(2))  # type: ignore[arg-type]


@pytest.mark.parametrize("tokens", [0, -1, MOST_GUESSES + 1, True, 2.5])
def test_numbers_of_guesses(tokens: int) -> None:
    with pytest.raises(
        ConfigurationError, match=f"draft: tokens = {tokens!r} must be a whole number from 1 to {MOST_GUESSES}"
    ):
        DraftPlan(tokens)


def test_rows_of_a_step() -> None:
    assert drafted_rows([4, 5], lambda text, count: [6, 7, 8, 9], 3) == [5, 6, 7]
    assert drafted_rows([4, 5], lambda text, count: [], 3) == [5, 5, 5]
    assert drafted_rows([4, 5], lambda text, count: [6], 1) == [5]
    assert rows_that_stay([5, 6, 7], [6, 7, 1]) == 3
    assert rows_that_stay([5, 6, 7], [6, 8, 1]) == 2
    assert rows_that_stay([5, 6, 7], [None, 7, 1]) == 1
    assert rows_that_stay([5], [9]) == 1
    assert DraftPlan(3).rows(9) == 4
    assert DraftPlan(3).rows(2) == 2


def test_a_step_fills_every_position(tmp_path: Path) -> None:
    """No row needs a position that plain decoding does not."""
    model = plain("gpt2", tmp_path)
    ids = list(range(3, 63))
    wanted = model.generate(ids, GenerationPlan(60, 5))
    drafted = model.generate(
        ids, GenerationPlan(60, 5, draft=DraftPlan(MOST_GUESSES)), guess=lambda text, count: [3] * count
    )
    assert drafted == wanted


def test_a_small_model_guesses_its_own_continuation(tmp_path: Path) -> None:
    """With and without a cache of the text that came before, and where the text went another way."""
    model = plain("gpt2", tmp_path)
    guesses = _Guesses(model)

    def wanted(text: list[int], count: int) -> list[int]:
        return model.generate(text, GenerationPlan(len(text), count))[:count]

    for text, count in ((PROMPT, 3), ([*PROMPT, 5], 2), ([*PROMPT, 5, 6, 7], 2), (PROMPT[:4], 1), ([9, 9], 2)):
        assert guesses(text, count)[:1] == wanted(text, 1)
        assert len(guesses(text, count)) == count
    assert guesses([3] * 63, 4) == wanted([3] * 63, 1)
