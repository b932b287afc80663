"""Factors of low rank that `mpcache fit` makes: against numpy, against singular vectors of the weights, and in use."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import models.recall
from launch.fit.examples import Example
from launch.fit.fitting import Fitting, fit
from launch.fit.low_rank import low_rank_factors
from launch.fit.low_rank_steps import LowRankFactors
from launch.fit.recall_prompts import lines
from launch.fit.training import Run, Training
from launch.measure.quality.prefilled import PrefilledModel
from launch.measure.quality.prompts import task_of
from models.checkpoint import load_checkpoint
from models.policies import parse
from models.policies.cskv import CSKV
from mpc.errors import ConfigurationError
from protocols.plain.suite import tensor_of

MODEL = Path(models.recall.__file__).parent / "gpt2_questions"
RANK, CHANNELS, HEADS = 16, 32, 4


@pytest.fixture(scope="module")
def model() -> PrefilledModel:
    return PrefilledModel(load_checkpoint(MODEL))


def examples(count: int, length: int) -> list[Example]:
    encode = load_checkpoint(MODEL).tokenizer.encode
    encoded = (json.loads(line) for line in lines(count, length, 3))
    return [Example(tuple(encode(one["prompt"])), tuple(encode(one["answer"]))) for one in encoded]


def factors(model: PrefilledModel, given: list[Example], rank: int = RANK) -> dict[str, np.ndarray]:
    policy = parse(f"cskv:rank={rank / 128}|full")
    assert isinstance(policy, CSKV)
    found, lost = low_rank_factors(model, policy.learned(model.architecture), given, lambda *at: None)
    assert 0 < lost < 1
    return {name: tensor.double().numpy() for name, tensor in found.items()}


def blocks(parts: list[np.ndarray]) -> np.ndarray:
    out = np.zeros((CHANNELS * HEADS, CHANNELS * HEADS))
    for n, part in enumerate(parts):
        place = slice(n * CHANNELS, (n + 1) * CHANNELS)
        out[place, place] = part
    return out


def read_and_rows(model: PrefilledModel, given: list[Example], layer: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By kind the rows [T, G C], and the second moment of what reads them."""
    seen = [model.prefill([*one.prompt, *one.answer]) for one in given]
    q, k, v = (
        torch.cat([x[layer] for x in of], -2).double().numpy()
        for of in zip(*[(s.queries, s.keys, s.values) for s in seen], strict=True)
    )
    out = tensor_of(model.weights[f"layers.{layer}.attention.out.weight"]).double().numpy().reshape(HEADS, CHANNELS, -1)
    flat = (np.concatenate(list(x), 1) for x in (k, v))
    moments = blocks([one[0].T @ one[0] for one in q]), blocks([one @ one.T for one in out])
    return dict(zip(("keys", "values"), zip(flat, moments, strict=True), strict=True))


def lost(rows: np.ndarray, moment: np.ndarray, again: np.ndarray) -> float:
    """What `again` [G C, G C] loses of rows, counted by what reads them."""
    gone = rows - rows @ again
    return float(np.trace(gone @ moment @ gone.T) / np.trace(rows @ moment @ rows.T))


def asvd(w: np.ndarray, act: np.ndarray, rank: int, alpha: float = 0.5) -> np.ndarray:
    """Of wln20/CSKV: the weight [D, G C] of low rank; act [D] mean |x|."""
    s = (act + 1e-6) ** alpha
    u, z, vt = np.linalg.svd(s[:, None] * w, full_matrices=False)
    return np.asarray((u[:, :rank] * z[:rank]) / s[:, None] @ vt[:rank])


def test_factors_lose_least_of_what_is_read(model: PrefilledModel) -> None:
    """As much as the singular vectors of weighted rows say, and less than those of rows alone or of the weights."""
    given = examples(3, 128)
    found = factors(model, given)
    for layer in (0, 3):
        weight = tensor_of(model.weights[f"layers.{layer}.attention.qkv.weight"]).double().numpy()
        for n, (kind, (rows, moment)) in enumerate(read_and_rows(model, given, layer).items(), 1):
            down, up = (found[f"policy.layers.{layer}.low_rank.{kind}.{way}.weight"] for way in ("down", "up"))
            values, vectors = np.linalg.eigh(moment / np.diag(moment).mean())
            root = vectors * np.sqrt(np.maximum(values, 1e-6)) @ vectors.T
            z = np.linalg.svd(rows @ root, compute_uv=False)
            least = lost(rows, moment, down @ up.T)
            assert abs(least - (z[RANK:] ** 2).sum() / (z**2).sum()) < 1e-3
            _, _, vt = np.linalg.svd(rows, full_matrices=False)
            assert least < lost(rows, moment, vt[:RANK].T @ vt[:RANK])
            part = weight[:, n * 128 : (n + 1) * 128]
            _, _, of_weight = np.linalg.svd(asvd(part, np.ones(len(part)), RANK), full_matrices=False)
            assert least < 0.9 * lost(rows, moment, of_weight[:RANK].T @ of_weight[:RANK])
            assert np.abs(rows @ down).max() <= np.abs(rows).max() * (1 + 1e-4)  # bounds that are declared hold


