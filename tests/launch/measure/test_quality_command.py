"""`mpcache quality` as a command: tables, JSON, pages, runs on shares, mistakes."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launch.measure.generation import GeneratedOnShares
from launch.measure.quality import sweep
from launch.measure.quality.runner import Runner
from models.checkpoint import load_checkpoint
from models.recall import documents as docs
from mpc.errors import RangeError
from tests.launch.conftest import Command
from tests.launch.measure.test_quality import GOOD, lines
from tests.tools import headlines

RECALL = Path(__file__).parents[3] / "models" / "recall" / "gpt2"


def test_recall_command(command: Command, tmp_path: Path) -> None:
    asked = ["--model", RECALL, "--policies", "full tova", "--policy", "dynamic-top-k:budget=0.4", "--lengths", "24,64"]
    asked += ["--budgets", "0.25,0.5", "--questions", "3", "--needle", "--depths", "0,1", "--out", tmp_path / "r"]
    asked += ["--json"]
    found = command("quality", *asked)
    assert (found.code, found.err) == (0, "")
    record = json.loads(found.out)
    assert found.out.count("\n") == 1
    assert json.loads((tmp_path / "r" / "results.json").read_text()) == record
    assert {p.name for p in (tmp_path / "r").iterdir()} == {"results.json", "results.md", "quality.png", "needle.png"}
    assert all(p.read_bytes()[:4] == b"\x89PNG" for p in (tmp_path / "r").glob("*.png"))
    assert record["settings"]["policies"][:2] == ["full", "tova:budget=0.25"]
    assert (record["settings"]["seed"], record["settings"]["new_tokens"], record["recall_task"]) == (0, 5, "codes")
    assert set(record["versions"]) == {"python", "mpcache", "torch", "transformers", "tokenizers", "matplotlib"}
    rows = record["rows"]
    assert [(r["policy"], r["budget"], r["length"]) for r in rows[:3]] == [
        ("full", None, 24),
        ("tova:budget=0.25", 0.25, 24),
        ("tova:budget=0.5", 0.5, 24),
    ]
    for row in rows:
        assert row["problem"] is None
        if row["policy"] == "full":
            assert (row["recall"], row["token_agreement"], row["answer_agreement"]) == (1, 1, 1)
            assert row["attention_mass"] == pytest.approx(1, abs=1e-6)
            assert row["attended_tokens"] == row["length"] + 2.5  # 5 tokens are generated, 4 of them decoded
        else:
            assert 0 < row["attention_mass"] < 1
            assert row["attended_tokens"] < row["length"] / 2 + 4
        assert len(row["attention_mass_by_layer"]) == 2
        assert row["perplexity"] is None
    assert len(record["needle"]) == len(rows) * 2
    assert {cell["recall"] for cell in record["needle"] if cell["policy"] == "full"} == {1.0}
    assert record["spot_check"] is None
    again = command("quality", *asked)
    assert (again.code, list(json.loads(again.out))) == (2, ["error"])
    assert "results.json exists already; name another folder" in again.err


def test_the_page_in_the_documentation_is_made_from_its_results() -> None:
    """With what each system is known for held against what was measured; run `python -m tests.tools.headlines --write`."""
    written = headlines.WHERE.read_text()
    assert written == headlines.text()
    assert "| `full` |  | 0.966 |" in written


def test_tokens_on_shares_are_those_of_plaintext(command: Command) -> None:
    asked = ["--policy", "tova:budget=0.5", "--lengths", "64,24", "--questions", "2", "--spot-check", "1", "--parties", "3"]
    found = command("quality", "--model", RECALL, *asked, "--json")
    assert (found.code, found.err) == (0, "")
    check = json.loads(found.out)["spot_check"]
    assert (check["suite"], check["parties"], check["equal"], check["different"], check["ok"]) == ("masked", 3, 1, 0, True)
    assert [(run["policy"], run["length"]) for run in check["runs"]] == [("tova:budget=0.5", 24)]
    assert (
        check["decisions"] + check["decisions_after"] == 2 * docs.ANSWER_TOKENS
    )  # two layers, after the prompt and each step
    assert check["gap"] < 1e-4  # of votes that are nearly equal, rounding may decide


def test_another_kept_set_on_shares_is_told(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same tokens: the first head keeps another token. Other layers go on as they were until the next token; what
    follows then is about other caches."""
    real = sweep.generate_on_shares

    def planted(*given: Any) -> GeneratedOnShares:
        run = real(*given)
        marks = run.decisions[0]
        kept, left = marks[0].nonzero()[0], (marks[0] == 0).nonzero()[0]
        marks[0, kept], marks[0, left] = 0, 1
        return run

    monkeypatch.setattr(sweep, "generate_on_shares", planted)
    asked = ["--policy", "h2o:budget=0.5", "--lengths", "24", "--questions", "1", "--spot-check", "1"]
    found = command("quality", "--model", RECALL, *asked)
    assert found.code == 0
    text = " ".join(found.out.split())
    architecture = load_checkpoint(RECALL).architecture
    heads = architecture.layers * architecture.kv_heads
    assert f"Kept sets: {heads - 1} of {heads} equal to plaintext; in the others what was exchanged lies" in text
    assert f"; {(docs.ANSWER_TOKENS - 1) * heads} later ones, of caches that such an exchange had changed" in text


