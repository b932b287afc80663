"""The task of question lists: documents and answers against a reader of the text, and the shipped model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from models.checkpoint import load_checkpoint
from models.generation import GenerationPlan, PlainModel
from models.policies import parse
from models.recall import questions as docs
from models.recall.documents import HELD_OUT, TRAINING, make_rng
from models.recall.train_questions import answer_targets, guide_rows, training_layout

MODEL = Path(__file__).parents[2] / "models" / "recall" / "gpt2_questions"


def read(words: list[str]) -> tuple[dict[str, str], dict[str, str], list[str]]:
    """Records, quotes and asked names of a prompt, as a reader finds them."""
    start = words.index("Questions")
    body = words[:start]
    pairs = {mark: {body[n - 1]: body[n + 1] for n, word in enumerate(body) if word == mark} for mark in (":", "?")}
    assert sum(body.count(mark) for mark in (":", "?")) == sum(len(found) for found in pairs.values())  # each name once
    assert words[-2] == "Answers"
    asked = words[start + 1 : -2]
    assert asked[1::2] == ["?"] * (len(asked) // 2)
    return pairs[":"], pairs["?"], asked[::2]


@pytest.mark.parametrize("length", [32, 100, 256, 1023, 1024])
def test_prompts_are_exact_and_answers_right(length: int) -> None:
    for case in docs.evaluation_cases(length, 4, seed=3):
        words = case.prompt.split()
        records, quotes, asked = read(words)
        mixture = docs.evaluation_mixture(length)
        assert len(words) == length
        assert (len(records), len(quotes), len(asked)) == (mixture.records, mixture.quotes, mixture.questions)
        assert tuple(asked) == case.names
        assert words[-1] == asked[0]
        assert case.values == tuple(records[name] for name in asked)
        answer = " ".join(f"{name} ? {records[name]}" for name in asked)
        assert f"{asked[0]} {case.answer}" == answer
        assert len(case.answer.split()) + 1 == docs.answer_tokens(length)
        assert not set(asked) & set(quotes)
        assert all(records[name] == value for name, value in quotes.items())
        where = [words.index(name) + 2 for name in asked]
        end = words.index("Questions")
        assert case.positions == pytest.approx([place / end for place in where])
        assert set(words) <= set(docs.VOCABULARY)


def test_most_of_a_long_prompt_is_filler() -> None:
    words = docs.evaluation_cases(1024, 1)[0].prompt.split()
    filler = {word for kind in (7, 8, 9, 10, 11, 12) for word in docs.KINDS[kind]}
    assert sum(word in filler for word in words) > 0.6 * 1024


def test_depths_place_the_asked_records() -> None:
    for depth in (0.0, 0.5, 1.0):
        (case,) = docs.evaluation_cases(512, 1, seed=1, depth=depth)
        assert len(case.prompt.split()) == 512
        assert all(abs(position - depth) < 0.16 for position in case.positions)


def test_splits_are_reproducible_and_apart() -> None:
    assert docs.evaluation_cases(64, 3, seed=5) == docs.evaluation_cases(64, 3, seed=5)
    assert docs.evaluation_cases(64, 3, seed=5) != docs.evaluation_cases(64, 3, seed=6)
    training = docs.make_case(make_rng(5, TRAINING), 64)
    assert training.prompt not in {case.prompt for case in docs.evaluation_cases(64, 50, seed=5)}
    assert docs.make_case(make_rng(5, HELD_OUT), 64) == docs.evaluation_cases(64, 1, seed=5)[0]


def test_recalled_counts_names_with_their_values() -> None:
    ids = docs.TOKEN_IDS
    names, values = [ids[n] for n in ("Abel", "Bohr", "Curie")], [ids[v] for v in ("anchor", "copper", "kettle")]

    def count(text: str) -> int:
        return docs.recalled(names, values, docs.encode(text))

    assert count("? anchor Bohr ? copper Curie ? kettle <eos>") == 3
    assert count("? anchor Curie ? kettle Bohr ? kettle") == 2
    assert count("? copper Bohr ? copper Bohr ? kettle Curie kettle") == 1
    assert count("? copper Abel ? anchor") == count("") == 0  # the first value of a name counts


@pytest.mark.parametrize(
    ("length", "mixture"),
    [
        (64, docs.Mixture(0, 2, 0)),
        (64, docs.Mixture(3, 2, 0)),
        (64, docs.Mixture(2, 3, 2)),
        (docs.Mixture(2, 4, 1).tokens - 1, docs.Mixture(2, 4, 1)),
        (docs.Mixture(2, 4, 1).tokens + 3, docs.Mixture(2, 4, 1)),
    ],
)
def test_mixtures_that_do_not_fit(length: int, mixture: docs.Mixture) -> None:
    with pytest.raises(ValueError, match=r"asked records|cannot hold"):
        docs.make_layout(make_rng(0, TRAINING), length, mixture)


@pytest.mark.parametrize("length", [8, 30_000])
def test_prompts_of_other_lengths(length: int) -> None:
    with pytest.raises(ValueError, match="a prompt has 32 to"):
        docs.make_case(make_rng(0, TRAINING), length)


def test_guides_point_at_what_an_answer_needs() -> None:
    """Every guided lookup of the answer looks at the token that comes next, or, from a name's value, at the next name."""
    rng = make_rng(2, TRAINING)
    for length in (128, 300):
        layout = training_layout(rng, length)
        ids = docs.draw(rng, layout, 2)
        lookup = next(rows for rows in guide_rows(rng, layout, 8) if rows.lookup)
        for query, key in zip(lookup.queries.tolist(), lookup.keys.tolist(), strict=True):
            assert key < query
            follows = layout.kinds[query + 1]
            if query >= layout.prompt or follows == docs.K_VALUE:
                wanted = ids[:, query + 1] if follows != docs.K_EOS else np.full(2, docs.TOKEN_IDS[docs.END])
                assert (ids[:, key] == wanted).all()
        where, wanted_ids = answer_targets(layout, torch.from_numpy(ids))
        assert (wanted_ids.numpy() == ids[:, where.numpy() + 1]).all()


