"""The virtual environment of another system: made on request, never on its own, and apart from this project's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

from mpc.errors import EnvironmentProblem

SPU = "spu==0.9.5"
FOLDER_VARIABLE = "MPCACHE_PEERS"
READY = "installed"


def folder() -> Path:
    """Return where it is or will be: $MPCACHE_PEERS, or the user's cache folder."""
    named = os.environ.get(FOLDER_VARIABLE)
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return (Path(named) if named else Path(cache) / "mpcache" / "peers") / SPU.replace("==", "-")


def python() -> Path:
    """Return the environment's Python. Raises `EnvironmentProblem` when it is not installed."""
    found = folder() / "bin" / "python"
    if not found.exists() or not (folder() / READY).exists():
        raise EnvironmentProblem(f"SecretFlow-SPU is not installed in {folder()}: run `mpcache peers install`")
    return found


def install() -> Path:
    """Make the environment and install SPU in it; what is there and complete is kept. Raises `EnvironmentProblem`."""
    place = folder()
    if (place / READY).exists():
        return place
    if sys.version_info[:2] not in ((3, 10), (3, 11)):
        raise EnvironmentProblem(
            f"{SPU} has packages for Python 3.10 and 3.11, this is {sys.version_info[0]}.{sys.version_info[1]}: "
            "run this command with one of these"
        )
    shutil.rmtree(place, ignore_errors=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    venv.create(place, with_pip=True)
    command = [str(place / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", SPU]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise EnvironmentProblem(f"{SPU} could not be installed in {place}: {last[:300]}")
    (place / READY).write_text(SPU + "\n", encoding="utf-8")
    return place