def test_steps_lessen_what_attention_loses(model: PrefilledModel, tmp_path: Path) -> None:
    """The loss is that of attention by hand; a training that was broken off goes on; products stay within bounds."""
    given = examples(4, 96)
    start = {name: torch.from_numpy(x).float() for name, x in factors(model, given).items()}
    learner = LowRankFactors(model, start, 8)
    one = given[0]
    seen, first = model.prefill([*one.prompt, *one.answer]), len(one.prompt) - 1
    lost = []
    for layer in range(4):
        q, k, v = (x[layer].double().numpy() for x in (seen.queries, seen.keys, seen.values))
        low = []
        for kind, x in (("keys", k), ("values", v)):
            down, up = (
                start[f"policy.layers.{layer}.low_rank.{kind}.{way}.weight"].double().numpy() for way in ("down", "up")
            )
            low.append(np.stack(np.split(np.concatenate(list(x), 1) @ down @ up.T, HEADS, 1)))
        gone = whole = 0.0
        for row in range(first, seen.tokens):
            cut = max(0, row + 1 - 8)
            for head in range(HEADS):
                rows = [np.concatenate([low[n][head, :cut], x[head, cut : row + 1]]) for n, x in enumerate((k, v))]
                outs = []
                for keys, values in ((k[head, : row + 1], v[head, : row + 1]), rows):
                    e = np.exp(keys @ q[head, 0, row] - (keys @ q[head, 0, row]).max())
                    outs.append(e @ values / e.sum())
                gone += ((outs[1] - outs[0]) ** 2).sum()
                whole += (outs[0] ** 2).sum()
        lost.append(gone / whole)
    assert abs(float(learner.loss(start, one)) - np.mean(lost)) < 1e-3 * np.mean(lost)
    run = Run(learner, Training(steps=12, batch=2, warm_up=2), tmp_path / "state", "")
    found = run.run(given, lambda done, total: None)
    assert found.keys() == start.keys()
    assert sum(run.losses[-4:]) < 0.95 * sum(run.losses[:4])


def test_fitted_factors_are_used(tmp_path: Path) -> None:
    """Beside a checkpoint, with another policy's heads: half of the channels find what the full cache finds."""
    for file in MODEL.iterdir():
        if file.is_file() and file.name != "policy.safetensors":
            shutil.copy(file, tmp_path)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("\n".join(lines(6, 256, 2)), encoding="utf-8")
    for policy in ("locret:width=4", "cskv:rank=0.5|full"):
        done = fit(Fitting(tmp_path, policy, prompts, tmp_path, Training(steps=1, batch=1), 1), lambda *at: None)
        assert done.loss is not None
    checkpoint = load_checkpoint(tmp_path)
    names = {part.name for part in checkpoint.architecture.learned}
    assert len(names) == 6
    model, task = PrefilledModel(checkpoint), task_of(checkpoint)
    assert task is not None
    asked = task.prompts(512, 1, 11)[0]
    seen = model.prefill(asked.ids)
    answers = model.answers(seen, ["full", "cskv:rank=0.5|full"], task.answer_tokens(512))
    right = list(map(asked.right, answers))
    assert right[1] >= right[0] > 0.7 * asked.questions


def test_what_is_around_a_policy_is_looked_into(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(lines(2, 96, 2)), encoding="utf-8")
    out = tmp_path / "out"
    asked = Fitting(MODEL, "chunked:tokens=64|cskv:rank=0.1|full", file, out, Training(steps=1, batch=1), 1)
    fit(asked, lambda *at: None)
    assert {path.name for path in out.iterdir()} == {"policy.safetensors", "profile.json"}
    assert json.loads((out / "profile.json").read_text())["fitted"]["loss"] > 0


def test_fewer_tokens_than_directions_are_refused(model: PrefilledModel) -> None:
    with pytest.raises(ConfigurationError, match=r"--prompts: 4 tokens do not say 16 directions"):
        factors(model, [Example((5, 6, 7), (8,))])
