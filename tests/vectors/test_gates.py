"""Vectors of the gates: the implementation makes the same bytes, and an independent one reads them to the right result."""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.tools import make_vectors
from tests.vectors import files
from tests.vectors.independent.gates import evaluate

ROOT = Path(__file__).parents[2]
RUNS = ["tape", *files.gate_files()]
PROJECT = {"mpc", "protocols", "parties", "models", "launch", "torch", "crypten", "tests"}
Case = dict[str, Any]


@pytest.mark.parametrize("name", files.sources())
def test_the_implementation_makes_the_vector(name: str) -> None:
    """Dealt values, messages, shares, byte for byte. After a change on purpose: `python -m tests.tools.make_vectors`."""
    assert list(files.differences(files.read(name), files.content(name)))[:3] == []


@pytest.mark.parametrize("name", RUNS)
def test_an_independent_implementation_agrees(name: str) -> None:
    """Own dealer, own parties, then float64."""
    cases = files.read(name)["cases"]
    assert {case["parties"] for case in cases} == {2, 3}
    for case in cases:
        evaluate(case)


def test_it_is_independent() -> None:
    """No file of the independent implementation imports anything of the project."""
    for file in (Path(__file__).parent / "independent").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                foreign = name.split(".")[0] not in PROJECT
                assert foreign or name.startswith("tests.vectors.independent"), f"{file.name} imports {name}"


def _dealt(case: Case) -> list[Any]:
    return next(entry for entry in case["tape"] if len(entry) == 2 and isinstance(entry[1], str))


def _swap(text: str) -> str:
    return ("B" if text[0] == "A" else "A") + text[1:]


def _change_dealt(case: Case) -> None:
    entry = _dealt(case)
    entry[1] = _swap(entry[1])


def _change_header(case: Case) -> None:
    case["tape"][0][0] = case["tape"][0][0].replace("Z_2^", "Z_2^1")


def _change_message(case: Case) -> None:
    case["rounds"][-1]["1"] = _swap(case["rounds"][-1]["1"])


def _change_share(case: Case) -> None:
    share = case["outputs"][0]["shares"][0]
    share["values"] = "1 " + share["values"].split(" ", 1)[1]


def _change_result(case: Case) -> None:
    case["outputs"][0]["value"]["values"] = "1 " + case["outputs"][0]["value"]["values"].split(" ", 1)[1]


def _change_seed(case: Case) -> None:
    case["seeds"][0] = "00" * 32


def _change_input(case: Case) -> None:
    case["inputs"][0]["shares"][0]["values"] = "1 " + case["inputs"][0]["shares"][0]["values"].split(" ", 1)[1]


def _drop_round(case: Case) -> None:
    del case["rounds"][-1]


def _swap_entries(case: Case) -> None:
    case["tape"][0], case["tape"][1] = case["tape"][1], case["tape"][0]


def _change_hash(case: Case) -> None:
    case["tape_sha256"][1] = case["tape_sha256"][0]


CHANGES = [
    _change_dealt,
    _change_header,
    _change_message,
    _change_share,
    _change_result,
    _change_seed,
    _change_input,
    _drop_round,
    _swap_entries,
    _change_hash,
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["product", "crypten_product"])
def test_a_changed_vector_is_noticed(name: str, change: Callable[[Case], None]) -> None:
    """Each thing that a vector says is looked at."""
    case = copy.deepcopy(files.read(name)["cases"][0])
    evaluate(case)
    change(case)
    with pytest.raises(AssertionError):
        evaluate(case)


@pytest.mark.parametrize("name", ["sample", "crypten_sample"])
def test_other_noise_is_noticed(name: str) -> None:
    """What is dealt is the noise of the vector's seed, and the result has it."""
    case = files.read(name)["cases"][0]
    with pytest.raises(AssertionError, match=r"'gumbel .* the dealt value is another one"):
        evaluate({**case, "noise_seeds": case["seeds"]})


def test_a_result_beyond_its_bound_is_noticed() -> None:
    """The opened result is compared with the function, not with the vector alone."""
    case = copy.deepcopy(files.read("activation")["cases"][0])
    evaluate(case)
    from tests.vectors.independent import gates

    judged = gates.GATES["activation"]
    wrong = gates.Gate(judged.program, lambda x, **given: judged.judge(x + 0.01, **given))
    gates.GATES["activation"] = wrong
    try:
        with pytest.raises(AssertionError, match="off by up to"):
            evaluate(case)
    finally:
        gates.GATES["activation"] = judged


def test_every_protocol_has_a_vector() -> None:
    """A file of protocols is pinned down by a vector, or is named as one that holds no protocol."""
    pinned = {source for given in files.sources().values() for source in given}
    for folder, named in files.NO_PROTOCOL.items():
        for file in (ROOT / "protocols" / folder).glob("*.py"):
            where = f"protocols/{folder}/{file.name}"
            assert (where in pinned) != (file.name in named), f"{where}: name it in tests/vectors/files.py"
    assert all((ROOT / source).exists() for source in pinned)


def test_files_are_small_and_described() -> None:
    """All of them together, and each in the page."""
    found = sorted(files.FOLDER.glob("*.json"))
    assert {file.stem for file in found} == set(files.sources())
    assert sum(file.stat().st_size for file in found) <= files.LARGEST
    page = (ROOT / "docs" / "vectors.md").read_text()
    assert [file.stem for file in found if f"`{file.stem}`" not in page] == []


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Compares, says where a file differs, refuses a name that is none, writes whole tapes."""
    assert make_vectors.main(["--check", "floor"]) == 0
    changed = files.read("floor")
    changed["cases"][0]["parties"] = 3
    monkeypatch.setattr(files, "read", lambda name: changed)
    assert make_vectors.main(["--check", "floor"]) == 1
    assert "first: /cases[0]/parties is '3', made anew '2'" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        make_vectors.main(["clump"])
    assert "no vector is named 'clump'" in capsys.readouterr().err
    assert make_vectors.main(["floor", "--whole", str(tmp_path)]) == 0
    tapes = sorted(path.name for path in (tmp_path / "floor" / "0").iterdir())
    assert tapes[:2] == ["party0.tape", "party1.tape"]
    assert tapes[2:4] == ["round000.0-1.message", "round000.1-0.message"]
