"""Chunks behind a prefix, in plaintext and on shares: all computed again they are the whole prompt, else close to it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from launch.local.shares import KeptShares
from models.checkpoint import load_checkpoint
from models.chunks import ChunkPlan, load_chunks
from models.generation import GenerationPlan, PlainModel, generate
from models.masks import Places
from models.prefill import prefill
from models.prefixes import PrefixPlan, register
from models.shapes import SHAPES
from mpc.errors import ConfigurationError
from protocols.registry import SuiteSpec
from protocols.suite import Suite
from tests.models.test_prefixes import PROMPT, Roles, Rows, model_of

PREFIX, FIRST, SECOND, QUESTION = PROMPT[:3], PROMPT[3:8], PROMPT[8:14], PROMPT[14:]
NEW = 3
WHOLE = [*PREFIX, *FIRST, *SECOND, *QUESTION]


def plan_of(again: int, **more: Any) -> GenerationPlan:
    chunks = ChunkPlan((len(FIRST), len(SECOND)), again)
    return GenerationPlan(len(QUESTION), NEW, behind=len(PREFIX), chunks=chunks, **more)


def given(again: int) -> list[int]:
    """What a session computes: the first tokens of each chunk, and the question."""
    return [*FIRST[:again], *SECOND[:again], *QUESTION]


def stored(model: PlainModel, ids: list[int]) -> dict[str, Tensor]:
    rows, plan = Rows(), PrefixPlan(len(ids))
    model.suite.run(register(model.suite, model.decoder(), plan, torch.tensor(ids), KeptShares(), rows.keep))
    return rows.shares


def prepared(name: str, folder: Path) -> PlainModel:
    model = PlainModel(model_of(name, folder), torch.float64)
    model.blocks = [stored(model, ids) for ids in (PREFIX, FIRST, SECOND)]  # type: ignore[attr-defined]
    return model


def loaded(model: PlainModel, again: int) -> None:
    """Let the model hold what a session behind the chunks begins with."""
    blocks: Any = model.blocks  # type: ignore[attr-defined]
    chunks = plan_of(again).chunks
    assert chunks is not None
    load = load_chunks(model.suite, model.architecture, len(PREFIX), chunks, lambda number, name: blocks[number][name])
    model.weights = {**model.weights, **model.suite.run(load)}


def logits(model: PlainModel, again: int) -> Tensor:
    """Logits of the first token behind chunks."""
    loaded(model, again)
    plan, decoder = (
        plan_of(
            again,
        ),
        model.decoder(),
    )
    suite, ids = model.suite, given(again)

    async def run() -> Any:
        cache = decoder.begun(plan.behind, plan.chunks, plan.prompt_tokens)
        return await prefill(decoder, cache, suite.indices(len(ids), torch.tensor(ids), model.architecture.vocabulary))

    return suite.output(suite.run(run())).share[0]


@pytest.mark.parametrize("name", ["llama-grouped", "qwen3", "falcon-40b", "gpt-neox"])
def test_all_computed_again_is_the_whole_prompt(name: str, tmp_path: Path) -> None:
    model = prepared(name, tmp_path)
    wanted = model.logits(WHOLE)[-1]
    most = max(len(FIRST), len(SECOND))
    assert torch.allclose(logits(model, most), wanted, atol=1e-9)
    errors = [float((logits(model, again) - wanted).abs().mean()) for again in (0, 3)]
    assert errors[1] < errors[0] < float(wanted.std())
    assert errors[0] > 1e-4


@pytest.mark.parametrize(("suite", "parties", "again"), [("masked", 2, 0), ("masked", 3, 2), ("crypten", 2, 2)])
def test_on_shares_as_in_plaintext(suite: str, parties: int, again: int, tmp_path: Path) -> None:
    model = prepared("llama-grouped", tmp_path)
    roles = Roles(SuiteSpec(suite), load_checkpoint(tmp_path), parties)
    roles.load()
    blocks: list[dict[int | None, Rows]] = []
    for ids in (PREFIX, FIRST, SECOND):
        roles.stored = {}
        roles.register(ids)
        blocks.append(roles.stored)
    chunks = plan_of(again).chunks
    assert chunks is not None

    def program(running: Suite, party: int | None) -> None:
        def share(number: int, name: str) -> Tensor | None:
            return None if party is None else blocks[number][party].shares[name]

        roles.loaded[party] = running.run(load_chunks(running, model.architecture, len(PREFIX), chunks, share))

    roles.run(program)
    for _ in range(2):
        assert roles.answer(given(again), plan_of(again)) == plain_tokens(model, again)


def plain_tokens(model: PlainModel, again: int) -> list[int]:
    loaded(model, again)
    endpoint, plan, suite = KeptShares(), plan_of(again), model.suite
    suite.run(generate(suite, model.decoder(), plan, torch.tensor(given(again)), endpoint))
    return [int(share.share.round()) for share in endpoint.shares]


@pytest.mark.parametrize(
    ("name", "policy", "message"),
    [
        ("gpt2", "full", "'gpt2' has learned positions: a chunk's rows are right at their own place alone"),
        ("mistral-window", "full", "'mistral' has sliding windows, which chunks are not computed with"),
        ("llama-grouped", "streaming-llm:budget=0.5,sinks=2", "policy streaming-llm.*: chunks lie in the cache"),
    ],
)
def test_what_chunks_cannot_stand_in_is_refused_by_name(name: str, policy: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=message):
        plan_of(1, policy=policy).check(model_of(name, tmp_path).architecture)


def test_numbers_of_chunks() -> None:
    for lengths, again, message in (
        ((), 0, "1 to 64 of them"),
        ((3, 0), 0, "a token or more"),
        ((3,), -1, "again must be"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            ChunkPlan(lengths, again)
    with pytest.raises(ConfigurationError, match=r"from 0 to the 35 of the longest one, got 40"):
        ChunkPlan((35, 20), 40).asked()
    with pytest.raises(ConfigurationError, match=r"is one of 2 candidates or more, got 1: parties would know which it is"):
        ChunkPlan((35, 35), 4, 1).asked()
    assert ChunkPlan((35, 35), 40, 1).repaired == 70  # of a tape that was dealt before: told about, and never asked for
    assert ChunkPlan((2, 3), 1).places(1, 2) == Places((0, 2, 4, 5), (1, 3, 6, 7))
    assert ChunkPlan((2, 3), 1).places(1, 2).mask(3).int().tolist() == [
        [1, 1, 0, 0, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 1, 1, 0],
        [1, 1, 1, 1, 1, 1, 1, 1],
    ]
    with pytest.raises(ConfigurationError, match="positions"):
        replace(plan_of(0), behind=1000).check(SHAPES["tiny"])
