"""The wheel holds every file of the packages and nothing else; its metadata say what it is."""

from __future__ import annotations

import email
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.tools.wheel import build, contents, package_files

pytestmark = pytest.mark.skipif(
    Version(version("setuptools")) < Version("77"), reason="building needs setuptools 77 or newer: make dev"
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("wheel"))


def test_contents(wheel: Path) -> None:
    files, metadata = contents(wheel)
    assert files == package_files()
    assert metadata == {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "top_level.txt", "licenses/LICENSE"}
    for name in ("mpcache/py.typed", "parties/wire/wire.proto", "models/calibration/text.txt"):
        assert name in files
    assert any(name.endswith("model.safetensors") for name in files)


def test_metadata(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(archive.read(name))
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Author"] == "The mpcache authors"
    needs = [Requirement(line) for line in metadata.get_all("Requires-Dist", [])]
    plain = {need.name for need in needs if need.marker is None}
    assert "torch" in plain
    assert not plain & {"pytest", "mypy", "ruff", "hypothesis", "crypten"}
    crypten = {need.name for need in needs if need.marker is not None and need.marker.evaluate({"extra": "crypten"})}
    assert crypten == {"crypten", "sklearn"}
