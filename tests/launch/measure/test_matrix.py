"""A benchmark's matrix: its cells, going on after an interruption, failures, and bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launch.lab import iproute
from launch.measure.baselines import environment
from launch.measure.bench import sessions
from launch.measure.bench.cell import Cell, Matrix, Measure, changed, read_matrix
from launch.measure.bench.measure import bench_plan, measure_estimate, measure_prompt_estimate
from launch.measure.bench.results import ResultFolder, read_results
from launch.measure.matrix import run_matrix
from models.costs.tracing import STEP, Setting, trace_session, trace_step
from mpc.errors import ConfigurationError, EnvironmentProblem, MpcacheError
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


def test_an_estimate_of_several_tokens_is_their_mean() -> None:
    """Of four tokens one begins a cluster, which takes no comparison; some have so few scores to choose from that they are
    counted."""
    policy = "mpcache:preset=clusters,static=1,dynamic=0.5,fine=4,levels=1,sinks=1,window=2,sharing=1"
    cell = Cell(measure="estimate", model="tiny", policy=policy, prompt=21, new_tokens=4)
    a, setting = bench_plan(cell).shape, Setting("masked", 2, policy)
    steps = [found.ledger.total(f"{STEP}/") for found in trace_session(a, setting, 21, 5)][1:]
    found = measure_estimate(cell)
    assert len({step.bytes_sent for step in steps}) > 1
    assert found["rounds"] == sum(step.rounds for step in steps) / 4
    assert found["bytes_sent"]["party0"] == sum(step.bytes_sent for step in steps) / 4
    assert found["per_layer"]["rounds"] < found["rounds"] / a.layers


def test_a_prompts_estimate_counts_what_a_trace_counts() -> None:
    cell = Cell(measure="estimate-prompt", model="tiny", prompt=9)
    found = measure_prompt_estimate(cell)
    total = trace_step(bench_plan(cell).shape, Setting("masked", 2), 0, 9).ledger.total(f"{STEP}/")
    counted = (found["rounds"], found["bytes_sent"]["party0"], found["offline_bytes"]["party0"])
    assert counted == (total.rounds, total.bytes_sent, total.offline_bytes)
    for what in ("rounds", "bytes_sent", "offline_bytes"):
        for table in ("parts", "operations"):
            assert sum(entry[what] for entry in found[table].values()) == pytest.approx(getattr(total, what))


def test_the_matrix_of_the_page_of_costs_can_be_measured() -> None:
    """Every configuration beside docs/bench/costs.yaml is a matrix, and the prompts are in it."""
    folder = Path(__file__).parents[3] / "docs" / "bench"
    cells = {path.stem: read_matrix(path).all_cells() for path in folder.glob("*.yaml") if path.stem != "published"}
    prompts = [
        (c.measure, c.model, c.prompt, c.policy.partition(":")[0])
        for c in cells["costs"]
        if c.measure in ("prompt", "estimate-prompt")
    ]
    assert prompts == [
        ("prompt", "gpt2", 128, "full"),
        ("estimate-prompt", "gpt2", 512, "full"),
        ("estimate-prompt", "gpt2", 1024, "full"),
        ("estimate-prompt", "llama-2-7b", 1024, "full"),
        ("estimate-prompt", "gpt2", 4096, "full"),
        ("estimate-prompt", "gpt2", 4096, "batches"),
    ]
    for cell in (cell for found in cells.values() for cell in found if not cell.measure.startswith("peer")):
        bench_plan(cell)


def test_a_matrix_on_the_wire(tmp_path: Path, command: Command) -> None:
    """One measured cell agrees with its estimate to the byte, carries where it was made, and is not measured twice."""
    setting = ["--set", "models=tiny", "--set", "prompts=9", "--set", "repeat=1"]
    setting += ["--set", "measures=[token, estimate, prompt, estimate-prompt]"]
    done = command("bench", *setting, "--out", tmp_path / "out", "--json")
    assert done.code == 0, done.err
    assert len(json.loads(done.out)["measured"]) == 4
    found = {r["cell"].measure: r for r in read_results(tmp_path / "out")}
    for measure, estimate in (("token", "estimate"), ("prompt", "estimate-prompt")):
        wire, predicted = found[measure]["measured"], found[estimate]["measured"]
        for what in ("rounds", "per_layer"):
            assert wire[what] == predicted[what]
        for what in ("bytes_sent", "offline_bytes"):
            assert max(wire[what].values()) == predicted[what]["party0"]
            for table in ("parts", "operations"):
                assert sum(entry[what] for entry in wire[table].values()) == max(wire[what].values())
        assert wire["operations"] == predicted["operations"]
        assert wire["seconds"]["median"] > 0
    assert found["token"]["environment"]["hardware"]["cores"] >= 1
    again = command("bench", *setting, "--out", tmp_path / "out", "--json")
    assert len(json.loads(again.out)["skipped"]) == 4


def test_a_matrix_needs_a_folder(command: Command, tmp_path: Path) -> None:
    assert "needs --out" in command("bench", "--set", "models=tiny").err
    assert "give --config" in command("bench", "--cached", 3, "--out", tmp_path).err


@pytest.mark.parametrize("network", ["localhost", "2,1000"])
def test_sessions(network: str, text_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole sessions from a checkpoint, on this machine as it is and between namespaces. One of both starts its processes as
    a user's do."""
    lab = (why := iproute.problem()) is None
    if network != "localhost" and not lab:
        pytest.skip(str(why))
    if network == "localhost" and lab:
        monkeypatch.setattr(sessions, "measure_session", sessions.run_session)
    cell = Cell(measure="session", model=str(text_model), prompt=9, new_tokens=3, repeat=1, network=network)
    folder = ResultFolder(tmp_path)
    outcome = run_matrix([cell], folder, lambda line: None)
    assert not outcome.failed
    (found,) = read_results(tmp_path)
    measured = found["measured"]
    predicted = measure_estimate(Cell(measure="estimate", model=str(text_model / "config.json"), prompt=9))
    assert measured["rounds"] == predicted["rounds"]
    assert measured["first_token_seconds"]["median"] > 0 < measured["seconds"]["median"]
    assert set(measured["peak_memory_bytes"]) == {"party0", "party1", "dealer"}
    assert min(measured["peak_memory_bytes"].values()) > 50e6
    if network != "localhost":  # a token that comes late makes the next one's time shorter
        assert measured["first_token_seconds"]["median"] > measured["rounds"] * 0.001
        assert measured["seconds"]["median"] > measured["rounds"] * 0.0005
        assert 0 < measured["network_bandwidth"]["share"] < 1


