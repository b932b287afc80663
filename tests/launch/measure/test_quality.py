"""`mpcache quality`: measures against brute force and transformers, LongBench's metrics, plots, JSON, mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from launch.measure.quality import metrics, sweep
from launch.measure.quality.budgets import contenders, with_budget
from launch.measure.quality.longbench import load_tasks, prompt_of
from launch.measure.quality.prompts import Codes, Prompt
from launch.measure.quality.runner import Kept, Runner
from launch.measure.selection_trace import Agreement, Decision, agreement
from models.checkpoint import load_checkpoint
from models.recall import documents as docs
from mpc.errors import ConfigurationError, EnvironmentProblem
from tests.models import random_checkpoints

RECALL = Path(__file__).parents[3] / "models" / "recall" / "gpt2"
PROMPT, NEW = 20, 4


class Case:
    """A random model, a prompt with forced further tokens, and transformers' attention probabilities by layer."""

    def __init__(self, name: str, folder: Path) -> None:
        self.model = random_checkpoints.save(name, folder)
        self.ids = random_checkpoints.prompt(self.model, PROMPT + NEW)
        with torch.inference_mode():
            found = self.model(torch.tensor([self.ids]), output_attentions=True)
        self.logits: Tensor = found.logits[0]
        self.attentions: list[Tensor] = [layer[0] for layer in found.attentions]  # [H, T, T]
        self.runner = Runner(load_checkpoint(folder))

    def watch(self, policy: str) -> Kept:
        """The last token is generated and not decoded any more."""
        kept = self.runner.probe(self.ids[:PROMPT], [*self.ids[PROMPT:], 5], policy)
        assert kept is not None
        return kept


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case("gpt2", tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="module")
def grouped(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case("llama-grouped", tmp_path_factory.mktemp("llama"))


STEPS = range(PROMPT, PROMPT + NEW)


def test_the_full_cache_keeps_all_attention(gpt2: Case, grouped: Case, tmp_path: Path) -> None:
    window = Case("mistral-window", tmp_path)
    for case in (gpt2, grouped, window):
        for policy in ("full", "chunked:tokens=7|full"):
            found = case.watch(policy)
            assert found.mass == pytest.approx((1.0, 1.0), abs=1e-6)
    assert gpt2.watch("full").attended == gpt2.watch("full").kept == sum(t + 1 for t in STEPS) / NEW
    assert window.watch("full").attended == window.watch("full").kept == 5
    for policy in (
        "tova:budget=1",
        "h2o:budget=1",
        "quest:budget=1",
        "mpcache:preset=clusters,static=1,dynamic=1,sharing=1",
    ):
        assert grouped.watch(policy).mass == pytest.approx((1.0, 1.0), abs=1e-6)


def test_streaming_keeps_the_attention_of_sinks_and_window(gpt2: Case, grouped: Case) -> None:
    for case in (gpt2, grouped):
        found = case.watch("streaming-llm:budget=0.3,sinks=2")  # 6 of 20 tokens
        for layer, p in enumerate(case.attentions):
            wanted = [p[:, t, [0, 1, *range(t - 3, t + 1)]].sum(-1).mean() for t in STEPS]
            assert found.mass[layer] == pytest.approx(float(sum(wanted) / NEW), abs=1e-5)
        assert (found.attended, found.kept) == (6, 6)


@pytest.mark.parametrize("policy", ["dynamic-top-k:budget=0.25", "quest:page=1,skip=0,budget=0.25"])
def test_choosing_policies_keep_the_attention_of_the_highest(gpt2: Case, policy: str) -> None:
    """Pages of one token are ranked by the scores themselves."""
    found = gpt2.watch(policy)
    for layer, p in enumerate(gpt2.attentions):
        wanted = [p[:, t, : t + 1].topk(round(0.25 * (t + 1))).values.sum(-1).mean() for t in STEPS]
        assert found.mass[layer] == pytest.approx(float(sum(wanted) / NEW), abs=1e-5)
    assert found.attended == sum(round(0.25 * (t + 1)) for t in STEPS) / NEW
    assert found.kept == sum(t + 1 for t in STEPS) / NEW


def test_evicted_tokens_do_not_count(grouped: Case) -> None:
    """TOVA simulated on transformers' probabilities: one set a layer, the least attended goes after every token."""
    found = grouped.watch("tova:budget=0.4")
    for layer, p in enumerate(grouped.attentions):
        alive = sorted(p[:, PROMPT - 1, :PROMPT].sum(0).topk(8).indices.tolist())
        masses = []
        for t in STEPS:
            alive.append(t)
            now = p[:, t, alive]
            masses.append(now.sum(-1).mean())
            received = (now / now.sum(-1, keepdim=True)).sum(0)
            alive.pop(int(received.argmin()))
        assert found.mass[layer] == pytest.approx(float(sum(masses) / NEW), abs=1e-5)
    assert (found.attended, found.kept) == (9, 9)


def test_perplexity_of_the_full_cache_is_that_of_transformers(gpt2: Case, grouped: Case) -> None:
    for case in (gpt2, grouped):
        losses = case.runner.losses(case.ids, PROMPT, "full")
        rows = case.logits[PROMPT - 1 : -1].double()
        wanted = torch.nn.functional.cross_entropy(rows, torch.tensor(case.ids[PROMPT:])).exp().item()
        assert len(losses) == NEW
        assert metrics.perplexity(losses) == pytest.approx(wanted, rel=1e-4)
        assert case.runner.losses(case.ids, PROMPT, "chunked:tokens=7|full") == pytest.approx(losses, rel=1e-4)
        evicted = case.runner.losses(case.ids, PROMPT, "tova:budget=0.2")
        assert evicted[0] == pytest.approx(losses[0], rel=1e-4)  # the prompt's own last row
        assert evicted[1:] != pytest.approx(losses[1:], rel=1e-3)


def test_a_watched_answer_of_one_token_has_no_step(gpt2: Case) -> None:
    assert gpt2.runner.probe(gpt2.ids[:PROMPT], [5], "full") is None


def test_a_prompt_that_loses_tokens_within_is_not_watched(gpt2: Case) -> None:
    """Its later tokens are not the full cache's; its losses are measured as any others."""
    policy = "batches:tokens=8,ahead=4|tova:budget=0.4"
    assert gpt2.runner.probe(gpt2.ids[:PROMPT], [5, 6], policy) is None
    assert len(gpt2.runner.losses(gpt2.ids, PROMPT, policy)) == NEW


def test_agreement_and_recall() -> None:
    assert sweep.agreement([[1, 2, 3], [4]], [[1, 2, 3], [4]]) == (1.0, 1.0)
    assert sweep.agreement([[1, 2, 3], [4, 5]], [[1, 9, 3, 7], [4, 5]]) == (4 / 6, 1 / 2)
    asked = [Prompt([0], [1, 2]), Prompt([0], [3, 4]), Prompt([0], [5, 6])]
    assert sweep.recall(asked, [[1, 2, 9], [3, 5], [5]]) == pytest.approx(1 / 3)


def test_budgets_go_where_they_are_open() -> None:
    assert with_budget("full", 0.1) == "full"
    assert with_budget("tova", 0.1) == "tova:budget=0.1"
    assert with_budget("mpcache:preset=clusters,sharing=1", 0.25) == "mpcache:preset=clusters,sharing=1,dynamic=0.25"
    assert with_budget("h2o:budget=0.5", 0.1) == "h2o:budget=0.5"
    assert with_budget("chunked:tokens=9|full@0-1;quest:skip=0", 0.1) == "chunked:tokens=9|full@0-1;quest:skip=0,budget=0.1"
    assert with_budget("tova@0;h2o", 0.1) == "tova:budget=0.1@0;h2o:budget=0.1"
    found = contenders(["full", "tova", "h2o:budget=0.5"], [0.1, 0.2])
    assert [(c.asked, c.budget) for c in found] == [
        ("full", None),
        ("tova", 0.1),
        ("tova", 0.2),
        ("h2o:budget=0.5", None),
    ]


def test_needles_lie_where_they_are_asked_for() -> None:
    for depth, place in ((0.0, 0), (0.5, 4), (1.0, 8)):
        (prompt,) = Codes().prompts(70, 1, 3, depth)
        words = [docs.VOCABULARY[n] for n in prompt.ids]
        records = [n for n, word in enumerate(words) if word == docs.COLON][:-1]
        assert len(prompt.ids) == 70
        assert len(records) == 9
        assert words[records[place] - 1] == words[-2]
        assert prompt.ids[records[place] + 1 : records[place] + 5] == prompt.wanted


def test_metrics() -> None:
    assert metrics.qa_f1("The quick, brown fox!", "a quick red fox") == pytest.approx(2 / 3)
    assert metrics.qa_f1("none of it", "a quick red fox") == 0
    # reference words {a b c d e f}, given {a c e x}; first sentences share "a c", second ones "e"
    assert metrics.rouge_l("a c x. e", "a b c. d e f.") == pytest.approx(2 * 0.75 * 0.5 / 1.25)
    assert metrics.rouge_l("", "a") == metrics.rouge_l(". .", "a") == 0
    assert metrics.rouge_l("same words here", "same words here") == pytest.approx(1)
    classes = ["Number", "Other number", "City"]
    assert metrics.classification("Number or City", "City", classes) == 0.5
    assert metrics.classification("City", "City", classes) == 1
    assert metrics.classification("Other number", "City", classes) == 0
    assert metrics.classification("class b2", "class b2", ["b2", "class b2"]) == 1  # a name inside the right one
    assert metrics.retrieval("Paragraph 3, or 4", "Paragraph 3") == 0.5
    assert metrics.retrieval("none", "Paragraph 3") == 0
    assert metrics.retrieval_zh("段落7", "段落7") == 1
    assert metrics.count("There are 7 of 9, so 7", "7") == pytest.approx(2 / 3)
    # "abcd" and "bcde": 2 * 3 / 8
    assert metrics.code_similarity("\n# note\nabcd\nrest", "bcde") == 0.75
    assert metrics.score("trec", "\nCity\nNumber", ["City"], classes) == 1
    assert metrics.score("hotpotqa", "yes", ["no", "Yes."], ()) == 1


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(metrics, "import_module", missing)
    with pytest.raises(EnvironmentProblem, match="package jieba, which is not installed"):
        metrics.check_metric("dureader")
    metrics.check_metric("lsht")


GOOD = {"input": "Who?", "context": "It was Anna.", "answers": ["Anna"], "dataset": "hotpotqa_e", "length": 3, "_id": "1"}


def lines(path: Path, *records: Any) -> Path:
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in records) + "\n")
    return path


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{", r"line 2: is not JSON \(.* at column 2\)"),
        ([1], r"line 2: is not a JSON object but list"),
        ({k: v for k, v in GOOD.items() if k != "context"}, r"line 2: the field 'context' is missing"),
        ({**GOOD, "input": 3}, r"line 2: 'input' must be str, got int"),
        ({**GOOD, "answers": []}, r"line 2: 'answers' is empty"),
        ({**GOOD, "answers": [1]}, r"line 2: 'answers' must be a list of texts"),
        ({**GOOD, "dataset": "mine"}, r"line 2: unknown dataset 'mine'; known: narrativeqa"),
        ({**GOOD, "dataset": "trec", "all_classes": None}, r"line 2: dataset 'trec' needs 'all_classes'"),
    ],
)
def test_bad_lines(tmp_path: Path, bad: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        load_tasks(lines(tmp_path / "x.jsonl", GOOD, bad))


def test_prompts_of_lines(tmp_path: Path, text_model: Path) -> None:
    checkpoint = load_checkpoint(text_model)
    (task,) = load_tasks(lines(tmp_path / "x.jsonl", {**GOOD, "context": "{input} " + "x" * 20 + "y" * 20, "input": "Q"}))
    assert (task.dataset, task.new_tokens) == ("hotpotqa", 32)
    encode = checkpoint.tokenizer.encode
    assert prompt_of(checkpoint, task, "{input}|{context}", 0, True)[:6] == encode("Q|{inp")
    whole = encode("{input} " + "x" * 20 + "y" * 20)
    assert prompt_of(checkpoint, task, "{context}", 9, cut=True) == whole[:20] + whole[-20:]
    with pytest.raises(ConfigurationError, match=r"line 1: a prompt of 48 tokens and 9 new ones .* use --cut-prompts"):
        prompt_of(checkpoint, task, "{context}", 9, cut=False)


def test_agreement_by_hand() -> None:
    scores = torch.tensor([[0.0, 1.0, 4.0, 2.0], [3.0, 1.0, 2.9, -7.0]])
    plain = [Decision(torch.tensor([[0.0, 0, 1, 1], [1.0, 0, 0, 0]]), scores)]
    assert agreement(plain, [plain[0].marks]) == Agreement(2, 2, 0.0, 0)
    other = torch.tensor([[0.0, 0, 1, 1], [0.0, 0, 1, 0]], dtype=torch.float64)
    found = agreement(plain * 2, [other, other])
    assert (found.compared, found.equal, found.after) == (4, 2, 0)
    assert found.gap == pytest.approx(0.1 / 10)
    plain[0].drops = True
    found = agreement(plain * 2, [other, other])
    assert (found.compared, found.equal, found.after) == (2, 1, 2)
    assert agreement(plain, [torch.tensor([[1.0, 0, 0, 1], [1.0, 0, 0, 0]])]).gap == pytest.approx(1.0)
    assert agreement(plain, []) == Agreement(0, 0, 0.0, 0)


def test_other_layers_are_compared_until_the_next_turn() -> None:
    """What another token in one layer's cache changes: that layer from there on, and all of them from the next turn on."""
    scores, marks = torch.tensor([[0.1, 0.2, 0.9, 0.8]]), torch.tensor([[0.0, 0, 1, 1]])
    other = torch.tensor([[0.0, 1, 1, 0]])
    where = [(0, 0), (0, 0), (0, 1), (1, 0), (1, 1)]
    plain = [Decision(marks, scores, drops=True, turn=turn, place=place) for turn, place in where]
    assert agreement(plain, [marks] * 5) == Agreement(5, 5, 0.0, 0)
    found = agreement(plain, [other, marks, marks, marks, marks])
    assert (found.compared, found.equal, found.after) == (2, 1, 3)
