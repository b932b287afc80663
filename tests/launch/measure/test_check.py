"""`mpcache check` passes what is right, and says where a suite leaves plaintext first."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from launch.local.in_process import InProcessSuite
from launch.measure import fidelity
from launch.measure.verdict import flagged, judge
from models.calibration.choice import chosen, excesses
from models.checkpoint import load_checkpoint
from mpc.errors import ConfigurationError
from protocols.crypten.suite import CryptenSuite
from protocols.registry import SuiteSpec
from tests.launch.conftest import Command
from tests.models import random_encoders as encoders
from tests.models.random_checkpoints import build, logits, prompt, save


@pytest.mark.parametrize("parties", [2, 3])
def test_every_layer_is_close(command: Command, text_model: Path, parties: int) -> None:
    found = command("check", "--model", text_model, "--prompt", "Who goes there", "--parties", parties, "--json")
    assert found.code == 0, found.out + found.err
    report = json.loads(found.out)
    assert report["hugging_face_max_error"] < 1e-9
    assert report["same_next_token"]
    points = [(p["step"], p["point"]) for p in report["points"]]
    names = ["embedding", "layer 0/attention", "layer 0/mlp", "logits"]
    assert points == [(step, name) for step in ("prefill", "decode") for name in names]
    assert report["points"][3]["shape"] == [13, 256]
    assert all(0 < p["relative"] < 0.01 and 0 < p["max_error"] < 0.05 and p["largest"] > 0.1 for p in report["points"])
    assert report["verdict"].startswith("right: the next token is plaintext's")
    assert set(report["extremes"]) == {"residual", "score", "value", "activation", "logits"}
    assert report["next_token"]["plaintext"] == report["next_token"]["shares"]
    assert 0 < report["logits"]["largest"] < 0.05


def test_llama_without_a_prompt(command: Command, tmp_path: Path) -> None:
    save("llama-grouped", tmp_path)
    found = command("check", "--model", tmp_path, "--json", "--tolerance", "0.5")
    report = json.loads(found.out)
    assert (found.code, report["tokens"]) == (0, 32)
    assert report["hugging_face_max_error"] < 1e-4


def test_a_wrong_layer_is_found(command: Command, text_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = CryptenSuite.activation

    async def wrong(self: CryptenSuite, x: Any, kind: Any) -> Any:
        return await right(self, x, kind) + 0.5

    monkeypatch.setattr(CryptenSuite, "activation", wrong)
    found = command("check", "--model", text_model, "--prompt", "Who", "--suite", "crypten")
    assert found.code == 1
    assert "wrong: prefill layer 0/mlp is" in found.out
    assert "never for secret data" in found.err


def test_bounds_that_are_too_small_are_named(command: Command, tmp_path: Path) -> None:
    """Scores spread further than the bound: the kind, the layer, both numbers and the option that would do."""
    model = build("llama-grouped")
    with torch.no_grad():
        model.model.layers[1].self_attn.q_proj.weight *= 30
    model.save_pretrained(tmp_path)
    found = command("check", "--model", tmp_path, "--suite-option", "score=7", "--json", "--no-hugging-face")
    report = json.loads(found.out)
    assert found.code == 1
    (excess,) = report["excesses"]
    assert (excess["kind"], excess["place"]) == ("score", 1)
    assert report["verdict"].startswith("wrong: spreads of a row of attention scores reach")
    assert f"in layer 1, bound 112: --suite-option score={excess['option']}" in report["verdict"]
    assert report["hugging_face_max_error"] is None


def test_far_logits_are_right_once_calibrated(tmp_path: Path) -> None:
    """Logits near -300: within the usual bound the arg-max takes another token; the calibrated bounds hold them."""
    model = build("gpt2")
    with torch.no_grad():
        model.transformer.ln_f.bias[0] = -300.0
        model.transformer.wte.weight[:, 0] = 1.0
    model.save_pretrained(tmp_path)
    checkpoint = load_checkpoint(tmp_path, torch.float64)
    ids = prompt(model, 5)
    reference = fidelity.plaintext(checkpoint, ids)
    assert reference.extremes is not None
    assert reference.token == int(logits(model, ids)[-1].argmax())
    options = chosen("masked", reference.extremes)
    assert options["logits"] == 10
    measured = fidelity.on_shares(checkpoint, ids, InProcessSuite(SuiteSpec("masked", options=options)))
    rows = fidelity.compare(reference, measured)
    assert judge(reference, measured, rows, excesses("masked", options, reference.extremes), 0.01, None).right
    (excess,) = excesses("masked", {}, reference.extremes)
    assert "logits reach 3" in excess.text
    assert "in the head, bound 256: --suite-option logits=10" in excess.text


def test_flags_are_named(text_model: Path) -> None:
    """XOR of the parties' words: a word that is not zero says kind and layer."""
    words = torch.zeros(5, 2, dtype=torch.int64)
    words[1, 0] = -7
    (text,) = flagged(fidelity.Measurement(flags=words))
    assert "spreads of a row of attention scores left their range in layer 0" in text
    assert flagged(fidelity.Measurement()) == []


