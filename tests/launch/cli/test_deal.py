"""`mpcache deal`: what it writes and says, what it refuses, and that parties answer with it while no dealer runs."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from launch.serve.roles import load_role
from models.checkpoint import load_checkpoint
from models.generation import GenerationPlan, generate_plain
from parties.client.client import Client
from parties.config.role_config import load_config
from parties.model_owner.model_owner import share_model
from parties.party.compute_party import ComputePartyServer
from tests.launch.conftest import Command

PROMPT = "Who goes there"


@contextmanager
def serving(out: Path, roles: Path, model: Path) -> Iterator[None]:
    """Parties that have what was dealt to `out`, and the model under the name "tiny"."""
    for name in ("party0", "party1"):
        shutil.move(out / name, roles / f"tapes-{name}")
    servers = [ComputePartyServer(load_config(roles / f"{name}.yaml")) for name in ("party0", "party1")]
    try:
        for server in servers:
            server.start()
        share_model(load_role(roles / "model-owner.yaml", "model-owner"), model, "tiny")
        yield
    finally:
        for server in servers:
            server.stop()


def test_deal_and_answer(command: Command, roles: Path, text_model: Path) -> None:
    out = roles / "out"
    arguments = ["--model", text_model, "--prompt", len(PROMPT), "--tokens", 4, "--out", out]
    found = command("deal", "--config", roles / "dealer.yaml", *arguments, "--sessions", 2, "--prompt", 3)
    assert found.code == 0, found.err
    assert "party0" in found.out
    assert "party1" in found.out
    said = " ".join(found.out.split())
    assert "4 sessions, prompt of exactly 14, 3 tokens, up to 4 new ones" in said
    assert "Next: move what each folder holds into that party's `tapes` folder" in said
    with serving(out, roles, text_model):
        ask = ["generate", "--config", roles / "client.yaml", "--model", text_model, "--name", "tiny", "--max-new-tokens", 3]
        answer = command(*ask, "--prompt", PROMPT, "--json")
        assert answer.code == 0, answer.err
        checkpoint = load_checkpoint(text_model)
        ids = checkpoint.tokenizer.encode(PROMPT)
        assert json.loads(answer.out)["tokens"] == generate_plain(checkpoint, ids, GenerationPlan(len(ids), 3))
        refused = command(*ask, "--prompt", "other", "--json")
        assert refused.code == 2
        assert "error [tape]: party" in refused.err
        text = " ".join(refused.err.split())
        assert "has no tape for a prompt of 5 tokens and 3 new tokens (greedy, suite masked): it has" in text
        assert "1 for a prompt of 14 and up to 4 new tokens" in text
        assert "2 for a prompt of 3 and up to 4 new tokens" in text
        assert str(roles) not in text
        assert [m.name for m in Client(load_role(roles / "client.yaml", "client")).models()] == ["tiny"]


def test_what_is_dealt_for_online(command: Command, roles: Path, text_model: Path) -> None:
    """A tape serves sessions of its own options: of `prefer=online` with the right tokens; others are told of them."""
    online = ["--suite-option", "prefer=online"]
    lengths = ["--prompt", len(PROMPT), "--tokens", 3, "--sessions", 1]
    found = command(
        "deal", "--config", roles / "dealer.yaml", "--model", text_model, *lengths, "--out", roles / "out", *online
    )
    assert found.code == 0, found.err
    with serving(roles / "out", roles, text_model):
        ask = ["generate", "--config", roles / "client.yaml", "--model", text_model, "--name", "tiny", "--max-new-tokens", 3]
        ask += ["--prompt", PROMPT, "--json"]
        refused = command(*ask)
        assert refused.code == 2
        text = " ".join(refused.err.split())  # other tests may have left the model with options of its own
        assert re.search(r"it has 1 for another set of options \([^)]*prefer=online[^)]*\)", text)
        answer = command(*ask, *online)
        assert answer.code == 0, answer.err
        checkpoint = load_checkpoint(text_model)
        ids = checkpoint.tokenizer.encode(PROMPT)
        assert json.loads(answer.out)["tokens"] == generate_plain(checkpoint, ids, GenerationPlan(len(ids), 3))


def test_json(command: Command, roles: Path, text_model: Path) -> None:
    out = roles / "out"
    found = command(
        *("deal", "--config", roles / "dealer.yaml", "--model", text_model, "--prompt", 3, "--tokens", 2, "--out", out),
        *("--suite", "crypten", "--decoding", "logits", "--prefix", 5, "--json"),
    )
    assert found.code == 0, found.err
    report = json.loads(found.out)
    assert found.out.count("\n") == 1
    assert (report["prompts"], report["new_tokens"], report["sessions"], report["prefix"]) == ([3], 2, 1, 5)
    assert len(report["session_seconds"]) == 1
    for name, party in report["parties"].items():
        assert Path(party["folder"]) == out / name
        assert party["bytes"] == sum(f.stat().st_size for f in (out / name).rglob("*") if f.is_file())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--config": "client.yaml"}, r"role is 'client', not 'dealer'"),
        ({"--decoding": "greedy", "--temperature": "2"}, r"temperature = 2 goes with decoding 'sample', not with 'greedy'"),
        ({"--temperature": "101"}, r"temperature must be above 0 and at most 100, got 101"),
        ({"--decoding": "beam"}, r"--decoding 'beam' is unknown; choose one of: greedy, sample, logits"),
        ({"--suite": "plain"}, r"suite 'plain' keeps nothing secret"),
        ({"--tokens": "99"}, r"need .* positions, the model has 48"),
        ({"--prefix": "60"}, r"= 3 behind 60 tokens of registered texts and .* the model has 48; register a shorter text"),
        ({"--chunks": "4,b"}, r"--chunks 4,b: lengths of texts in tokens, separated by commas, such as 64,64"),
        ({"--again": "2"}, r"--again and --candidates say how --chunks are read"),
        ({"--decoding": "rows"}, r"new_tokens = 2 does not go with decoding 'rows': .*; leave it out, or give 1"),
        ({"--out": "certificates"}, r"--out .*certificates exists and is not an empty folder: choose another one"),
        ({"--model": "nowhere"}, r"--model nowhere is no folder here"),
    ],
)
def test_mistakes(command: Command, roles: Path, text_model: Path, changes: dict[str, str], message: str) -> None:
    values = {"--config": "dealer.yaml", "--model": str(text_model), "--prompt": "3", "--tokens": "2", "--out": "out"}
    values |= changes
    for option in ("--config", "--out"):
        values[option] = str(roles / values[option])
    found = command("deal", *(part for pair in values.items() for part in pair))
    assert found.code == 2
    assert found.out == ""
    lines = found.err.strip().splitlines()
    assert len(lines) == 1
    assert re.search(message, lines[0]), lines[0]
    assert not (roles / "out").exists()
