"""A benchmark's matrix: its cells, going on after an interruption, failures, and bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launch.bench.cell import Cell, Matrix, changed, read_matrix
from launch.bench.matrix import run_matrix
from launch.bench.measure import bench_plan, measure_estimate
from launch.bench.results import ResultFolder, read_results
from launch.tracing import STEP, Setting, trace_step
from mpc.errors import ConfigurationError, EnvironmentProblem
from tests.launch.conftest import Command


def test_cells_are_every_combination_once() -> None:
    cells = Matrix(models=["tiny"], suites=["masked", "crypten"], prompts=[9, 17], repeat=2).all_cells()
    assert [(c.prompt, c.suite) for c in cells] == [(9, "masked"), (9, "crypten"), (17, "masked"), (17, "crypten")]
    assert all(c.repeat == 2 for c in cells)
    assert len({c.name for c in cells}) == 4


def test_corrections() -> None:
    matrix = Matrix(
        models=["tiny"],
        suites=["masked", "crypten"],
        policies=["full", "mpcache"],
        suite_options={"crypten": {"crypten_own": True}},
        exclude=[{"suite": "crypten", "policy": ["mpcache", "h2o"]}],
        cells=[{"model": "tiny", "suite": "masked", "prompt": 33}],
    )
    found = [(c.suite, c.policy, c.prompt, c.options) for c in matrix.all_cells()]
    assert found == [
        ("masked", "full", 1024, {}),
        ("crypten", "full", 1024, {"crypten_own": True}),
        ("masked", "mpcache", 1024, {}),
        ("masked", "full", 33, {}),
    ]


def test_a_name_changes_with_every_setting() -> None:
    names = {Cell(**change).name for change in ({}, {"seed": 2}, {"threads": 2}, {"options": {"score": 8}}, {"layers": 3})}
    assert len(names) == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("suites: [masked]\nsuits: [x]", "unknown key 'suits'"),
        ("prompts: [many]", "prompts.0"),
        ("- a", "expected 'key: value' lines"),
        ("a: [", "not valid YAML"),
        ("networks: [moon]", "network 'moon'"),
        ("prompts: []", "'prompts' is empty"),
        ("exclude: [{sweet: 1}]", "names 'sweet'"),
        ("only: [{suite: none}]", "the matrix has no cell"),
        ("measures: [session]", "2 tokens or more"),
    ],
)
def test_bad_files(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "matrix.yaml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=message):
        read_matrix(path).all_cells()


def test_settings_on_the_command_line() -> None:
    matrix = changed(Matrix(prompts=[5]), ["suites=crypten", "repeat=7"])
    assert (matrix.suites, matrix.repeat, matrix.prompts) == (["crypten"], 7, [5])
    for wrong in ("repeat", "sweets=3", "repeat=many", "prompts=["):
        with pytest.raises(ConfigurationError, match="--set"):
            changed(Matrix(), [wrong])


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    cells = Matrix(models=["tiny"], prompts=[9, 17, 18]).all_cells()
    folder, said, asked = ResultFolder(tmp_path / "out"), [], []

    def measure(cell: Cell, place: dict[str, Any]) -> dict[str, Any]:
        asked.append(cell.prompt)
        if cell.prompt == 17 and len(asked) == 2:
            raise KeyboardInterrupt
        if cell.prompt == 18:
            raise EnvironmentProblem("no memory")
        return {"rounds": cell.prompt}

    with pytest.raises(KeyboardInterrupt):
        run_matrix(cells, folder, said.append, measure)
    outcome = run_matrix(cells, folder, said.append, measure)
    assert asked == [9, 17, 17, 18]
    assert (len(outcome.measured), len(outcome.skipped)) == (1, 1)
    assert outcome.failed == [(cells[2], "error [environment]: no memory")]
    assert {r["cell"].prompt: r["measured"]["rounds"] for r in read_results(folder.folder)} == {9: 9, 17: 17}


def test_what_cannot_work_is_refused_before_anything_runs(tmp_path: Path) -> None:
    cells = Matrix(models=["tiny"], prompts=[9], policies=["full", "h2o:budget=7"]).all_cells()
    with pytest.raises(ConfigurationError, match="budget"):
        run_matrix(cells, ResultFolder(tmp_path / "out"), lambda line: None, lambda cell, place: {})
    assert not (tmp_path / "out").exists()


def test_estimates_count_what_a_trace_counts() -> None:
    cell = Cell(measure="estimate", model="tiny", prompt=9)
    found = measure_estimate(cell)
    total = trace_step(bench_plan(cell).shape, Setting("masked", 2), 9, 1).ledger.total(f"{STEP}/")
    assert (found["rounds"], found["bytes_sent"]["party0"]) == (total.rounds, total.bytes_sent)
    assert sum(part["bytes_sent"] for part in found["parts"].values()) == total.bytes_sent
    assert sum(op["rounds"] for op in found["operations"].values()) == total.rounds


def test_a_matrix_on_the_wire(tmp_path: Path, command: Command) -> None:
    """One measured cell agrees with its estimate to the byte, carries where it was made, and is not measured twice."""
    setting = ["--set", "models=tiny", "--set", "prompts=9", "--set", "repeat=1", "--set", "measures=[token, estimate]"]
    done = command("bench", *setting, "--out", tmp_path / "out", "--json")
    assert done.code == 0, done.err
    assert len(json.loads(done.out)["measured"]) == 2
    found = {r["cell"].measure: r for r in read_results(tmp_path / "out")}
    wire, predicted = found["token"]["measured"], found["estimate"]["measured"]
    for what in ("rounds", "per_layer"):
        assert wire[what] == predicted[what]
    assert max(wire["bytes_sent"].values()) == predicted["bytes_sent"]["party0"]
    assert max(wire["offline_bytes"].values()) == predicted["offline_bytes"]["party0"]
    assert sum(p["bytes_sent"] for p in wire["parts"].values()) == max(wire["bytes_sent"].values())
    assert wire["seconds"]["median"] > 0
    assert found["token"]["environment"]["hardware"]["cores"] >= 1
    again = command("bench", *setting, "--out", tmp_path / "out", "--json")
    assert len(json.loads(again.out)["skipped"]) == 2


def test_a_matrix_needs_a_folder(command: Command, tmp_path: Path) -> None:
    assert "needs --out" in command("bench", "--set", "models=tiny").err
    assert "give --config" in command("bench", "--cached", 3, "--out", tmp_path).err
