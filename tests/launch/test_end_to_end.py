"""Real processes over gRPC with mutual TLS: the demo, and `mpcache generate` against plaintext."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
import yaml

import models.recall
from launch.local.deployment import LocalDeployment
from models.checkpoint import load_checkpoint
from models.generation import GenerationPlan, generate_plain
from tests.launch.conftest import Command, processes_of

PROMPT = "Who goes there"
SHIPPED = Path(models.recall.__file__).parent


def plaintext(model: Path, prompt: str, tokens: int) -> tuple[list[int], str]:
    checkpoint = load_checkpoint(model)
    ids = checkpoint.tokenizer.encode(prompt)
    generated = generate_plain(checkpoint, ids, GenerationPlan(len(ids), tokens))
    return generated, checkpoint.tokenizer.decode(generated)


@pytest.mark.skipif(not (SHIPPED / "gpt2" / "model.safetensors").exists(), reason="the shipped model is not there")
def test_demo(command: Command) -> None:
    found = command("demo", "--tokens", "64")
    assert found.code == 0, found.err
    assert "DIFFERENT" not in found.out
    assert found.out.count("equal") == 2
    for text in ("Who sees what", "party0", "party1", "dealer", "prompt, 1st token", "a further token", "offline"):
        assert text in found.out


def test_generate_local(command: Command, text_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    found = command(
        "generate", "--model", text_model, "--prompt", PROMPT, "--max-new-tokens", "3", "--parties", "3", "--json"
    )
    assert found.code == 0, found.err
    report = json.loads(found.out)
    assert found.out.count("\n") == 1
    tokens, text = plaintext(text_model, PROMPT, 3)
    assert (report["tokens"], report["text"], report["prompt_tokens"]) == (tokens, text, len(PROMPT))
    assert sorted(report["costs"]["parties"]) == ["party0", "party1", "party2"]
    assert list(tmp_path.iterdir()) == []
    assert processes_of(tmp_path) == []


def test_generate_from_running_parties(command: Command, running: LocalDeployment, text_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text(PROMPT + "\n")
    common = ["generate", "--config", running.folder / "client.yaml", "--model", text_model, "--prompt-file", file]
    found = command(*common, "--max-new-tokens", "4", "--json")
    assert found.code == 0, found.err
    report = json.loads(found.out)
    tokens, text = plaintext(text_model, PROMPT, 4)
    assert (report["tokens"], report["text"]) == (tokens, text)
    stages = report["costs"]["stages"]
    for party in ("party0", "party1"):
        total = report["costs"]["parties"][party]
        assert total["bytes_sent"] == sum(stage["bytes_sent"][party] for stage in stages.values()) > 0
        assert total["offline_bytes"] == sum(stage["offline_bytes"][party] for stage in stages.values()) > 0
    assert report["costs"]["further_tokens"] == 3

    streamed = command(*common, "--max-new-tokens", "4", "--fixed-length")
    assert (streamed.code, streamed.out) == (0, text + "\n")
    assert "first after" in streamed.err

    sampled = command(*common, "--max-new-tokens", "2", "--temperature", "1e-4", "--json")
    assert sampled.code == 0, sampled.err
    assert json.loads(sampled.out)["tokens"] == tokens[:2]
    assert json.loads(sampled.out)["decoding"] == "sample"

    unknown = command(*common, "--name", "huge")
    assert unknown.code == 2
    assert "'huge'" in unknown.err
    assert "all parties hold: tiny" in unknown.err


def test_client(command: Command, running: LocalDeployment, text_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = running.folder / "client.yaml"
    listed = command("client", "--config", config)
    assert listed.code == 0, listed.err
    assert "tiny" in listed.out
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"{PROMPT}\n\n{PROMPT}\n".encode())))
    answered = command("client", "--config", config, "--tokenizer", text_model, "--max-new-tokens", "2")
    assert answered.code == 0, answered.err
    assert answered.out == 2 * (plaintext(text_model, PROMPT, 2)[1] + "\n")


def test_another_models_tokenizer_is_refused(
    command: Command, running: LocalDeployment, text_model: Path, tmp_path: Path
) -> None:
    other = tmp_path / "tiny"
    other.mkdir()
    values = json.loads((text_model / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**values, "n_layer": 2}))
    (other / "tokenizer.json").write_bytes((text_model / "tokenizer.json").read_bytes())
    config = running.folder / "client.yaml"
    found = command("generate", "--config", config, "--model", other, "--prompt", PROMPT)
    assert found.code == 2
    assert "describes another architecture than the shared model 'tiny'" in found.err

    (other / "config.json").write_text(json.dumps(values))
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    words["a"], words["e"] = words["e"], words["a"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    owner = running.folder / "model-owner.yaml"
    asks: list[list[str | Path]] = [
        ["generate", "--config", config, "--model", other, "--prompt", PROMPT],
        ["client", "--config", config, "--tokenizer", other],
        ["serve", "--config", config, "--tokenizer", other, "--model", f"tiny={other}"],
        ["prefix", "add", "--config", owner, "--model", "tiny", "--tokenizer", other, "--name", "p", "--text", "a b"],
    ]
    for words in asks:  # one after the other: what is not refused serves on
        refused = command(*words)
        assert refused.code == 2, refused.err
        assert "gives other ids than the" in refused.err
        assert "'tiny' was shared with" in " ".join(refused.err.split())


def test_a_model_that_is_shared_twice(command: Command, running: LocalDeployment, text_model: Path) -> None:
    share = ["model-owner", "--config", running.folder / "model-owner.yaml", "--model", text_model, "--name", "twice"]
    ask = [
        "generate",
        "--config",
        running.folder / "client.yaml",
        "--model",
        text_model,
        "--name",
        "twice",
        "--prompt",
        PROMPT,
    ]
    first, second = command(*share), command(*share)
    assert (first.code, second.code) == (0, 0), first.err + second.err
    older = first.out.rpartition("(id ")[2].partition(")")[0]
    assert f"beside it lies {older} of the same name: --replace takes that away" in " ".join(second.out.split())
    refused = command(*ask, "--max-new-tokens", "1")
    assert refused.code == 2
    said = " ".join(refused.err.split())
    assert "2 models fit 'twice': twice (" in said
    assert older in said
    assert "tiny" not in said
    assert "--name ID" in said
    assert "`mpcache model-owner --replace`" in said
    replaced = command(*share, "--replace")
    assert f"it replaces {older}, " in " ".join(replaced.out.split()) or f", {older}" in replaced.out
    answered = command(*ask, "--max-new-tokens", "1")
    assert (answered.code, answered.out) == (0, plaintext(text_model, PROMPT, 1)[1] + "\n")
    assert command(*share[:3], "--remove", "twice").code == 0


def test_for_whom_it_is_waited_is_said(command: Command, running: LocalDeployment, text_model: Path) -> None:
    config = yaml.safe_load((running.folder / "client.yaml").read_text())
    config["parties"][1]["address"] = "127.0.0.1:9"
    config["connect_seconds"] = 1.0
    file = running.folder / "client-elsewhere.yaml"
    file.write_text(yaml.safe_dump(config))
    found = command("generate", "--config", file, "--model", text_model, "--name", "tiny", "--prompt", PROMPT)
    assert found.code != 0
    said = " ".join(found.err.split())
    assert said.count("waiting for party1: nothing listens at 127.0.0.1:9") == 1
    assert "(waited 1 s)" in said
