"""Builds the project's wheel from a copy of its sources, and says what must be in it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("launch", "models", "mpc", "mpcache", "parties", "protocols")
ALONE = ("pyproject.toml", "README.md", "LICENSE")


def build(folder: Path) -> Path:
    """Return the wheel, made below `folder` without index or network. Needs setuptools 77 or newer."""
    source = folder / "source"
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ALONE:
        shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-index"]
    arguments = ["--no-deps", "--no-build-isolation", "--wheel-dir", str(folder / "dist"), str(source)]
    subprocess.run([*pip, *arguments], check=True, stdin=subprocess.DEVNULL)
    (wheel,) = (folder / "dist").glob("mpcache-*.whl")
    return wheel


def package_files() -> set[str]:
    """Return every file of the packages, code and data, by its path from the root; Python's caches are none."""
    files = (path for name in PACKAGES for path in (ROOT / name).rglob("*") if path.is_file())
    return {path.relative_to(ROOT).as_posix() for path in files if "__pycache__" not in path.parts}


def contents(wheel: Path) -> tuple[set[str], set[str]]:
    """Return the wheel's files and, apart from them, those of its metadata folder, without the folder's name."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    metadata = {name for name in names if ".dist-info/" in name}
    return names - metadata, {name.split("/", 1)[1] for name in metadata}
