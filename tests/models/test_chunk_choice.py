"""Chunks chosen in secret among candidates: the answer of the same chunks in public, and nothing that depends on which."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from launch.local.shares import KeptShares, additive_shares
from models.checkpoint import load_checkpoint
from models.chunk_choice import load_blocks
from models.chunks import ChunkPlan
from models.costs.estimation import estimate
from models.costs.tracing import Setting
from models.decoder import Decoder
from models.generation import GenerationPlan, PlainModel, generate
from models.prefix_rows import LOAD_ROWS
from models.shapes import SHAPES
from mpc.errors import ConfigurationError
from protocols.registry import SuiteSpec
from protocols.suite import Suite
from tests.models.test_chunks import stored
from tests.models.test_prefixes import PROMPT, Roles, Rows, model_of

PREFIX, QUESTION = PROMPT[:3], PROMPT[13:]
CHUNKS = [PROMPT[3:8], PROMPT[8:13], [41, 7, 66, 12, 80]]
LENGTH = len(CHUNKS[0])
NEW = 3


def plan_of(slots: int, again: int, among: int, behind: int = len(PREFIX), **more: Any) -> GenerationPlan:
    return GenerationPlan(len(QUESTION), NEW, behind=behind, chunks=ChunkPlan((LENGTH,) * slots, again, among), **more)


def given(places: list[int], again: int) -> list[int]:
    """What a session gets: the first tokens of all candidates, which are chosen, and the question."""
    first = min(again, LENGTH)
    return [*(token for chunk in CHUNKS for token in chunk[:first]), *places, *QUESTION]


def plain_answer(model: PlainModel, blocks: list[dict[str, Tensor]], ids: list[int], plan: GenerationPlan) -> list[int]:
    suite, endpoint = model.suite, KeptShares()
    held = suite.run(load_blocks(suite, model.architecture, plan.behind, plan.chunks, lambda n, name: blocks[n][name]))
    model.weights = {**model.weights, **held}
    suite.run(generate(suite, model.decoder(), plan, torch.tensor(ids), endpoint))
    return [int(share.share.round()) for share in endpoint.shares]


def in_public(model: PlainModel, rows: list[dict[str, Tensor]], places: list[int], again: int, behind: int) -> list[int]:
    """The tokens behind the same chunks, in this order, where all know which they are."""
    chunks = ChunkPlan((LENGTH,) * len(places), again)
    ids = [*(token for place in places for token in CHUNKS[place][:again]), *QUESTION]
    blocks = [rows[0], *(rows[1 + place] for place in places)]
    return plain_answer(model, blocks, ids, GenerationPlan(len(QUESTION), NEW, behind=behind, chunks=chunks))


@pytest.mark.parametrize("name", ["llama-grouped", "gpt-neox"])
def test_chosen_in_secret_is_as_chosen_in_public(name: str, tmp_path: Path) -> None:
    model = PlainModel(model_of(name, tmp_path), torch.float64)
    rows = [stored(model, ids) for ids in (PREFIX, *CHUNKS)]
    for places, again in (([2, 0], 0), ([1, 2], 2), ([1, 1, 0], 4), ([0], 1)):
        secret = plain_answer(model, rows, given(places, again), plan_of(len(places), again, len(CHUNKS)))
        assert secret == in_public(model, rows, places, again, len(PREFIX))
    whole = [*PREFIX, *CHUNKS[2], *CHUNKS[0], *QUESTION]
    wanted = model.generate(whole, GenerationPlan(len(whole), NEW))
    assert plain_answer(model, rows, given([2, 0], LENGTH), plan_of(2, LENGTH, len(CHUNKS))) == wanted
    assert plain_answer(model, rows, given([1, 2], 1), plan_of(2, 1, len(CHUNKS), 0)) == in_public(model, rows, [1, 2], 1, 0)


class Held:
    """All roles, with a prefix and candidates registered and loaded for one plan."""

    def __init__(self, spec: SuiteSpec, parties: int, folder: Path, plan: GenerationPlan) -> None:
        self.plan = plan
        self.checkpoint = load_checkpoint(folder)
        self.roles = roles = Roles(spec, self.checkpoint, parties)
        roles.load()
        blocks: list[dict[int | None, Rows]] = []
        for ids in (PREFIX, *CHUNKS):
            roles.stored = {}
            roles.register(ids)
            blocks.append(roles.stored)

        def program(suite: Suite, party: int | None) -> tuple[int, int]:
            def share(number: int, name: str) -> Tensor | None:
                return None if party is None else blocks[number][party].shares[name]

            loading = load_blocks(suite, self.checkpoint.architecture, plan.behind, plan.chunks, share)
            roles.loaded[party] = suite.run(loading)
            cost = suite.ledger.total(LOAD_ROWS)
            return cost.rounds, cost.bytes_sent

        self.loading = roles.run(program)[0]

    def answer(self, places: list[int], again: int) -> list[int]:
        return self.roles.answer(given(places, again), self.plan)

    def counted(self, places: list[int], again: int) -> list[tuple[Any, ...]]:
        """What a party's prompt costs, by place and operation."""
        shares = dict(enumerate(additive_shares(torch.tensor(given(places, again)), self.roles.parties)))

        def program(suite: Suite, party: int | None) -> list[tuple[Any, ...]]:
            weights = {**self.roles.weights[party], **self.roles.loaded[party]}
            decoder = Decoder(suite, self.checkpoint.architecture, weights)
            share = None if party is None else shares[party]
            suite.run(generate(suite, decoder, self.plan, share, KeptShares()))
            found = suite.ledger.costs.items()
            return [(*key, x.rounds, x.bytes_sent, x.offline_bytes) for key, x in found if key[0].startswith("prefill")]

        found: list[tuple[Any, ...]] = self.roles.run(program)[self.roles.parties - 1]
        return found


