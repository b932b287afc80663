"""The demo's page before roles run, what is refused before anything starts, the map of kept tokens, and a party's noise."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import models.recall
from launch.demo.kept import kept_tokens
from launch.demo.talks import Talk, example, words_of
from launch.demo.web import WebDemo, served
from launch.local.openings import Openings, telling
from models.checkpoint import load_checkpoint
from models.generation import PlainModel
from models.recall.documents import evaluation_cases
from models.tokenizer.chat_template import ChatTemplate
from parties.program import Program
from protocols.registry import SuiteSpec
from tests.launch.conftest import Command, processes_of

MODEL = Path(models.recall.__file__).parent / "gpt2"
CASE = evaluation_cases(64, 1, 0)[0]


def demo(listen: str = "127.0.0.1:0") -> WebDemo:
    return WebDemo(Talk(MODEL, MODEL, "recall-gpt2", SuiteSpec("masked"), example(CASE), 64), listen=listen)


def get(address: str, path: str, key: str = "", host: str | None = None) -> tuple[int, Mapping[str, str], str]:
    """Status, headers and text."""
    connection = http.client.HTTPConnection(address, timeout=20)
    headers = {"Authorization": f"Bearer {key}", **({} if host is None else {"Host": host})}
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read().decode()


def test_the_page_is_there_before_the_roles() -> None:
    with served(demo()) as (address, app):
        place, _, key = address.removeprefix("http://").partition("/#key=")
        status, headers, text = get(place, "/")
        assert (status, "unsafe" in headers["content-security-policy"]) == (200, False)
        assert '<html lang="en" data-demo="yes">' in text
        assert get(place, "/demo")[0] == 401
        assert get(place, "/demo", key, "elsewhere.example")[0] == 403
        app.share("share model", 3, 10)
        told = json.loads(get(place, "/demo", key)[2])
        assert (told["phase"], told["ready"], told["shared"]) == ("the model owner shares the weights", False, [3, 10])
        assert told["example"]["message"] in CASE.prompt
        status, headers, text = get(place, "/v1/models", key)
        assert (status, headers["retry-after"]) == (503, "2")
        assert "not ready yet" in text
        assert get(place, "/health")[0] == 200


def test_the_shipped_model_reads_document_and_newest_question() -> None:
    asked = example(CASE)
    turns = [("system", asked.system), ("user", "Nobody"), ("assistant", "1 2"), ("user", asked.message)]
    with words_of(MODEL) as words:
        template = ChatTemplate.load(words)
        assert template.render([{"role": role, "content": text} for role, text in turns]) == CASE.prompt
    assert not words.exists()


def test_kept_tokens_are_those_of_the_policy() -> None:
    checkpoint = load_checkpoint(MODEL)
    model, ids = PlainModel(checkpoint), checkpoint.tokenizer.encode(CASE.prompt)
    full = kept_tokens(model, ids, "full")
    assert full == [[1.0] * 64] * 2
    window = kept_tokens(model, ids, "streaming-llm:budget=0.25,sinks=4")
    assert window is not None
    assert [[n for n, share in enumerate(layer) if share] for layer in window] == [[0, 1, 2, 3, *range(52, 64)]] * 2
    some = kept_tokens(model, ids, "h2o:budget=0.5")
    assert some is not None
    assert [round(sum(layer), 6) for layer in some] == [32.0, 32.0]
    assert some != kept_tokens(model, ids, "tova:budget=0.5")


def test_openings_are_counted_by_their_first_digit() -> None:
    told: list[Mapping[str, Any]] = []
    seen = Openings(told.append)
    seen.see(torch.tensor([0x1F, 0x20, 0xFF, 0xF0]), 8)
    seen.see(torch.tensor([-1, 1 << 60, 0x3 << 60]), 64)
    seen.see(torch.ones(5, dtype=torch.int64), 1)
    seen.tell()
    assert told[-1]["digits"] == [0, 2, 1, 1, *[0] * 11, 3]
    assert told[-1]["masked_bits"] == 5
    assert told[-1]["last"] == ["f" * 16, "1" + "0" * 15, "3" + "0" * 15]


def test_a_program_is_told_of_and_unchanged() -> None:
    class Context:
        observer: Any = None

    class Suite:
        context = Context()

    told: list[Mapping[str, Any]] = []
    program = telling(Program(lambda suite, *rest: {"rest": rest}, lambda suite, *rest: len(rest)), told.append)
    suite: Any = Suite()
    assert program.load(suite, "architecture", "shares") == {"rest": ("architecture", "shares")}  # type: ignore[arg-type]
    suite.context.observer(torch.tensor([7]), 4)
    assert program.run(suite, 1, 2, 3, 4, 5) == 5  # type: ignore[arg-type]
    assert told[-1]["digits"][7] == 1
    plain: Any = object()
    assert program.run(plain, 1, 2, 3, 4, 5) == 5  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--web", "--policy", "nothing"], "unknown cache policy 'nothing'"),
        (["--web", "--policy", "mpcache:preset=clusters,sharing=1", "--tokens", "64"], "attends to 6 of 64 tokens"),
        (["--web", "--lab", "lan"], "--lab cannot be combined with --web"),
        (["--web", "--tokens", "3"], "--tokens 3"),
        (["--port", "8000"], "--port needs --web"),
    ],
)
def test_what_cannot_be_is_said_before_anything_starts(command: Command, options: list[str], said: str) -> None:
    found = command("demo", *options)
    assert found.code == 2
    assert said in " ".join(found.err.split())


def test_a_port_that_is_taken(command: Command) -> None:
    with served(demo()) as (address, _):
        port = address.partition("/#")[0].rpartition(":")[2]
        found = command("demo", "--web", "--port", port)
    assert (found.code, found.out) == (2, "")
    assert f"cannot listen at 127.0.0.1:{port}: address already in use; choose another port in --port" in found.err


def test_ctrl_c_while_it_starts_leaves_nothing(tmp_path: Path) -> None:
    """`python -m tests.tools.web_demo` does so after a chat."""
    command = [sys.executable, "-m", "launch.cli.main", "demo", "--web", "--tokens", "32"]
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    running = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where tests run in a shell's background
    )
    assert running.stdout is not None
    assert any(line.startswith("http://127.0.0.1:") for line in running.stdout)
    limit = time.monotonic() + 20
    while not processes_of(tmp_path) and time.monotonic() < limit:
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    try:
        _, said = running.communicate(timeout=30)
    finally:
        running.kill()
    assert (running.returncode, "Traceback" in said) == (130, False)
    limit = time.monotonic() + 20
    while processes_of(tmp_path) and time.monotonic() < limit:  # one that had not read its first line ends by itself
        time.sleep(0.05)
    assert processes_of(tmp_path) == []
    assert list(tmp_path.iterdir()) == []