def test_one_token(text_model: Path) -> None:
    checkpoint = load_checkpoint(text_model, torch.float64)
    with pytest.raises(ConfigurationError, match=r"prompt token number 2 lies outside the model's vocabulary"):
        fidelity.plaintext(checkpoint, [7, checkpoint.architecture.vocabulary])
    reference = fidelity.plaintext(checkpoint, [7])
    measured = fidelity.on_shares(checkpoint, [7], InProcessSuite(SuiteSpec("crypten")))
    rows = fidelity.compare(reference, measured)
    assert measured.token == reference.token == int(reference.logits[-1].argmax())
    assert {row.step for row in rows} == {"prefill"}
    assert max(row.max_error for row in rows) < 0.05


@pytest.mark.parametrize(("name", "suite", "parties"), [("bert-classes", "masked", 2), ("distilbert-labels", "crypten", 3)])
def test_an_encoder(command: Command, tmp_path: Path, name: str, suite: str, parties: int) -> None:
    """Every layer and the output that it was trained for, padding included, with transformers' numbers."""
    encoders.save(name, tmp_path)
    encoders.letters(tmp_path)
    options = ("--suite", suite, "--parties", parties, "--json")
    found = command("check", "--model", tmp_path, "--prompt", "who goes there", *options)
    assert found.code == 0, found.out + found.err
    report = json.loads(found.out)
    assert (report["tokens"], report["padded"], report["output"]) == (16, 16, name.partition("-")[2])
    assert report["hugging_face_max_error"] < 1e-4
    names = ["embedding", *(f"layer {n}/{part}" for n in (0, 1) for part in ("attention", "mlp")), report["output"]]
    assert [p["point"] for p in report["points"]] == names
    assert all(0 < p["relative"] < 0.01 and p["largest"] > 0.1 for p in report["points"])
    assert set(report["extremes"]) == {"residual", "score", "value", "activation", "logits"}
    said = re.match(rf"right: {report['output']} within (\S+) of plaintext's", report["verdict"])
    assert said is not None
    assert float(said[1]) < 0.05


def test_an_encoder_whose_bounds_are_too_small(command: Command, tmp_path: Path) -> None:
    """The kind, the layer, the option that would do, and what the shares flagged; a wrong layer is found as well."""
    model = encoders.build("distilbert")
    with torch.no_grad():
        model.transformer.layer[1].ffn.lin1.weight *= 20
    model.save_pretrained(tmp_path)
    found = command("check", "--model", tmp_path, "--suite-option", "activation=4", "--no-hugging-face")
    assert found.code == 1
    assert re.search(r"wrong: .* reach [\d.]+ in layer 1, bound 16: --suite-option activation=\d", found.out), found.out
    assert "flagged on shares" in found.out


def test_a_text_without_a_tokenizer_is_refused_before_the_calibration(command: Command, tmp_path: Path) -> None:
    save("llama-grouped", tmp_path)
    found = command("check", "--model", tmp_path, "--prompt", "Who")
    assert (found.code, found.out, found.err.count("\n")) == (2, "", 1)
    assert "error [checkpoint]: " in found.err
    assert "no tokenizer.json there; copy the model's tokenizer files" in found.err
    assert not (tmp_path / "mpcache.json").exists()
