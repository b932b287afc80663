"""`mpcache quality --tasks`: prompts exact to the token, one pass for all policies, resume, mistakes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from launch.measure.quality.long_prompts import Frame
from launch.measure.quality.long_tasks import RARE, TASKS, Asked
from launch.measure.quality.prefilled import IN_STEP, Prefilled, PrefilledModel, Turn
from launch.measure.quality.task_page import page
from models.checkpoint import Checkpoint, load_checkpoint
from models.generation import GenerationPlan, PlainModel
from models.policies import parse
from models.policies.threshold import important
from models.tokenizer.chat_template import ChatTemplate
from mpc.errors import ConfigurationError
from tests.launch.conftest import Command
from tests.models.random_checkpoints import byte_tokenizer

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
POLICIES = [
    "full",
    "mpcache:preset=clusters,sinks=0,window=9,sharing=1",
    "mpcache:preset=paper,sharing=1,dynamic=0.3",
    "h2o",
]
POLICIES += ["snapkv:budget=0.3", "tova", "quest:skip=0", "ems:budget=0.3,window=9"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random LLaMA over bytes with grouped queries, two layers, 2,048 positions, and a chat template."""
    folder = tmp_path_factory.mktemp("tasks") / "tiny"
    torch.manual_seed(3)
    sizes = {"hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.3}
    config = LlamaConfig(vocab_size=256, **sizes, **heads, max_position_embeddings=2048, bos_token_id=1, eos_token_id=None)
    LlamaForCausalLM(config).save_pretrained(folder)
    byte_tokenizer(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    return folder


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Checkpoint:
    return load_checkpoint(folder)


def asked_of(task: str, tokens: int, number: int = 0) -> tuple[Asked, np.random.Generator]:
    rng = np.random.default_rng((5, number))
    return TASKS[task](rng, 0.25, tokens), rng


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("task", TASKS)
def test_a_prompt_has_the_length_asked_for_and_holds_the_task(task: str, chat: bool, checkpoint: Checkpoint) -> None:
    frame = Frame(checkpoint.tokenizer, ChatTemplate.load(checkpoint.directory) if chat else None)
    for number, tokens in enumerate((1500, 1501, 1999)):
        asked, rng = asked_of(task, tokens, number)
        ids = frame.prompt(asked, tokens, rng)
        assert len(ids) == tokens
        text = checkpoint.tokenizer.decode(ids)
        assert text.startswith("<user>" if chat else asked.instruction)
        assert text.endswith(("</s><assistant>" if chat else f"{asked.question}\n\n") + asked.begun)
        assert all(text.count(said) >= 1 for _, said in asked.placed)
        start, stop = text.index("\n\n") + 2, text.index(f"\n\n{asked.question}")
        if task in ("single", "keyed", "queried", "variables"):  # the first is where it should be, up to a sentence
            assert abs((text.index(asked.placed[0][1]) - start) / (stop - start) - 0.25) < 0.15
            assert all(len(re.findall(rf"\b{word}\b", text)) in (1, 2) for word in asked.wanted)
        assert asked.score([" ".join(wanted) for wanted in asked.every_wanted]) == 1
        assert asked.score([" ".join(asked.wanted), *("none" for _ in asked.later)]) == float(not asked.later)
    with pytest.raises(ConfigurationError, match=r"--lengths 90: the task needs \d+ tokens; raise it"):
        frame.prompt(asked, 90, rng)


def test_the_common_word_is_the_most_common(checkpoint: Checkpoint) -> None:
    asked, rng = asked_of("common", 1999)
    words = re.findall(r"\w+(?=,)", checkpoint.tokenizer.decode(Frame(checkpoint.tokenizer).prompt(asked, 1999, rng)))
    counts = {word: words.count(word) for word in {*words, *RARE}}
    assert max(counts, key=counts.__getitem__) == asked.wanted[0]
    assert counts[asked.wanted[0]] > 3 * sorted(counts.values())[-2]


def test_a_conversation_asks_for_what_is_in_the_text(checkpoint: Checkpoint) -> None:
    """`turns` asks for another number in every turn, `again` for the same one behind a long message."""
    for template in (None, ChatTemplate.load(checkpoint.directory)):
        frame = Frame(checkpoint.tokenizer, template)
        asked, rng = asked_of("turns", 1999)
        text = checkpoint.tokenizer.decode(frame.prompt(asked, 1999, rng))
        first = asked.placed[0][1]
        assert len(asked.later) == 2
        assert text.index(first) > 0.9 * text.index(asked.question)  # the prompt's own question is about the text's end
        for wanted, question in zip(asked.every_wanted, [asked.question, *(one.text for one in asked.later)], strict=True):
            key = question.split()[7]
            assert f"number for {key} is: {wanted[0]}." in text
        again, _ = asked_of("again", 1999)
        (later,) = again.later
        turn = checkpoint.tokenizer.decode(frame.turn(later))
        assert later.text.endswith(again.question)
        assert (later.begun, later.wanted) == (again.begun, again.wanted)
        assert len(turn) > 500
        around = ("</s><user>", f"</s><assistant>{later.begun}") if template else ("\n\n", f"\n\n{later.begun}")
        assert turn == f"{around[0]}{later.text}{around[1]}"
    assert asked.score([*(wanted[0] for wanted in asked.every_wanted[:2]), "none"]) == 0.5


def test_scores_count_whole_words() -> None:
    asked = Asked("", [], "", "", ("12345", "678"), 1)
    assert [asked.score([text]) for text in ("It is 12345.", "12345, 678", "123456 6789", "678")] == [0.5, 1, 0, 0.5]


def test_every_policy_answers_as_after_a_pass_of_its_own(checkpoint: Checkpoint) -> None:
    """Grouped queries, 150 tokens: answers and losses against `PlainModel`, which knows nothing of a common pass."""
    ids = torch.randint(3, 256, (160,), generator=torch.Generator().manual_seed(4)).tolist()
    model, plain = PrefilledModel(checkpoint), PlainModel(checkpoint)
    prompt = model.prefill(ids[:150])
    inside = "mpcache:preset=few-queries,sinks=2,window=4,sharing=1"
    policies = [*POLICIES, f"chunked:tokens=64|{inside}", f"batches:tokens=64|{inside}"]
    answers = model.answers(prompt, policies, 9)
    assert len(policies) > IN_STEP
    for policy, found in zip(policies, answers, strict=True):
        assert found == plain.generate(ids[:150], GenerationPlan(150, 9, policy=policy)), policy
    assert len(set(map(tuple, answers))) > 3
    rows = plain.logits(ids)[149:-1].double()
    wanted = torch.nn.functional.cross_entropy(rows, torch.tensor(ids[150:]), reduction="none").tolist()
    for fed in model.fed(prompt, ["full", "snapkv:budget=1"], ids[150:]):
        assert [token.loss for token in fed] == pytest.approx(wanted, abs=1e-4)
        assert [token.likeliest for token in fed] == (rows.argmax(-1) == torch.tensor(ids[150:])).tolist()
    few = model.answers(prompt, policies, 9, lambda given: given == answers[1][:3])  # some stop before the others
    assert few == [given[:3] if given[:3] == answers[1][:3] else given for given in answers]
    assert len(set(map(len, few))) == 2
    given = [5, 6, 7]
    for policy, (first, second) in zip(
        policies, model.conversations(prompt, policies, [Turn((), 2), Turn(given, 4)]), strict=True
    ):
        if policy == "full":
            whole = [*ids[:150], *first, *given]
            assert second == plain.generate(whole, GenerationPlan(len(whole), 4))
        assert (len(first), len(second)) == (2, 4)


def test_authors_scoring_by_their_definition_and_not_on_shares(checkpoint: Checkpoint) -> None:
    """Softmax of q k over all tokens, without scale and mask; mean over heads; any observed query decides."""
    rng = torch.Generator().manual_seed(1)
    q, k = torch.randn(2, 3, 5, 4, generator=rng), torch.randn(2, 30, 4, generator=rng)
    stay = important(q / 2, k, 0.05)  # a prompt's queries come divided by sqrt(4)
    wanted = []
    for token in range(30):
        means = []
        for row in range(5):
            heads = [np.exp(k[g].numpy() @ q[g, r, row].numpy()) for g in range(2) for r in range(3)]
            means.append(np.mean([h[token] / h.sum() for h in heads]))
        wanted.append(max(means) >= 0.05)
    assert stay.tolist() == wanted
    assert 0 < sum(wanted) < 30
    for text in (
        "mpcache:preset=clusters,scoring=authors,sharing=1",
        "full@0;mpcache:preset=clusters,scoring=authors,sharing=1",
    ):
        with pytest.raises(ConfigurationError, match=r"policy .*: scoring=authors is for comparisons in plaintext"):
            parse(text)
        with pytest.raises(ConfigurationError, match="cannot be computed on shares"):
            GenerationPlan(64, 2, policy=text)
    model = PrefilledModel(checkpoint)
    prompt: Prefilled = model.prefill(list(range(3, 153)))
    lengths = []
    for threshold in (1e-6, 1 / 149):
        _, cache, _ = model._begun(
            prompt, f"mpcache:preset=clusters,scoring=authors,sharing=1,observed=0.2,window=4,threshold={threshold}"
        )
        lengths.append([entry.length for entry in cache.layers])
    assert all(0 < few < many <= 150 for few, many in zip(lengths[1], lengths[0], strict=True))


def test_the_command_goes_on_where_it_was_left(
    command: Command, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = []
    real = PrefilledModel.prefill

    def prefill(self: PrefilledModel, ids: Any, progress: Any = None) -> Prefilled:
        passes.append(len(ids))
        if len(passes) == 2:
            raise KeyboardInterrupt
        return real(self, ids, progress)

    monkeypatch.setattr(PrefilledModel, "prefill", prefill)
    (tmp_path / "text.txt").write_text("To be, or not to be. " * 60)
    asked = ["quality", "--model", folder, "--tasks", "single,perplexity", "--lengths", "1000", "--questions", "1"]
    asked += ["--text", tmp_path / "text.txt"]
    asked += ["--budgets", "0.1", "--out", tmp_path / "r", "--json", "--policies"]
    first = command(*asked, "full mpcache:preset=clusters,sharing=1")
    assert first.code != 0
    assert len(list((tmp_path / "r" / "answers").glob("*.json"))) == 1
    assert not list((tmp_path / "r" / "answers").glob("*.part"))
    found = command(*asked, "full mpcache:preset=clusters,sharing=1")
    assert (found.code, found.err.strip()) == (0, "")
    assert passes == [1000] * 3  # one, one that was stopped, the one that was missing
    record = json.loads(found.out)
    assert command(*asked, "full mpcache:preset=clusters,sharing=1").code == 0
    assert command(*asked, "full snapkv").code == 0
    assert passes == [1000] * 5  # another policy needs the prompts' passes, what is there is not asked again
    assert json.loads((tmp_path / "r" / "results.json").read_text())["settings"]["policies"] == ["full", "snapkv:budget=0.1"]
    assert [(row["policy"], row["problem"], row["prompts"]) for row in record["rows"]] == [
        ("full", None, 1),
        ("mpcache:preset=clusters,sharing=1,dynamic=0.1", None, 1),
    ]
    full, mpcache = record["rows"]
    assert set(full["scores"]) == {"single"}
    assert full["perplexity"] > 1
    assert 0 < mpcache["sent"] < full["sent"]
    text = page(record)
    assert f"| `full` |  | {full['scores']['single']:.3g} | {full['perplexity']:.3f} | {full['rounds']} |" in text
    for answers in (tmp_path / "r" / "answers").glob("*.json"):
        answers.write_text("{}")
    broken = command(*asked, "full")
    assert broken.code == 2
    assert "is not what an earlier start has written; move it away" in " ".join(broken.err.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "needles"], "--tasks 'needles': name each once, all or some of single, keyed, queried"),
        (["--tasks", "single", "--needle"], "--tasks does not go with --needle"),
        (["--tasks", "single", "--form", "letter"], "--form 'letter': one of auto, chat, plain is needed"),
        (["--tasks", "single", "--lengths", "2000"], "--lengths 2000: with 64 more tokens needs 2064 positions"),
        (["--tasks", "single", "--lengths", "100"], "--lengths 100: the task needs"),
        (["--tasks", "again", "--lengths", "1900"], "--lengths 1900: the task again needs"),
        (
            ["--tasks", "single", "--lengths", "1000", "--policy", "mpcache:preset=new"],
            "preset = 'new' must be one of few-queries, each-head, clusters, paper",
        ),
    ],
)
def test_mistakes_are_named(arguments: list[str], message: str, command: Command, folder: Path) -> None:
    done = command("quality", "--model", folder, *arguments)
    assert (done.code, done.out) == (2, "")
    assert message in " ".join(done.err.split())


def test_the_page_in_the_documentation_is_made_from_its_results() -> None:
    for folder in (Path(__file__).parents[3] / "docs" / "quality").glob("real*"):
        record = json.loads((folder / "results.json").read_text())
        assert (folder / "results.md").read_text() == page(record)


def test_the_paper_is_a_preset_that_options_override() -> None:
    paper = parse("mpcache:preset=paper")
    assert parse(paper.spec) == paper
    assert "fine=16,coarse=32,sinks=16,window=16,gathering=rows" in paper.spec
    few = parse("mpcache:preset=few-queries")
    changed = parse("mpcache:fine=9,preset=few-queries")
    assert changed.spec == few.spec + ",fine=9"
    assert parse("mpcache:preset=each-head") == parse("mpcache:preset=few-queries,sharing=1,per_head=true")
