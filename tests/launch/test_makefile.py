"""`make setup` says what is missing before it makes anything."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

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