def test_the_shipped_tokenizer_is_the_tasks() -> None:
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    case = docs.evaluation_cases(256, 1)[0]
    assert tokenizer.encode(case.prompt).ids == docs.encode(case.prompt)
    assert tokenizer.decode(docs.encode(case.prompt)) == case.prompt


def recall(model: PlainModel, cases: list[docs.Case], policy: str) -> float:
    right = 0
    for case in cases:
        prompt = docs.encode(case.prompt)
        given = model.generate(prompt, GenerationPlan(len(prompt), docs.answer_tokens(len(prompt)), "greedy", policy))
        ids = docs.TOKEN_IDS
        right += docs.recalled([ids[n] for n in case.names], [ids[v] for v in case.values], given)
    return right / sum(len(case.names) for case in cases)


def test_the_longer_model_reads_prompts_of_2048_tokens() -> None:
    """One held-out prompt, 16 questions; at 4,096 tokens see docs/quality/memory_long."""
    folder = MODEL.with_name("gpt2_questions_long")
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 6_000_000
    checkpoint = load_checkpoint(folder)
    assert checkpoint.architecture.positions >= 4096 + docs.answer_tokens(4096)
    model, cases = PlainModel(checkpoint), docs.evaluation_cases(2048, 1, seed=1)
    assert recall(model, cases, "full") == 1.0
    assert recall(model, cases, "batches:tokens=512|snapkv:budget=0.2") >= 14 / 16
    assert recall(model, cases, "h2o:budget=0.05") <= 0.5


def test_the_shipped_model_tells_policies_apart() -> None:
    """Three held-out prompts of 1,024 tokens, 48 questions."""
    assert (MODEL / "model.safetensors").stat().st_size <= 4_000_000
    assert set(json.loads((MODEL / "training.json").read_text())) == {"arguments", "stages"}
    checkpoint = load_checkpoint(MODEL)
    assert checkpoint.architecture.layers >= 4
    parse("mpcache:preset=clusters").check(checkpoint.architecture, 1024)
    model, cases = PlainModel(checkpoint), docs.evaluation_cases(1024, 3, seed=1)
    full = recall(model, cases, "full")
    assert full >= 47 / 48
    assert recall(model, cases, "mpcache:preset=clusters") >= full - 0.021
    assert recall(model, cases, "mpcache") >= full - 0.021
    assert recall(model, cases, "mpcache:preset=clusters,fine=4,coarse=8,dynamic=0.05") >= full - 0.05
    assert recall(model, cases, "snapkv:budget=0.05") <= 0.6
