"""The examples of docs/python.md, docs/gateway.md and `PrivateModel`, run as they stand."""

from __future__ import annotations

import doctest
import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from launch.serve.gateway.settings import KEY_FILE, own_keys
from mpcache import PrivateModel, SamplingParams
from tests.launch.serve.gateway_harness import deployed, serving
from tests.parties.conftest import checkpoint  # noqa: F401
from tests.parties.letters import answer

PAGES = Path(__file__).parents[2] / "docs"


def blocks(page: str, language: str) -> list[str]:
    found = re.findall(rf"```{language}\n(.*?)```", (PAGES / page).read_text(), flags=re.DOTALL)
    assert found
    return found


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Iterator[Any]:  # noqa: F811
    """A deployment that holds the model of the examples, and a folder with what they name."""
    folder = tmp_path_factory.mktemp("pages")
    with deployed(folder, checkpoint, name="assistant") as (deployment, toy, letters):
        (folder / "assistant").symlink_to(letters)
        values = {**deployment.values("client", "client"), "certificates": str(deployment.certificates)}
        (folder / "client.yaml").write_text(yaml.safe_dump(values))
        yield folder, deployment, toy, letters


def test_python(parts: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(parts[0])
    names: dict[str, Any] = {}
    for block in blocks("python.md", "python"):
        exec(compile(block, "docs/python.md", "exec"), names)
    said = capsys.readouterr().out
    assert said.startswith("\n".join(answer("ab", tokens) for tokens in (8, 4, 4, 8)))
    assert names["answer"] == answer("ab", 8)
    assert "num_beams = 4 cannot work on shares: beam search compares scores of sequences" in said
    names["model"].close()


def test_the_example_of_private_model(parts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(parts[0])
    runner = doctest.DocTestRunner()
    said: list[str] = []
    names = {"PrivateModel": PrivateModel, "SamplingParams": SamplingParams}
    for test in doctest.DocTestFinder(recurse=False).find(PrivateModel, globs=names):
        runner.run(test, out=said.append)
    assert runner.tries > 0
    assert runner.failures == 0, "".join(said)


def test_gateway(parts: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    folder, deployment, toy, letters = parts
    keys, key = own_keys(folder / KEY_FILE)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("OPENAI_API_KEY", str(key))
    with serving(deployment, toy, letters, keys=keys) as running:
        for block in blocks("gateway.md", "python")[:1]:
            exec(compile(block.replace("127.0.0.1:8000", running.address), "docs/gateway.md", "exec"), {})
        assert capsys.readouterr().out == answer("ab", 8) + "\n" + answer("ab", 8)
        commands = re.findall(r"^\$ (curl .*)$", "\n".join(blocks("gateway.md", "console")), flags=re.MULTILINE)
        assert len(commands) == 3
        if shutil.which("curl") is None:
            pytest.skip("curl is not installed")
        found = []
        for command in map(os.path.expandvars, commands):
            arguments = [word.replace("127.0.0.1:8000", running.address) for word in shlex.split(command)]
            found.append(
                subprocess.run([*arguments, "-sS", "--noproxy", "*"], capture_output=True, text=True, check=True).stdout
            )
        assert json.loads(found[0])["data"][0]["id"] == "assistant"
        assert json.loads(found[1])["choices"][0]["text"] == answer("ab", 8)
        assert found[2].endswith("data: [DONE]\n\n")
