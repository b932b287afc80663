"""Packages for a machine that has torch and no network: wheels in a folder."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

WANTED = {
    "cryptography": ("cryptography", "cffi", "pycparser"),
    "pydantic": ("pydantic", "pydantic-core", "annotated-types", "typing-inspection", "typing-extensions"),
    "crypten": ("crypten", "omegaconf"),
    "safetensors": ("safetensors",),
    "grpc": ("grpcio", "protobuf"),
    "grpc_health": ("grpcio-health-checking",),
    "pytest": ("pytest", "iniconfig", "pluggy", "packaging"),
}


def collect(folder: Path) -> int:
    """Download the wheels that `--wheels` takes."""
    names = [name for group in WANTED.values() for name in group]
    return subprocess.run(
        [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(folder), *names], check=False
    ).returncode


@contextmanager
def provided(wheels: Path | None) -> Iterator[Path | None]:
    """Yield a folder with the packages that are missing here; None where nothing is, or nothing is given."""
    missing = [name for module, group in WANTED.items() if importlib.util.find_spec(module) is None for name in group]
    if wheels is None or not missing:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        install = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--find-links", str(wheels)]
        subprocess.run([*install, "--target", folder, *missing], check=False, stdout=sys.stderr)
        yield Path(folder)