def test_a_different_token_on_shares_fails(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    real = sweep.generate_on_shares

    def planted(*given: Any) -> GeneratedOnShares:
        run = real(*given)
        first, *rest = run.tokens
        return replace(run, tokens=[first ^ 1, *rest])

    monkeypatch.setattr(sweep, "generate_on_shares", planted)
    found = command(
        "quality", "--model", RECALL, "--policy", "full", "--lengths", "20", "--questions", "1", "--spot-check", "1"
    )
    assert found.code == 1
    assert "0 answers equal to plaintext, 1 different" in " ".join(found.out.split())


def test_text_and_longbench_command(command: Command, text_model: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("It was a dark and stormy night; the rain fell in torrents, except now and then." * 2)
    tasks = lines(tmp_path / "tasks.jsonl", GOOD, {**GOOD, "dataset": "passage_count", "answers": ["2"]})
    asked = ["--model", text_model, "--policies", "full streaming-llm h2o", "--budgets", "0.3", "--lengths", "16"]
    asked += ["--questions", "2", "--new", "8", "--text", text, "--longbench", tasks, "--text-tokens", "12"]
    found = command("quality", *asked, "--json")
    assert (found.code, found.err) == (0, "")
    record = json.loads(found.out)
    assert record["recall_task"] is None
    full, streaming, _ = record["rows"]
    assert (full["recall"], full["token_agreement"], full["perplexity_tokens"]) == (None, 1.0, 12)
    model = Runner(load_checkpoint(text_model))
    ids = model.checkpoint.tokenizer.encode(text.read_text())[:28]
    logits = model.model.logits(ids)[15:-1].log_softmax(-1)
    wanted = math.exp(-sum(float(row[token]) for row, token in zip(logits, ids[16:], strict=True)) / 12)
    assert full["perplexity"] == pytest.approx(wanted, rel=1e-4)
    assert streaming["perplexity"] != pytest.approx(wanted, rel=1e-3)
    assert [(r["policy"], r["dataset"], r["lines"]) for r in record["longbench"][:2]] == [
        ("full", "hotpotqa", 1),
        ("full", "passage_count", 1),
    ]
    assert all(0 <= r["score"] <= 100 for r in record["longbench"])
    assert record["longbench"][0]["token_agreement"] == 1
    shown = command("quality", *asked)
    assert shown.code == 0
    assert "recall is not measured" in shown.out
    assert "perplexity" in shown.out


def test_an_error_on_shares_is_not_equal(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*given: Any) -> GeneratedOnShares:
        raise RangeError("too large")

    monkeypatch.setattr(sweep, "generate_on_shares", failing)
    asked = ["--policy", "full", "--lengths", "20", "--questions", "1", "--spot-check", "1"]
    found = command("quality", "--model", RECALL, *asked)
    assert found.code == 1
    assert "1 different full, prompt 1: range: too large" in " ".join(found.out.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--policies", "magic"], r"unknown cache policy 'magic'; known: full"),
        (["--policies", "tova:badget=1"], r"policy tova has no setting 'badget'"),
        (["--budgets", "0"], r"--budgets 0: a budget is a share above 0 and up to 1"),
        (["--budgets", "1.5"], r"--budgets 1\.5: a budget is a share"),
        (["--budgets", "nan"], r"--budgets nan: a budget is a share"),
        (["--budgets", "a"], r"--budgets 'a': numbers separated by commas"),
        (["--budgets", "0.1,0.1"], r"--budgets '0\.1,0\.1': numbers .* each once"),
        (["--lengths", "-5"], r"--lengths '-5': whole numbers"),
        (["--lengths", "5000"], r"--lengths 5000: with 5 new tokens needs 5004 positions, the model has \d+"),
        (["--lengths", "5"], r"--lengths 5: prompts of the recall task have 11 to \d+ tokens"),
        (["--policies", "snapkv", "--lengths", "64"], r"no policy can be measured: policy snapkv: budget = 0\.05 keeps 3"),
        (["--new", "2"], r"--new 2: an answer of the recall task has 4 tokens; raise it"),
        (["--seed", "-1"], r"--seed -1: must not be negative"),
        (["--depths", "2", "--needle"], r"--depths 2: depths lie between 0 and 1"),
        (["--template", "{story}"], r"--template '\{story\}': needs \{context\} and \{input\}"),
        (["--text", "/none"], r"--text /none cannot be read: No such file"),
        (["--text", "/dev/null"], r"--text /dev/null is empty"),
        (["--longbench", "/dev/null"], r"--longbench /dev/null is empty"),
        (["--out", "/proc/none"], r"--out /proc/none cannot be made"),
        (["--out", "/dev/null"], r"--out /dev/null cannot be made"),
        (["--suite", "plain"], r"keeps nothing secret"),
        (["--device", "abacus"], r"device 'abacus' is unknown"),
    ],
)
def test_mistakes(command: Command, arguments: list[str], message: str) -> None:
    found = command("quality", "--model", RECALL, *arguments)
    assert (found.code, found.out) == (2, "")
    errors = found.err.strip().splitlines()
    assert len(errors) == 1
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(errors[0])


def test_mistakes_with_another_model(command: Command, text_model: Path, tmp_path: Path) -> None:
    nothing = command("quality", "--model", text_model)
    assert nothing.code == 2
    assert "there is nothing to ask it; give --text or --longbench" in nothing.err
    tasks = lines(tmp_path / "tasks.jsonl", {**GOOD, "context": "x" * 100})
    long = command("quality", "--model", text_model, "--longbench", tasks, "--new", "4")
    assert long.code == 2
    assert "line 1: a prompt of 107 tokens and 4 new ones do not fit the model's 48 positions" in long.err
    needle = command("quality", "--model", text_model, "--longbench", tasks, "--needle")
    assert "--needle: the model's tokenizer is not the recall task's" in needle.err
    spot = command(
        "quality", "--model", text_model, "--longbench", tasks, "--cut-prompts", "--new", "4", "--spot-check", "1"
    )
    assert "--spot-check needs prompts" in spot.err
    short = tmp_path / "short.txt"
    short.write_text("short")
    text = command("quality", "--model", text_model, "--text", short, "--lengths", "16")
    assert "--text: 5 tokens do not reach behind a prompt of 16 (--lengths)" in text.err
