"""One rule for what `--model` names, in every command that has it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launch.checkpoints.fetching import SOURCES
from launch.checkpoints.folders import FORMAT, RECORD
from launch.checkpoints.naming import named_folder, named_shape
from mpc.errors import ConfigurationError
from tests.launch.conftest import Command


@pytest.fixture
def fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache in which smollm2 stands as fetched."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "cache" / "mpcache" / "models" / "smollm2"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    record = {"format": FORMAT, "sha256": SOURCES["smollm2"].sha256, "files": {"config.json": 2}}
    (folder / RECORD).write_text(json.dumps(record))
    return folder


def test_a_fetched_name(fetched: Path, tmp_path: Path) -> None:
    assert named_folder(Path("smollm2")) == fetched
    assert named_shape("smollm2") == str(fetched)
    (fetched / "config.json").write_text("{ }")  # no longer what was fetched
    with pytest.raises(ConfigurationError, match="not fetched yet: run `mpcache fetch smollm2`"):
        named_folder(Path("smollm2"))
    (tmp_path / "smollm2").mkdir()
    assert named_folder(Path("smollm2")) == Path("smollm2")  # what is there goes first
    assert named_shape("gpt2") == "gpt2"


def test_the_option_that_was_given_is_named(fetched: Path, command: Command) -> None:
    found = command("serve", "--config", "no.yaml", "--tokenizer", "nowhere")
    assert "--tokenizer nowhere is no folder here" in found.err
    assert "--model" not in found.err


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("minilm", "--model minilm is not fetched yet: run `mpcache fetch minilm`"),
        ("gpt2", "--model gpt2 is a known shape, which has no weights: estimate, plan and bench take it"),
        ("bert-base", "--model bert-base is a known shape"),
        ("nowhere", "--model nowhere is no folder here and no name of `mpcache fetch` (smollm2, minilm)"),
        ("no/where", "--model no/where: nothing is there"),
    ],
)
@pytest.mark.parametrize(
    "words",
    [
        ["generate", "--prompt", "a"],
        ["chat"],
        ["check", "--prompt", "a"],
        ["calibrate"],
        ["quality", "--out", "out"],
        ["model-owner", "--config", "no.yaml"],
        ["doctor"],
    ],
)
def test_what_it_is_not(fetched: Path, command: Command, words: list[str], name: str, said: str) -> None:
    found = command(*words, "--model", name)
    assert (found.code, found.out) == (2, "")
    assert said in " ".join(found.err.split())


@pytest.mark.parametrize(
    "words", [["estimate", "--prompt", "8"], ["plan", "--prompt", "8"], ["bench", "--cached", "4"], ["trace", "--out", "x"]]
)
def test_commands_that_need_no_weights(fetched: Path, command: Command, words: list[str]) -> None:
    (fetched / "config.json").write_text("[]")
    found = command(*words, "--model", "smollm2")
    assert found.code == 2
    assert str(fetched) in found.err.replace("\n", "")  # its folder is what is read
    found = command(*words, "--model", "nowhere")
    assert "is neither a file, nor a folder, nor one of the known shapes" in " ".join(found.err.split())
