"""`mpcache generate --chat` and `mpcache chat`: the checkpoint's template, its turn's end, and a conversation's history."""

from __future__ import annotations

import io
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launch.local.deployment import LocalDeployment
from launch.terminal.answering import Asking
from models.checkpoint import load_checkpoint
from models.generation import GenerationPlan, generate_plain
from parties.client.client import GenerationResult
from parties.client.request import GenerationRequest
from parties.client.sampling_params import SamplingParams
from tests.launch.conftest import Command

TEMPLATE = "{% for m in messages %}{{ m.role[0] }}{{ m.content }}.{% endfor %}{% if add_generation_prompt %}a{% endif %}"

END = ord(":") - ord("!")  # the token of ":" in an alphabet of bytes that begins with "!"


@pytest.fixture(scope="module")
def talking(text_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The text model with a chat template."""
    folder = tmp_path_factory.mktemp("talking") / "tiny"
    shutil.copytree(text_model, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def said_in_plaintext(folder: Path, prompt: str, tokens: int) -> str:
    """What the model itself goes on with, as an answer of its own."""
    checkpoint = load_checkpoint(folder)
    ids = checkpoint.tokenizer.encode(prompt, special=False)
    stream = checkpoint.tokenizer.stream([])
    found = generate_plain(checkpoint, ids, GenerationPlan(len(ids), tokens))
    return "".join(stream.push(token) for token in found) + stream.flush()


def test_a_message(command: Command, running: LocalDeployment, talking: Path) -> None:
    config = ["generate", "--config", running.folder / "client.yaml", "--model", talking, "--max-new-tokens", 3]
    found = command(*config, "--prompt", "who", "--system", "be brief")
    assert (found.code, found.out) == (0, said_in_plaintext(talking, "sbe brief.uwho.a", 3) + "\n")
    found = command(*config, "--prompt", "who", "--chat")
    assert (found.code, found.out) == (0, said_in_plaintext(talking, "uwho.a", 3) + "\n")
    assert found.out.rstrip("\n") != said_in_plaintext(talking, "who", 3)


def test_a_conversation(command: Command, running: LocalDeployment, talking: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that was said goes with the second message; one that is too long is left out, and the next one is answered."""
    lines = f"who\n\n{'x' * 60}\nhow\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    config = ["chat", "--config", running.folder / "client.yaml", "--model", talking, "--max-new-tokens", 2]
    found = command(*config, "--system", "be")
    first = said_in_plaintext(talking, "sbe.uwho.a", 2)
    second = said_in_plaintext(talking, f"sbe.uwho.a{first}.uhow.a", 2)
    assert (found.code, found.out) == (0, f"{first}\n{second}\n")
    assert "need 77 positions, the model has 48" in " ".join(found.err.split())


@pytest.mark.parametrize("words", [["generate", "--chat", "--prompt", "a"], ["chat", "--system", "b"]])
def test_a_model_that_cannot_chat(command: Command, text_model: Path, words: list[str]) -> None:
    """Said before a process starts."""
    found = command(*words, "--model", text_model)
    assert (found.code, found.out) == (2, "")
    said = " ".join(found.err.split())
    assert "no chat template in tokenizer_config.json" in said
    assert "starting" not in said


class _Told:
    """A client whose parties say these tokens."""

    def __init__(self, answer: list[int]) -> None:
        self.answer = answer
        self.asked: list[GenerationRequest] = []

    def generate(self, request: GenerationRequest, *, on_token: Any, on_progress: Any) -> GenerationResult:
        self.asked.append(request)
        tokens: list[int] = []
        for token in self.answer:
            tokens.append(token)
            if on_token(token) is False:
                break
        return GenerationResult(tokens, {}, 1.0, [1.0] * len(tokens), "", "stop")


@pytest.mark.parametrize(
    ("params", "text", "tokens"),
    [
        (SamplingParams(16, stop=("\nUser:",)), "fine", 10),
        (SamplingParams(16, stop_token_ids=(END,)), "fine\nUser more", 15),  # parties end it there: nothing is shown
        (SamplingParams(16), "fine\nUser: more", 15),
    ],
)
def test_where_a_turn_ends(
    text_model: Path, capsys: pytest.CaptureFixture[str], params: SamplingParams, text: str, tokens: int
) -> None:
    tokenizer = load_checkpoint(text_model).tokenizer
    assert tokenizer.encode(":") == [END]
    client: Any = _Told(tokenizer.encode("fine\nUser: more"))
    asking = Asking(client, tokenizer)
    request = GenerationRequest([1, 2], params)
    given = asking.answer(request, [])
    assert (given.text, capsys.readouterr().out, len(given.result.tokens)) == (text, text + "\n", tokens)
    assert client.asked == [replace(request, params=replace(params, stop=()))]
