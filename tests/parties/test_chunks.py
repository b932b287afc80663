"""Chunks over real gRPC: documents that the model's owner registers, put together behind a prefix by clients."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from models.checkpoint import load_checkpoint
from models.generation import GenerationPlan, PlainModel
from mpc.errors import ConfigurationError
from parties.client.client import GenerationResult
from parties.client.prefixes import PUBLIC, SECRET, ChunkChoice
from parties.client.request import GenerationRequest
from parties.client.sampling_params import SamplingParams
from parties.model_owner.prefixes import PrefixText, add_prefix, remove_prefix
from protocols.registry import SuiteSpec
from tests.models import random_checkpoints
from tests.models.test_prefixes import PROMPT
from tests.parties.deployment import Deployment

PREFIX, FIRST, SECOND, QUESTION = PROMPT[:3], PROMPT[3:8], PROMPT[8:14], PROMPT[14:]
THIRD = [41, 7, 66, 12, 80]
NEW = 2
MASKED = SuiteSpec("masked")


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Two parties that hold a model with rotary positions, a prefix, a public chunk and a secret one."""
    folder = tmp_path_factory.mktemp("chunks")
    random_checkpoints.save("llama-grouped", folder / "checkpoint")
    with Deployment(folder, 2, deadline_seconds=60) as deployment:
        deployment.share(folder / "checkpoint", "tiny")
        owner = deployment.config("model-owner", "owner")
        texts = (("terms", PREFIX, False), ("first", FIRST, False), ("second", SECOND, True), ("third", THIRD, True))
        for name, ids, secret in texts:
            add_prefix(owner, "tiny", PrefixText(name, ids, secret, MASKED))
        yield deployment


def ask(
    held: Deployment,
    chunks: list[str],
    prefix: str | None,
    repair: float,
    retrieval: str = PUBLIC,
    candidates: list[str] | None = None,
) -> GenerationResult:
    choice = ChunkChoice(chunks, repair, retrieval, candidates)
    params = SamplingParams(NEW, ignore_eos=True)
    return held.client().generate(GenerationRequest(QUESTION, params, MASKED, model="tiny", prefix=prefix, chunks=choice))


def wanted(held: Deployment, ids: list[int]) -> list[int]:
    model = PlainModel(load_checkpoint(held.folder / "checkpoint"))
    return model.generate(ids, GenerationPlan(len(ids), NEW))


def test_all_repaired_are_the_whole_prompt_in_any_order(held: Deployment) -> None:
    for chunks, ids in ((["first", "second"], [*FIRST, *SECOND]), (["second", "first"], [*SECOND, *FIRST])):
        assert ask(held, chunks, "terms", 1.0).tokens == wanted(held, [*PREFIX, *ids, *QUESTION])
    assert ask(held, ["second"], None, 1.0).tokens == wanted(held, [*SECOND, *QUESTION])


def test_rows_are_loaded_once_and_a_question_costs_itself_and_the_repair(held: Deployment) -> None:
    results = [ask(held, ["first", "second"], "terms", 0.3) for _ in range(3)]
    assert len({tuple(one.tokens) for one in results}) == 1
    first, *others = [one.costs["party0"]["total"]["bytes_sent"] for one in results]
    assert others[0] == others[1] < first
    whole = held.client().generate(
        GenerationRequest([*PREFIX, *FIRST, *SECOND, *QUESTION], SamplingParams(NEW, ignore_eos=True), MASKED, model="tiny")
    )
    assert others[0] < 0.7 * whole.costs["party0"]["total"]["bytes_sent"]


def test_which_chunk_is_read_is_secret_among_those_of_one_length(held: Deployment) -> None:
    """Parties hear of the same session whichever is asked for; the answers are those of the chunks."""
    sent = []
    for name, ids in (("first", FIRST), ("third", THIRD)):
        assert ask(held, [name], "terms", 1.0, SECRET).tokens == wanted(held, [*PREFIX, *ids, *QUESTION])
        candidates = None if name == "first" else ["third", "first"]  # by default all of that length
        result = ask(held, [name], "terms", 0.4, SECRET, candidates)
        assert result.tokens == ask(held, [name], "terms", 0.4).tokens
        sent.append(result.costs["party0"]["total"]["bytes_sent"])
    again = ask(held, ["first"], "terms", 0.4, SECRET)
    sent.append(again.costs["party0"]["total"]["bytes_sent"])
    assert sent[0] > sent[1] == sent[2]  # the first of them loaded the candidates for all others
    with pytest.raises(ConfigurationError, match=r"second \(6\): candidates are as long as the chunk first, 5 tokens"):
        ask(held, ["first", "second"], None, 0.2, SECRET)
    with pytest.raises(ConfigurationError, match="third: not among the candidates"):
        ask(held, ["third"], None, 0.2, SECRET, ["first"])
    for retrieval, message in (
        (PUBLIC, "candidates: chunks are chosen among them in secret"),
        ("open", "retrieval = 'open'"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            ask(held, ["third"], None, 0.2, retrieval, ["third"])


def test_what_cannot_be(held: Deployment) -> None:
    with pytest.raises(ConfigurationError, match="prefix 'fourth': 0 of model 'tiny' fit; all parties hold: terms, first"):
        ask(held, ["first", "fourth"], None, 0.2)
    with pytest.raises(ConfigurationError, match=r"repair = 1\.5: the share of tokens"):
        ask(held, ["first"], None, 1.5)
    owner = held.config("model-owner", "owner")
    add_prefix(owner, "tiny", PrefixText("gone", [5, 6], False, MASKED))
    assert ask(held, ["gone"], None, 0.5).tokens
    remove_prefix(owner, "tiny", "gone")
    with pytest.raises(ConfigurationError, match="prefix 'gone': 0 of model"):
        ask(held, ["gone"], None, 0.5)
