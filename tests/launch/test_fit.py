"""What `mpcache fit` makes: heads that keep what will be asked, as if never broken off, and profiles by definition."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

import models.recall
from launch.fit import profiles
from launch.fit.examples import Example, read_examples, rows_of
from launch.fit.fitting import Fitting, fit
from launch.fit.recall_prompts import lines
from launch.fit.retaining import RetainingHeads
from launch.fit.training import Run, Training
from launch.measure.quality.prefilled import PrefilledModel
from launch.measure.quality.prompts import task_of
from models.checkpoint import load_checkpoint
from models.policies import parse
from models.policies.axes.retaining import FIRST, SECOND
from mpc.errors import CheckpointError, ConfigurationError

MODEL = Path(models.recall.__file__).parent / "gpt2_questions"
SHIPPED = "width=64"


@pytest.fixture(scope="module")
def model() -> PrefilledModel:
    return PrefilledModel(load_checkpoint(MODEL))


@pytest.mark.parametrize(
    ("policy", "share"),
    [
        (f"locret:budget=0.05,{SHIPPED}", 0.85),
        (f"locret:budget=0.1,{SHIPPED}", 0.85),
        (f"batches:tokens=128|locret:budget=0.1,{SHIPPED}", 0.85),
        ("cskv:rank=0.25|full", 0.8),
        ("cskv:rank=0.25|compresskv:window=40,budget=0.3", 0.8),
        ("attention-gate:budget=0.1", 0.4),
    ],
)
def test_shipped_weights_keep_what_is_asked(policy: str, share: float, model: PrefilledModel) -> None:
    """Three held-out documents of 1 024 tokens with 16 questions each; SnapKV finds a quarter of them with 5 %."""
    task = task_of(model.checkpoint)
    assert task is not None
    asked = task.prompts(1024, 3, 11)
    right = sum(p.right(model.answers(model.prefill(p.ids), [policy], task.answer_tokens(1024))[0]) for p in asked)
    assert right >= share * sum(p.questions for p in asked)
    assert (MODEL / "policy.safetensors").stat().st_size <= 700_000


def examples(count: int = 6, length: int = 64) -> list[Example]:
    checkpoint = load_checkpoint(MODEL)
    encoded = (json.loads(line) for line in lines(count, length, 3))
    encode = checkpoint.tokenizer.encode
    return [Example(tuple(encode(one["prompt"])), tuple(encode(one["answer"]))) for one in encoded]


def test_labels_are_the_largest_scores_of_the_answer(model: PrefilledModel) -> None:
    example = examples(1)[0]
    tokens = len(example.prompt)
    seen = model.prefill([*example.prompt, *example.answer])
    for layer, rows in enumerate(rows_of(model, example)):
        q, k = seen.queries[layer].numpy(), seen.keys[layer].numpy()
        assert rows.features.shape == (tokens, 384)
        answering = range(tokens - 1, tokens + len(example.answer) - 1)
        for head in range(4):
            largest = np.max([k[head, :tokens] @ q[head, 0, n] for n in answering], 0)
            assert np.abs(rows.scores[head].amax((0, 1)).numpy() - largest).max() < 1e-4
        assert torch.allclose(rows.attention.sum(-1), torch.ones(4, 1, len(example.answer)), atol=1e-5)


def test_a_training_that_was_broken_off_goes_on(model: PrefilledModel, tmp_path: Path) -> None:
    """The same weights, to the bit, as without the break; scores at most 1."""
    given, training = examples(), Training(steps=6, batch=2, warm_up=2)

    def trainer(name: str) -> Run:
        return Run(RetainingHeads(model, 8), training, tmp_path / name, "this one", every=2)

    whole = trainer("whole").run(given, lambda done, total: None)

    def stop(done: int, total: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer("broken").run(given, stop)
    second = trainer("broken")
    found = second.run(given, lambda done, total: None)
    assert len(second.losses) == 2
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[name], whole[name]) for name in whole)
    features = rows_of(model, given[0])[1].features
    hidden = torch.nn.functional.gelu(features @ whole[f"policy.layers.1.{FIRST}.weight"], approximate="tanh")
    assert float((hidden @ whole[f"policy.layers.1.{SECOND}.weight"]).abs().max()) <= 1 + 1e-4


def test_heads_learn(model: PrefilledModel, tmp_path: Path) -> None:
    trainer = Run(RetainingHeads(model, 8), Training(steps=30, batch=2, warm_up=4), tmp_path / "state", "")
    trainer.run(examples(8), lambda done, total: None)
    assert sum(trainer.losses[-5:]) < 0.5 * sum(trainer.losses[:5])


def test_everything_is_written_for_this_model(tmp_path: Path) -> None:
    """Two policies' weights in one file; a profile of numbers and heads that policies read."""
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(lines(4, 96, 2)), encoding="utf-8")
    asked = Fitting(MODEL, "locret:width=4", file, tmp_path / "out", Training(steps=2, batch=1))
    stages: set[str] = set()
    found = fit(asked, lambda stage, done, total: stages.add(stage))
    assert stages == {"train", "profile"}
    assert found.weights == tmp_path / "out" / "policy.safetensors"
    facts = json.loads(found.profile.read_text())
    assert (facts["prompts"], facts["fitted"]["policy"]) == (4, "locret:width=4")
    for kind in profiles.KINDS:
        assert parse(f"{found.policies[kind]}|snapkv:budget=0.5").spec.startswith("layers:weights=")
        assert len(facts["layers"][kind].split()) == 4
    assert all(part.count(".") == 1 for part in facts["heads"].split())
    assert not (tmp_path / "out" / "fit.state").exists()


