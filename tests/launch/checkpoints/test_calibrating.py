"""`mpcache calibrate`, and the commands that calibrate without being asked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from launch.local.deployment import LocalDeployment
from tests.launch.conftest import Command


@pytest.fixture
def fresh(text_model: Path, tmp_path: Path) -> Path:
    """A copy of the model that was never calibrated."""
    folder = tmp_path / "fresh"
    shutil.copytree(text_model, folder)
    (folder / "mpcache.json").unlink(missing_ok=True)
    return folder


def test_calibrate(command: Command, fresh: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("What the model will read.\n---\nAnd something else: 1 2 3.")
    found = command("calibrate", "--model", fresh, "--text", text, "--json")
    report = json.loads(found.out)
    assert (found.code, report["ok"]) == (0, True)
    assert report["suites"] == {"masked": {"residual": 8}, "crypten": {"residual": 8}}
    assert report["file"] == str(fresh / "mpcache.json")
    written = json.loads((fresh / "mpcache.json").read_text())
    assert (written["tokens"], written["suites"]) == (report["tokens"], report["suites"])
    assert report["extremes"]["residual"] == written["extremes"]["residual"]
    shown = command("calibrate", "--model", fresh, "--dry-run")
    assert "masked: residual=8" in shown.out
    missing = command("calibrate", "--model", fresh, "--text", tmp_path / "none.txt")
    assert missing.code == 2
    assert "cannot be read" in missing.err


def test_values_that_no_bound_holds_are_named(command: Command, fresh: Path) -> None:
    file = fresh / "model.safetensors"
    tensors = load_file(file)
    tensors["transformer.h.0.mlp.c_proj.bias"][0] = 1e7
    save_file(tensors, file, {"format": "pt"})
    found = command("calibrate", "--model", fresh)
    assert found.code == 1
    assert "norms of rows of the residual stream reach" in found.out
    assert "bound 262144: more than the suite can hold (2^18 with `residual`)" in found.out


def test_generate_calibrates_and_the_client_lists_it(command: Command, fresh: Path, running: LocalDeployment) -> None:
    said = command("doctor", "--model", fresh, "--json")
    line = next(f for f in json.loads(said.out)["findings"] if f["what"] == "calibration")
    assert (line["ok"], line["remedy"]) == (False, f"mpcache calibrate --model {fresh}")
    found = command("generate", "--model", fresh, "--prompt", "Who", "--max-new-tokens", "1")
    assert found.code == 0
    assert "Calibrated on" in found.err
    assert (fresh / "mpcache.json").exists()
    line = next(
        f for f in json.loads(command("doctor", "--model", fresh, "--json").out)["findings"] if f["what"] == "calibration"
    )
    assert line["ok"]
    listed = command("client", "--config", running.folder / "client.yaml")
    assert listed.out.split()[-1] == "own" or " own" in listed.out
