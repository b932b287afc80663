"""A path that cannot be written is said before the work, with option and reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.cli.outputs import check_output_file, check_output_folder
from mpc.errors import ConfigurationError
from tests.launch.conftest import Command


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["gates", "--markdown"], "--markdown"),
        (["report", "--results", "RESULTS", "--out"], "--out"),
        (["report", "--results", "RESULTS", "--fill"], "--fill"),
        (["bench", "--set", "models=tiny", "--out"], "--out"),
        (["quality", "--model", "MODEL", "--out"], "--out"),
        (["trace", "--shape", "tiny", "--out"], "--out"),
    ],
)
def test_commands(
    command: Command, text_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], option: str
) -> None:
    """Nothing is measured, read or drawn before."""
    for work in (
        "launch.measure.gates.table.rows",
        "launch.measure.matrix.run_matrix",
        "launch.measure.bench.results.read_results",
    ):
        monkeypatch.setattr(work, None)
    named = {"RESULTS": tmp_path, "MODEL": text_model}
    found = command(*(named.get(word, word) for word in arguments), "/proc/none/of-these")
    assert (found.code, found.out) == (2, "")
    (line,) = found.err.strip().splitlines()
    assert line.startswith(f"error [configuration]: {option} /proc/none/of-these")
    assert "name another" in line


def test_folders(tmp_path: Path) -> None:
    check_output_folder(tmp_path / "a" / "b", "--out")
    assert list((tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"--out .*/file cannot be written to: it is a file; name another folder"):
        check_output_folder(tmp_path / "file", "--out")
    with pytest.raises(ConfigurationError, match=r"--out /proc cannot be written to: "):
        check_output_folder(Path("/proc"), "--out")


def test_files(tmp_path: Path) -> None:
    check_output_file(tmp_path / "new", "--out")
    assert not (tmp_path / "new").exists()
    (tmp_path / "old").write_text("kept")
    check_output_file(tmp_path / "old", "--out")
    assert (tmp_path / "old").read_text() == "kept"
    for path, reason in ((tmp_path, "is a folder"), (tmp_path / "a" / "b", "the folder .*/a does not exist")):
        with pytest.raises(ConfigurationError, match=reason):
            check_output_file(path, "--out")
    with pytest.raises(ConfigurationError, match=r"--out /proc/new cannot be written: "):
        check_output_file(Path("/proc/new"), "--out")