def test_sessions_that_cannot_be(text_model: Path, tmp_path: Path) -> None:
    good = {"measure": "session", "model": str(text_model), "prompt": 9, "new_tokens": 3}
    for change, message in (
        ({"model": str(tmp_path)}, "config.json"),
        ({"prompt": 900}, "positions"),
        ({"suite": "x"}, "'x'"),
    ):
        with pytest.raises(MpcacheError, match=message):
            run_matrix([Cell(**{**good, **change})], ResultFolder(tmp_path / "out"), lambda line: None)


def test_a_step_between_namespaces(tmp_path: Path) -> None:
    if (why := iproute.problem()) is not None:
        pytest.skip(why)
    cells = Matrix(models=["tiny"], layers=1, prompts=[9], repeat=1, networks=["localhost", "10,1000"]).all_cells()
    assert not run_matrix(cells, ResultFolder(tmp_path), lambda line: None).failed
    found = {r["cell"].network: r["measured"] for r in read_results(tmp_path)}
    assert found["localhost"]["bytes_sent"] == found["10,1000"]["bytes_sent"]
    assert found["10,1000"]["seconds"]["median"] > found["10,1000"]["rounds"] * 0.005


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"suite": "spu"}, "'spu' is unknown"),
        ({"parties": 2}, "has 3 parties"),
        ({"policy": "mpcache"}, "full cache only"),
        ({"model": "llama-2-7b"}, "GPT-2 family"),
        ({}, "mpcache peers install"),
    ],
)
def test_peers_that_cannot_run(
    change: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPCACHE_PEERS", str(tmp_path))
    cell = Cell(**{"measure": "peer", "model": "gpt2", "suite": "spu-aby3", "parties": 3, **change})
    with pytest.raises(MpcacheError, match=message):
        run_matrix([cell], ResultFolder(tmp_path / "out"), lambda line: None)


@pytest.mark.skipif(not (environment.folder() / environment.READY).exists(), reason="`mpcache peers install` was not run")
@pytest.mark.parametrize(
    ("measure", "suite", "parties"), [("peer", "spu-aby3", 3), ("peer", "spu-semi2k", 2), ("peer-prompt", "spu-aby3", 3)]
)
def test_a_peer(measure: Measure, suite: str, parties: int, tmp_path: Path) -> None:
    """SPU's step is right, and its bytes are its own."""
    cell = Cell(measure=measure, model="tiny", layers=2, suite=suite, parties=parties, prompt=17, repeat=1)
    outcome = run_matrix([cell], ResultFolder(tmp_path), lambda line: None)
    assert not outcome.failed
    measured = read_results(tmp_path)[0]["measured"]
    assert measured["max_error"]["layer"] < 0.02
    assert measured["max_error"]["head"] == 0
    layer, head = measured["parts"]["layer"], measured["parts"]["head"]
    assert measured["rounds"] == 2 * layer["send_actions"] + head["send_actions"] > 100
    assert max(measured["bytes_sent"].values()) <= 2 * layer["bytes_sent"] + head["bytes_sent"]
