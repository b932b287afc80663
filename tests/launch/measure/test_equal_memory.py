"""`mpcache quality --memory`: budgets by bytes, answers and what is fed against `PlainModel`, conversations, mistakes."""

from __future__ import annotations

import json
from math import exp
from pathlib import Path

import pytest
import torch

import models.recall
from launch.measure.quality.budgets import policy_texts, with_budget
from launch.measure.quality.equal_memory import MEMORY, EqualMemory, MemorySettings
from launch.measure.quality.memory_page import page
from launch.measure.quality.prompts import Lists
from models.checkpoint import Checkpoint, load_checkpoint
from models.costs.cached import cache_bytes
from models.episodes import with_probes
from models.generation import GenerationPlan, PlainModel
from models.recall import questions as lists
from tests.launch.conftest import Command
from tests.tools import headlines

RECALL = Path(models.recall.__file__).parent
LENGTH = 256


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return load_checkpoint(RECALL / "gpt2_questions")


def runs(checkpoint: Checkpoint, policies: list[str], share: float, turns: bool = False) -> EqualMemory:
    return EqualMemory(checkpoint, Lists(), MemorySettings(policies, [share], [LENGTH], 1, [3], turns=turns))


def test_budgets_are_the_largest_ones_within_the_bytes(checkpoint: Checkpoint) -> None:
    run = runs(checkpoint, [], 0.3)
    most = 0.3 * run.bytes_of("full", LENGTH)
    assert run.bytes_of("full", LENGTH) == cache_bytes(checkpoint.architecture, LENGTH, 2)
    budgets = {}
    for text in ("snapkv", "mpcache", "think:keep=0.5|snapkv", "lag:every=32|h2o"):
        (held,) = run.held(text, LENGTH)
        assert held.one.budget is not None
        budgets[text] = held.one.budget
        assert 0.98 * most < held.held <= most
        if held.held < 0.995 * most:
            assert run.bytes_of(with_budget(text, held.one.budget + 1 / LENGTH, MEMORY), LENGTH) > most
    assert budgets["think:keep=0.5|snapkv"] > budgets["snapkv"]  # fewer channels, more tokens
    (held,) = run.held("quest", LENGTH)
    assert (held.share, held.held, held.one.policy) == (None, run.bytes_of("full", LENGTH), "quest")
    (held,) = run.held("mikv", LENGTH)
    assert "policy mikv: takes 0.5" in held.problem
    assert held.problem.endswith("of the full cache's bytes at least, at 256 tokens; 0.3 is less")


def test_answers_are_those_of_the_model(checkpoint: Checkpoint) -> None:
    (full, small) = runs(checkpoint, ["snapkv"], 0.2).run()
    plain = PlainModel(checkpoint)
    (prompt,) = Lists().prompts(LENGTH, 1, 3)
    assert prompt.answer is not None
    for row in (full, small):
        given = plain.generate(prompt.ids, GenerationPlan(LENGTH, len(prompt.answer) + 1, policy=row["policy"]))
        assert row["seeds"][0]["recall"] == prompt.right(given) / 8
    rows = plain.logits([*prompt.ids, *prompt.answer])[LENGTH - 1 : -1].double()
    wanted = torch.nn.functional.cross_entropy(rows, torch.tensor(prompt.answer))
    assert full["seeds"][0]["perplexity"] == pytest.approx(exp(float(wanted)), rel=1e-4)
    likeliest = (rows.argmax(-1) == torch.tensor(prompt.answer))[1::3]
    assert full["seeds"][0]["fed"] == float(likeliest.double().mean())
    assert small["share"] < 0.2 < full["share"] == 1


