"""`mpcache serve` as a process, before real parties: the model's own answer, and an end in good order."""

from __future__ import annotations

import os
import signal
import stat
from pathlib import Path

import pytest
from openai import AuthenticationError, OpenAI

from launch.cli.commands.serve import _key_made
from launch.local.deployment import LocalDeployment
from launch.local.processes import Processes
from launch.serve.gateway.settings import KEY_FILE
from models.checkpoint import load_checkpoint
from models.generation import GenerationPlan, generate_plain
from tests.launch.conftest import Command

PROMPT = "Who goes there"


def test_serve(running: LocalDeployment, text_model: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(text_model)
    ids = checkpoint.tokenizer.encode(PROMPT)
    wanted = checkpoint.tokenizer.decode(generate_plain(checkpoint, ids, GenerationPlan(len(ids), 4)))
    config = ["serve", "--supervised", "--config", str(running.folder / "client.yaml"), "--tokenizer", str(text_model)]
    (running.folder / KEY_FILE).unlink(missing_ok=True)
    with Processes(tmp_path) as processes:
        child = processes.start("gateway", [*config, "--listen", "127.0.0.1:0"])
        processes.wait_ready([child])
        assert child.ready is not None
        url, keys = f"http://{child.ready['address']}/v1", running.folder / KEY_FILE
        key = keys.read_text().splitlines()[-1]
        assert stat.S_IMODE(keys.stat().st_mode) == 0o600
        assert not [line for line in child._lines if key in line]  # no terminal: it may go to a journal
        assert f"key for requests: made, in {keys}" in child._lines
        assert _key_made(keys, key, True) == f"key for requests, shown this once and kept in {keys}: {key}"
        with pytest.raises(AuthenticationError):
            OpenAI(base_url=url, api_key="none", max_retries=0).models.list()
        client = OpenAI(base_url=url, api_key=key, max_retries=0)
        assert [model.id for model in client.models.list()] == ["tiny"]
        whole = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=4)
        assert whole.choices[0].text == wanted
        stream = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=4, stream=True)
        assert "".join(piece.choices[0].text for piece in stream) == wanted
        sampled = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=2, temperature=1e-4)
        assert wanted.startswith(sampled.choices[0].text)
        os.kill(child.pid, signal.SIGTERM)
        assert child._process.wait(30) == 0
        said = list(child._lines)
        assert not [line for line in said if PROMPT in line or "Traceback" in line]
        assert sum("gateway: cmpl-" in line for line in said) == 3
        processes.children.remove(child)
        child.end()


def test_a_model_that_is_not_there(command: Command, running: LocalDeployment, text_model: Path) -> None:
    config = ["serve", "--config", running.folder / "client.yaml", "--tokenizer", text_model, "--listen", "127.0.0.1:0"]
    found = command(*config, "--model", "huge")
    assert (found.code, found.out) == (2, "")
    assert "the parties hold no model 'huge'" in found.err
