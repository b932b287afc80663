"""A value that left its range, as a person at the command line and a program at the gateway hear of it."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import yaml

from launch.terminal.console import ERROR_EXIT, RANGE_EXIT, exit_code
from mpc.errors import PeerLost
from tests.launch.conftest import Command
from tests.launch.serve.gateway_harness import Running, deployed, serving
from tests.parties.conftest import checkpoint  # noqa: F401
from tests.parties.toy import Flags

MARKS = [("activation", 1), ("score", 0)]
FOUND = [("score", 0), ("activation", "head")]
LINE = "error [range-exceeded]: attention scores of layer 0 left their range"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Iterator[Running]:  # noqa: F811
    with deployed(tmp_path_factory.mktemp("range"), checkpoint) as parts, serving(*parts) as running:
        yield running


@pytest.fixture(scope="module")
def config(gateway: Running, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A client's configuration file."""
    path = tmp_path_factory.mktemp("client") / "client.yaml"
    values = {**gateway.deployment.values("client", "client"), "certificates": str(gateway.deployment.certificates)}
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(autouse=True)
def _plain_toy(gateway: Running) -> Iterator[None]:
    yield
    gateway.toy.flags = None


def places(found: Any) -> list[tuple[Any, ...]]:
    return [(one["kind"], one["layer"]) for one in found]


# ---- the command line -----------------------------------------------------------------------------------------------
def test_generate(command: Command, gateway: Running, config: Path) -> None:
    common = ["generate", "--config", config, "--model", gateway.letters, "--name", "tiny", "--suite", "crypten"]
    common += ["--prompt", "ab", "--max-new-tokens", "6"]
    gateway.toy.flags = Flags(3, MARKS)
    found = command(*common)
    assert (found.code, found.out) == (RANGE_EXIT, "cde\n")
    assert found.err.splitlines()[-1].startswith(LINE)
    assert "mpcache calibrate" in found.err

    as_json = command(*common, "--json")
    report = json.loads(as_json.out)
    assert (as_json.code, report["text"], report["tokens"], report["finish_reason"]) == (
        RANGE_EXIT,
        "cde",
        [3, 4, 5],
        "range",
    )
    assert places(report["findings"]) == FOUND
    assert {one["step"] for one in report["findings"]} == {3}
    assert as_json.err.splitlines()[-1].startswith(LINE)

    gateway.toy.flags = Flags(0, MARKS)
    first = command(*common)
    assert (first.code, first.out) == (RANGE_EXIT, "\n")
    report = json.loads(command(*common, "--json").out)
    assert (report["text"], report["tokens"], report["first_token_seconds"]) == ("", [], None)

    gateway.toy.flags = Flags(None)
    clean = command(*common, "--json")
    report = json.loads(clean.out)
    assert (clean.code, report["text"], report["finish_reason"], report["findings"]) == (0, "cdefgh", "length", [])


def test_client_goes_on_with_the_next_prompt(
    command: Command, gateway: Running, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0

    class Once(Flags):
        """The first session's second token is flagged."""

        def share(self, party: int, parties: int, step: int) -> Any:
            nonlocal asked
            asked += party == 0 and step == 0
            return Flags(1 if asked <= 1 else None, MARKS).share(party, parties, step)

    arguments = ["client", "--config", config, "--tokenizer", gateway.letters, "--suite", "crypten", "--max-new-tokens", "3"]
    gateway.toy.flags = Once(None)
    # party 0 begins each session's first token before party 1 emits its second
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"ab\nb\n")))
    found = command(*arguments)
    assert (found.code, found.out) == (RANGE_EXIT, "c\nbcd\n")
    assert found.err.count(LINE) == 1
    gateway.toy.flags = None
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"ab\n")))
    assert command(*arguments).code == 0


def test_only_this_error_has_this_code() -> None:
    assert exit_code(PeerLost("party0", "x", "y")) == exit_code(ValueError()) == ERROR_EXIT == 2
    assert RANGE_EXIT == 3


# ---- the gateway ----------------------------------------------------------------------------------------------------
def test_whole_answers(gateway: Running, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    client = gateway.openai()
    gateway.toy.flags = Flags(2, MARKS)
    found = client.completions.create(model="tiny", prompt="ab", max_tokens=5, stop="dX")
    assert (found.choices[0].text, found.choices[0].finish_reason) == ("cd", "range")
    assert found.usage is not None
    assert found.usage.completion_tokens == 2
    assert found.model_extra is not None
    said = found.model_extra["mpcache"]["range"]
    assert places(said) == FOUND
    assert "mpcache calibrate" in said[0]["message"]
    assert "session" in caplog.text
    assert "range" in caplog.text
    messages: Any = [{"role": "user", "content": "ab"}]
    chat = client.chat.completions.create(model="tiny", messages=messages, max_tokens=5)
    assert (chat.choices[0].message.content, chat.choices[0].finish_reason) == ("cd", "range")
    assert places(chat.model_dump()["mpcache"]["range"]) == FOUND
    gateway.toy.flags = Flags(0, MARKS)
    none = client.completions.create(model="tiny", prompt="ab", max_tokens=5)
    assert (none.choices[0].text, none.choices[0].finish_reason) == ("", "range")
    gateway.toy.flags = Flags(None)
    clean = client.completions.create(model="tiny", prompt="ab", max_tokens=2)
    assert clean.choices[0].finish_reason == "length"
    assert "mpcache" not in clean.model_dump()


def test_streams(gateway: Running) -> None:
    client = gateway.openai()
    gateway.toy.flags = Flags(2, MARKS)
    chunks = list(client.completions.create(model="tiny", prompt="ab", max_tokens=5, stream=True))
    assert [chunk.choices[0].text for chunk in chunks] == ["c", "d", ""]
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None, None, "range"]
    assert places(chunks[-1].model_dump()["mpcache"]["range"]) == FOUND
    assert all("mpcache" not in chunk.model_dump() for chunk in chunks[:-1])
    messages: Any = [{"role": "user", "content": "ab"}]
    usage: Any = {"include_usage": True}
    wanted: dict[str, Any] = {
        "model": "tiny",
        "messages": messages,
        "max_tokens": 5,
        "stream": True,
        "stream_options": usage,
    }
    parts = list(client.chat.completions.create(**wanted))
    assert [part.choices[0].delta.content for part in parts[:-1]] == ["", "c", "d", None]
    assert parts[-2].choices[0].finish_reason == "range"
    assert places(parts[-2].model_dump()["mpcache"]["range"]) == FOUND
    assert parts[-1].usage.completion_tokens == 2


def test_a_client_that_validates_is_told_by_an_error(gateway: Running) -> None:
    """The package openai accepts a reason that it does not know, unless it was asked to be strict."""
    gateway.toy.flags = Flags(2, MARKS)
    strict = gateway.openai(_strict_response_validation=True)
    with pytest.raises(openai.APIResponseValidationError):
        strict.completions.create(model="tiny", prompt="ab", max_tokens=5)
    gateway.toy.flags = None
    assert strict.completions.create(model="tiny", prompt="ab", max_tokens=2).choices[0].text == "cd"