@pytest.mark.parametrize(("suite", "parties", "again"), [("masked", 2, 0), ("masked", 3, 2), ("crypten", 2, 2)])
def test_on_shares_as_in_plaintext_and_loaded_once_for_all_choices(
    suite: str, parties: int, again: int, tmp_path: Path
) -> None:
    model = PlainModel(model_of("llama-grouped", tmp_path), torch.float64)
    rows = [stored(model, ids) for ids in (PREFIX, *CHUNKS)]
    held = Held(SuiteSpec(suite), parties, tmp_path, plan_of(2, again, len(CHUNKS)))
    for places in ([2, 0], [1, 1]):
        assert held.answer(places, again) == in_public(model, rows, places, again, len(PREFIX))


def test_costs_say_nothing_of_the_choice_and_are_predicted(tmp_path: Path) -> None:
    model_of("llama-grouped", tmp_path)
    again, plan = 2, plan_of(2, 2, len(CHUNKS))
    held = Held(SuiteSpec("masked"), 2, tmp_path, plan)
    first = held.counted([2, 0], again)
    assert held.counted([1, 1], again) == first
    a, setting = held.checkpoint.architecture, Setting("masked", behind=len(PREFIX), chunks=plan.chunks)
    found = estimate(a, setting, len(QUESTION), 1)
    fields = ("rounds", "bytes_sent", "offline_bytes")
    predicted = [round(found.first.total(name) - found.first.total(name, "choice")) for name in fields]
    assert [sum(row[-3 + n] for row in first) for n in range(3)] == predicted
    assert [found.load_prefix.total(name) for name in fields[:2]] == list(held.loading)
    of_choice = [sum(row[-3 + n] for row in first if "chunks" in row[0]) for n in range(2)]
    assert of_choice == [2, 8 * (2 * len(CHUNKS) + len(CHUNKS) * again) + 1]
    in_public = estimate(a, Setting("masked", behind=len(PREFIX), chunks=ChunkPlan((LENGTH,) * 2, again)), len(QUESTION), 1)
    more = [found.first.total(name) - in_public.first.total(name) for name in fields]
    slot = 2 * 8 * a.kv_heads * (LENGTH - again) * a.head_channels * a.layers
    assert more[0] == 2
    assert more[1] == 2 * slot + of_choice[1]


def test_costs_of_a_model_whose_layers_are_not_all_traced() -> None:
    a, chunks = SHAPES["llama-3.2-1b"], ChunkPlan((4, 4), 1, 3)
    secret, public = (
        estimate(a, Setting("masked", behind=2, chunks=one), 2, 1).first.total("bytes_sent")
        for one in (chunks, ChunkPlan((4, 4), 1))
    )
    assert secret - public == 2 * 2 * 8 * 3 * a.kv_heads * a.head_channels * a.layers + 8 * (2 * 3 + 3) + 1


def test_what_cannot_be_chosen() -> None:
    for lengths, among, message in (
        ((4, 5), 3, r"equally long, got \(4, 5\)"),
        ((4,), 2000, "at most 1024 candidates, got 2000"),
        ((4,), -1, "candidates, got -1"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            ChunkPlan(lengths, 1, among)
    assert plan_of(2, 2, 3).prompt_shape == (2 + len(QUESTION),)
    chunks = ChunkPlan((5, 5), 2, 3)
    assert (chunks.given, chunks.repaired, chunks.tokens) == (3 * 2 + 2, 4, 10)
