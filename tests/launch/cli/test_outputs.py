"""Where results cannot be written is said before any work, naming option, path and reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.launch.conftest import Command

RESULTS = Path(__file__).parents[3] / "docs" / "results"
NETWORKS = Path(__file__).parents[3] / "docs" / "bench" / "networks.yaml"


@pytest.fixture
def forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """No work begins."""

    def work(*arguments: object, **options: object) -> None:
        raise AssertionError("work began")

    for place in (
        "launch.report.rows.rows_of",
        "launch.measure.gates.table.rows",
        "launch.measure.matrix.run_matrix",
        "launch.lab.lab.Lab.up",
        "launch.measure.bench.trace.run_traced",
        "models.checkpoint.load_checkpoint",
    ):
        monkeypatch.setattr(place, work, raising=False)


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["report", "--results", RESULTS, "--out"], "--out"),
        (["bench", "--config", NETWORKS, "--out"], "--out"),
        (["quality", "--model", "MODEL", "--out"], "--out"),
        (["gates", "--markdown"], "--markdown"),
        (["trace", "--shape", "gpt2", "--out"], "--out"),
        (["lab", "up", "--addresses"], "--addresses"),
        (["report", "--results", RESULTS, "--fill"], "--fill"),
    ],
)
def test_before_work(
    command: Command, forbidden: None, text_model: Path, tmp_path: Path, words: list[object], option: str
) -> None:
    (tmp_path / "file").touch()
    given = [text_model if word == "MODEL" else word for word in words]
    for place in (tmp_path / "file" / "inner", Path("/proc/none/inner")):
        found = command(*given, place)
        assert (found.code, found.out) == (2, ""), place
        said = " ".join(found.err.split())
        assert said.startswith(f"error [configuration]: {option} {place}")
        assert "name another" in said


def test_a_folder_where_a_file_is_wanted_and_the_other_way_round(command: Command, forbidden: None, tmp_path: Path) -> None:
    assert f"--markdown {tmp_path} is a folder; name a file" in " ".join(
        command("gates", "--markdown", tmp_path).err.split()
    )
    file = tmp_path / "file"
    file.touch()
    said = " ".join(command("report", "--results", RESULTS, "--out", file).err.split())
    assert f"--out {file} cannot be made: a file is there" in said
