"""Drafted tokens over whole sessions: several tokens in the rounds of one, exactly those of plain greedy decoding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from models.checkpoint import load_checkpoint
from models.costs.estimation import estimate
from models.costs.tracing import Setting
from models.drafting import DraftPlan, Guess
from models.generation import GenerationPlan, PlainModel
from models.tokenizer.text import TextTokenizer
from mpc.errors import ConfigurationError, MpcacheError
from parties.client.client import GenerationResult
from parties.client.draft_text import parse_draft
from parties.client.drafting import Draft, NGrams
from parties.client.private_model import PrivateModel
from parties.program import MODEL
from parties.transport.peer_stream import PeerStream
from parties.wire import wire_pb2 as wire
from parties.wire.draft import kept
from tests.models import random_checkpoints as checkpoints
from tests.parties.deployment import Deployment
from tests.parties.letters import write_letters

PROMPT = [5, 17, 60, 3, 9, 12, 13, 14, 15, 5, 17, 60]
NEW = 9


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("checkpoint")
    checkpoints.save("llama-grouped", made, layers=1)
    return made


@pytest.fixture(scope="module")
def plain(folder: Path) -> PlainModel:
    return PlainModel(load_checkpoint(folder))


def running(parties: int) -> Any:
    @pytest.fixture(scope="module")
    def fixture(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Iterator[Deployment]:
        with Deployment(tmp_path_factory.mktemp("running"), parties, MODEL) as deployment:
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


MIXED = [(lambda place: place % 3 != 2, 3)]
GUESSES = [(lambda place: True, 2), *MIXED, (lambda place: False, 8)]


@pytest.mark.parametrize(
    ("which", "suite", "guesses"), [("pair", "masked", GUESSES), ("pair", "crypten", MIXED), ("trio", "masked", MIXED)]
)
def test_tokens_are_those_of_greedy_decoding(
    which: str, suite: str, guesses: Any, plain: PlainModel, request: pytest.FixtureRequest
) -> None:
    """Right and wrong guesses, alone and among each other."""
    deployment: Deployment = request.getfixturevalue(which)
    answer = wanted(plain)
    for right, least in guesses:
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


def test_copied_text_takes_fewer_steps(pair: Deployment, plain: PlainModel) -> None:
    """The answer stood in the prompt: n-grams find it, from the second token on."""
    answer = wanted(plain)
    prompt = [*PROMPT, *answer, 2, *PROMPT]
    copied = plain.generate(prompt, GenerationPlan(len(prompt), 8))
    found = parse_draft("ngram:tokens=3,longest=2")
    result = pair.client().ask(prompt, 8, draft=found, suite="masked", stop_ids=())
    assert result.tokens == copied
    repeats = sum(NGrams(2)([*prompt, *copied[:n]], 1) == [copied[n]] for n in range(1, 8))
    assert steps(result) <= 7 - (repeats > 2)


def test_what_ends_an_answer_inside_a_draft(pair: Deployment, plain: PlainModel) -> None:
    """A stop token, the caller (who looks for stop strings), and the most tokens; the parties are free for the next."""
    answer = wanted(plain)
    stop = answer.index(next(token for n, token in enumerate(answer) if n > 1 and token not in answer[:n]))
    stopped = ask(pair, knowing(answer), stop_ids=[answer[stop]])
    assert (stopped.tokens, stopped.finish_reason) == (answer[: stop + 1], "stop")
    left: list[int] = []
    caller = ask(pair, knowing(answer), on_token=lambda token: left.append(token) or len(left) < 3)  # type: ignore[func-returns-value]
    assert caller.tokens == left == answer[:3]
    for new in (1, 2, 6):
        ended = ask(pair, knowing(answer), new=new)
        assert (ended.tokens, ended.finish_reason) == (answer[:new], "length")
    last = ask(pair, knowing(answer), new=stop + 1, stop_ids=[answer[stop]])
    assert (last.tokens, last.finish_reason) == (answer[: stop + 1], "stop")


def test_a_fixed_length_goes_on_behind_the_answer(pair: Deployment, plain: PlainModel) -> None:
    answer = wanted(plain)
    result = ask(pair, knowing(answer), stop_ids=[answer[0]], fixed_length=True)
    assert result.tokens == answer[:1]
    assert steps(result) == 2


@pytest.mark.parametrize(
    "policy", ["mpcache:preset=clusters,static=1,dynamic=0.7,fine=2,sinks=1,window=4,sharing=1,apart=0,gathering=auto"]
)
def test_policies_that_choose(pair: Deployment, plain: PlainModel, policy: str) -> None:
    answer = wanted(plain, policy)
    assert ask(pair, knowing(answer, lambda place: place != 4), policy=policy).tokens == answer


def test_preprocessing_waits_for_what_stays(tmp_path: Path, folder: Path, plain: PlainModel) -> None:
    answer = wanted(plain)
    with Deployment(tmp_path, 2, MODEL, preprocessing="on") as deployment:
        deployment.share(folder)
        assert ask(deployment, knowing(answer, lambda place: place != 3)).tokens == answer


def test_parties_that_are_told_different_numbers_end_the_session(pair: Deployment, plain: PlainModel) -> None:
    """The dealer deals no further, so nothing is opened that was dealt for another number of rows."""
    numbers = iter([1, 2])
    with (
        patch.object(PeerStream, "send", _changing(numbers)),
        pytest.raises(MpcacheError, match="different numbers of rows of output 1: party0 1, party1 2"),
    ):
        ask(pair, knowing(wanted(plain)))


def _changing(numbers: Iterator[int]) -> Callable[[PeerStream, Any], None]:
    send = PeerStream.send

    def changed(self: PeerStream, message: Any) -> None:
        if isinstance(message, wire.ClientMessage) and message.WhichOneof("content") == "kept":
            message = wire.ClientMessage(kept=kept(message.kept.step, next(numbers)))
        send(self, message)

    return changed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decoding": "sample"}, "decoding = 'sample' cannot verify drafted tokens"),
        ({"policy": "h2o:budget=0.5"}, "policy h2o:budget=0.5 cannot verify 3 drafted tokens a step"),
    ],
)
def test_what_is_refused_before_anything_is_sent(pair: Deployment, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ask(pair, knowing([]), **options)


def test_a_draft_of_another_vocabulary(pair: Deployment) -> None:
    other = replace(draft(3, knowing([])), vocabulary=97, source="small")
    with pytest.raises(
        ConfigurationError, match=r"draft = small: its vocabulary has 97 tokens, the model's 101: .* draft 'ngram'"
    ):
        pair.client().ask(PROMPT, 4, draft=other, suite="masked")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ngram:tokens=0", "draft: tokens = 0 must be a whole number from 1 to 16"),
        ("ngram:tokens=17", "draft: tokens = 17 must be a whole number from 1 to 16"),
        ("ngram:tokens=x", "draft: tokens = 'x' must be a whole number"),
        ("ngram:longest=0", "draft: longest = 0 must be a whole number from 1 to 32"),
        ("ngram:width=2", "draft has no setting 'width'; known: tokens, longest"),
        ("ngram:tokens=2,tokens=3", "draft: write 'tokens=value' once"),
        ("nowhere", "draft = 'nowhere' is neither 'off', 'ngram' .* nor the folder of a checkpoint"),
    ],
)
def test_texts_that_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        parse_draft(text)


def test_texts() -> None:
    assert parse_draft("off") is None
    found = parse_draft("ngram")
    assert found is not None
    assert found.plan == DraftPlan(4)
    assert found.begin()([1, 2, 3, 1, 2], 4) == [3, 1, 2, 3]
    assert NGrams(3)([5, 1, 9, 5, 1], 1) == [9]
    assert NGrams(1)([5, 5], 2) == [5, 5]
    assert NGrams(3)([5], 2) == []


def test_a_checkpoint_that_guesses(pair: Deployment, plain: PlainModel, tmp_path: Path) -> None:
    """The model itself, as its own small model, guesses everything; another tokenizer is refused."""
    checkpoints.save("llama-grouped", tmp_path, layers=1)
    checkpoints.byte_tokenizer(tmp_path)
    found = parse_draft(f"{tmp_path}:tokens=3")
    assert found is not None
    result = pair.client().ask(PROMPT, NEW, draft=found, suite="masked", stop_ids=())
    assert result.tokens == wanted(plain)
    assert steps(result) == 2
    assert found.tokenizer is not None
    found.check(plain.architecture, found.tokenizer)
    other = TextTokenizer.load(write_letters(tmp_path / "letters", tmp_path), ())
    with pytest.raises(ConfigurationError, match="its tokenizer is not the model's: guesses would be other tokens"):
        found.check(plain.architecture, other)


def test_the_python_interface(pair: Deployment, plain: PlainModel) -> None:
    answer = wanted(plain, new=4)
    with PrivateModel.connect(pair.config("client", "client"), suite="masked", draft="ngram:tokens=2") as model:
        for options in ({}, {"draft": "off"}, {"draft": "ngram:tokens=1,longest=1"}):
            assert model.generate(PROMPT, max_new_tokens=4, **options).tolist() == [[*PROMPT, *answer]]
        with pytest.raises(ConfigurationError, match="decoding = 'sample' cannot verify drafted tokens"):
            model.generate(PROMPT, max_new_tokens=4, do_sample=True)
        with pytest.raises(ConfigurationError, match=r"prompt_lookup_num_tokens = 3 .* give draft='ngram:tokens=N'"):
            model.generate(PROMPT, max_new_tokens=4, prompt_lookup_num_tokens=3)


def test_parties_with_tapes_on_disk_refuse(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "tapes").mkdir()
    with Deployment(tmp_path, 2, MODEL, tapes=str(tmp_path / "tapes")) as deployment:
        deployment.share(folder)
        with pytest.raises(ConfigurationError, match=r"takes its tapes from a folder .* ask without a draft"):
            ask(deployment, knowing([]))