def test_a_conversation_asks_for_other_names_then_for_the_first_ones_again(checkpoint: Checkpoint) -> None:
    (full,) = runs(checkpoint, [], 0.5, turns=True).run()
    (turns,) = Lists().conversations(LENGTH, 1, 3)
    (whole,) = Lists().prompts(LENGTH, 1, 3)
    assert whole.names is not None
    assert [one.names for one in turns] == [whole.names[:2], whole.names[2:4], whole.names[4:6], whole.names[:2]]
    text = [lists.VOCABULARY[n] for n in turns[1].ids]
    names = [lists.VOCABULARY[n] for n in whole.names]
    assert text == ["Questions", names[2], "?", names[3], "?", "Answers", names[2]]
    plain, ids, right = PlainModel(checkpoint), list[int](), []
    for one in turns:
        ids += one.ids
        given = plain.generate(ids, GenerationPlan(len(ids), 6))
        ids += [token for token in given if token not in checkpoint.architecture.eos]
        right.append(one.right(given))
    assert full["seeds"] == [{"later": sum(right[1:3]) / 4, "again": right[3] / 2, "seed": 3}]


def test_each_turn_of_a_policy_with_probes_is_a_session_about_its_own_episode(checkpoint: Checkpoint) -> None:
    policy = "epicache:budget=0.4,probe_tokens=12,last=8"
    found = runs(checkpoint, [policy], 0.5, turns=True).run()[1]
    plain, ids, right = PlainModel(checkpoint), list[int](), []
    for one in Lists().conversations(LENGTH, 1, 3)[0]:
        ids += one.ids
        asked = with_probes(ids, 12)
        given = plain.generate(asked, GenerationPlan(len(asked), 6, policy=policy))
        ids += [token for token in given if token not in checkpoint.architecture.eos]
        right.append(one.right(given))
    assert sum(right) > 0
    assert found["seeds"] == [{"later": sum(right[1:3]) / 4, "again": right[3] / 2, "seed": 3}]


def test_the_command_keeps_results_and_page(command: Command, tmp_path: Path) -> None:
    asked = ["quality", "--model", RECALL / "gpt2_questions", "--memory", "0.3", "--lengths", "128", "--questions", "1"]
    asked += ["--seeds", "0,7", "--policies", "streaming-llm layers:weights=1 2 1*2|snapkv", "--out", tmp_path]
    found = command(*asked)
    assert (found.code, found.err.strip()) == (0, "")
    record = json.loads((tmp_path / "results.json").read_text())
    rows = {row["asked"]: row for row in record["rows"]}
    assert list(rows) == ["full", "streaming-llm", "layers:weights=1 2 1*2|snapkv"]
    assert [seed["seed"] for seed in rows["full"]["seeds"]] == [0, 7]
    text = (tmp_path / "results.md").read_text()
    assert text == page(record)
    assert "| `layers:weights=1 2 1*2\\|snapkv` |" in text
    assert (tmp_path / "memory.png").stat().st_size > 1000
    again = command(*asked)
    assert again.code == 2
    assert "results.json exists already" in " ".join(again.err.split())


def test_numbers_belong_to_the_policy_before() -> None:
    assert policy_texts(["full a:b=1.0 2.1|c", "d"]) == ["full", "a:b=1.0 2.1|c", "d"]


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        ("gpt2", ["--memory", "0"], "--memory 0: a share of the full cache's bytes is above 0 and up to 1"),
        ("gpt2", ["--memory", "0.1", "--needle"], "--memory does not go with --needle; leave one of them out"),
        ("gpt2", ["--memory", "0.1", "--turns"], "--turns: the recall task is codes; use a model of question lists"),
        ("gpt2", ["--memory", "0.1", "--seeds", "-1"], "--seeds '-1': whole numbers from 0 on are needed"),
        ("gpt2", ["--turns"], "--turns and --seeds go with --memory"),
        ("gpt2_questions", ["--memory", "0.1", "--lengths", "2048"], "--lengths 2048"),
    ],
)
def test_mistakes_are_named(model: str, arguments: list[str], message: str, command: Command) -> None:
    done = command("quality", "--model", RECALL / model, *arguments)
    assert (done.code, done.out) == (2, "")
    assert message in " ".join(done.err.split())


def test_pages_in_the_documentation_are_made_from_their_results() -> None:
    """With the table of what systems are known for, whose reasons belong to relations that do not hold."""
    for name in ("memory", "memory_long", "turns"):
        record = json.loads((headlines.QUALITY / name / "results.json").read_text(encoding="utf-8"))
        assert (headlines.QUALITY / name / "results.md").read_text(encoding="utf-8") == page(record)
    assert headlines.WHERE.read_text(encoding="utf-8") == headlines.text()