# ---- profiles, by their definitions ----------------------------------------------------------------------------------
def test_preference_and_variance_by_definition() -> None:
    g = torch.Generator().manual_seed(0)
    p = torch.softmax(2 * torch.randn(2, 2, 6, 30, generator=g), -1)
    a = p.numpy().reshape(4, 6, 30)[..., :-6]
    wanted = -(a * np.log(a + 1e-10)).sum() * a.var(1, ddof=1).sum()
    assert abs(profiles.preference(p) - wanted) < 1e-4 * wanted
    received = p.numpy().sum(2).reshape(4, 30)
    scaled = [(r - r.min()) / (r.max() - r.min()) for r in received]
    assert abs(float(profiles.received_variance(p)) - np.mean([s.var(ddof=1) for s in scaled])) < 1e-6


def test_a_layer_that_looks_at_few_tokens_loses_nothing() -> None:
    p, v = torch.zeros(1, 1, 70, 70), torch.randn(1, 70, 3, generator=torch.Generator().manual_seed(1))
    p[..., 5] = 1.0
    assert profiles.error(p, v, 64) < 1e-6
    p[:, :, 56:] = 0
    p[:, :, 56:64, :30] = 1 / 30
    p[:, :, 64:, 45] = 1.0  # what the answer asks for is not what was looked at
    assert profiles.error(p, v, 64) > 0.5


# ---- bad input -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("{}", r"line 1: must be \{"),
        ("no", r"line 1: must be \{"),
        ('{"prompt": "the", "answer": "."}', "1 tokens of prompt and 1 of answer; at least 2"),
        (json.dumps({"prompt": "the " * 1200, "answer": "."}), "the model's 1152 positions"),
    ],
)
def test_prompts_that_teach_nothing(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "prompts").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigurationError, match=message):
        read_examples(load_checkpoint(MODEL), tmp_path / "prompts")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_examples(load_checkpoint(MODEL), tmp_path / "missing")


def _no_work(stage: str, done: int, total: int) -> None:
    raise AssertionError(f"{stage} began")


def _asked(folder: Path, out: Path) -> Fitting:
    (folder / "prompts").write_text("\n".join(lines(2, 96, 2)), encoding="utf-8")
    return Fitting(MODEL, "locret:width=4", folder / "prompts", out, Training(steps=1, batch=1))


def test_a_folder_that_cannot_be_used_is_refused_before_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=r"file/out cannot be made: .*; name another folder"):
        fit(_asked(tmp_path, tmp_path / "file" / "out"), _no_work)
    out = tmp_path / "out"
    out.mkdir()
    save_file({"policy.layers.0.a": torch.zeros(2)}, out / "policy.safetensors", {"format": "1", "model": "another"})
    with pytest.raises(CheckpointError, match="'a' is there for 1 layers, the model has 4"):
        fit(_asked(tmp_path, out), _no_work)
    (out / "policy.safetensors").unlink()
    (out / "fit.state").write_text("no state")
    with pytest.raises(CheckpointError, match=r"fit\.state is no state of a training .*take it away"):
        fit(_asked(tmp_path, out), _no_work)


@pytest.mark.parametrize("module", ["launch.fit.training", "models.policy_file"])
def test_a_full_disk_is_named_and_leaves_nothing_half_written(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(tensors: Any, path: Any, metadata: Any = None) -> None:
        Path(path).write_bytes(b"half")
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(f"{module}.save_file", full)
    with pytest.raises(CheckpointError, match=r"cannot be written \(No space left"):
        fit(_asked(tmp_path, tmp_path / "out"), lambda *stage: None)
    assert {path.name for path in (tmp_path / "out").iterdir()} <= {"fit.state"}
