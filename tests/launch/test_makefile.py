"""`make setup` says what is missing before it makes anything; development tools come with `make dev` alone."""

from __future__ import annotations

import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from launch.deployment.host_files import CRYPTEN
from protocols.registry import CRYPTEN_VERSION, SUITES

ROOT = Path(__file__).parents[2]
FAKE = """#!/bin/sh
if [ "$1" = --version ]; then echo "Python {version}"; exit 0; fi
case "$2" in *{fails}*) exit 1;; esac
exit 0
"""


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(
    ("version", "fails", "message"),
    [
        ("3.9.2", "version_info", "error: Python 3.9.2 is too old, 3.11 or newer is needed"),
        ("3.11.2", "ensurepip", "error: Python 3.11.2 has no module venv; install it (Debian: apt install python3-venv)"),
        (None, "", "is not installed; install Python 3.11 or newer"),
    ],
)
def test_unfit_python(tmp_path: Path, version: str | None, fails: str, message: str) -> None:
    python = tmp_path / "python3"
    if version is not None:
        python.write_text(FAKE.format(version=version, fails=fails))
        python.chmod(0o755)
    arguments = ["make", "-C", str(ROOT), "setup", f"VENV={tmp_path / 'venv'}", f"PYTHON={python}"]
    found = subprocess.run(arguments, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert found.returncode != 0
    assert message in found.stderr
    assert not (tmp_path / "venv").exists()


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_development_tools_are_installed_for_those_who_develop(tmp_path: Path) -> None:
    def recipe(target: str) -> str:
        arguments = ["make", "-C", str(ROOT), "--dry-run", target, f"VENV={tmp_path / 'venv'}"]
        return subprocess.run(arguments, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL).stdout

    for target in ("setup", "demo", "bench", "gates", "results"):
        said = recipe(target)
        assert "[dev]" not in said
        assert "-c constraints.txt" in said
        assert "--no-deps crypten==" in said
    for target in ("dev", "test", "check", "reference", "policies", "published"):
        said = recipe(target)
        assert said.index("--no-deps crypten==") < said.index("'.[dev]'")
        assert said.count("-c constraints.txt") == 2


def test_one_version_of_crypten() -> None:
    """The Makefile, the extra, host files and the check at run time ask for the same release."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    wanted = f"crypten=={CRYPTEN_VERSION}"
    assert f"CRYPTEN := {wanted}\n" in (ROOT / "Makefile").read_text(encoding="utf-8")
    assert wanted in extras["crypten"]
    assert wanted == CRYPTEN
    assert SUITES["crypten"].install.endswith(wanted)
