"""Importing CrypTen, and what a person reads when that does not work."""

from __future__ import annotations

import importlib
import subprocess
import sys
from types import ModuleType
from typing import Any

import pytest

from mpc.errors import EnvironmentProblem
from protocols.crypten.binding.requirement import require_crypten


def test_returns_the_module() -> None:
    crypten = require_crypten()
    assert crypten.__version__ == "0.4.1"
    assert require_crypten() is crypten


def test_other_version(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = ModuleType("crypten")
    fake.__version__ = "0.5.0"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "crypten", fake)
    with pytest.raises(EnvironmentProblem, match=r"crypten 0\.5\.0 .*run: pip install --no-deps crypten==0\.4\.1"):
        require_crypten()


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        (
            "crypten",
            r"crypten is not installed, .*masked does not\); run: pip install --no-deps crypten==0\.4\.1$",
        ),
        ("omegaconf", "needs the module 'omegaconf'; run: pip install omegaconf pyyaml onnx"),
    ],
)
def test_missing_module(monkeypatch: pytest.MonkeyPatch, missing: str, words: str) -> None:
    real = importlib.import_module

    def broken(name: str, *args: Any) -> ModuleType:
        if name == "crypten":
            raise ModuleNotFoundError(f"No module named '{missing}'", name=missing)
        return real(name, *args)

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(EnvironmentProblem, match=words):
        require_crypten()


def test_older_torch_and_crypten_imported_first() -> None:
    """A torch that still has the module that crypten imports keeps it; installing twice, after crypten, is fine."""
    code = (
        "import sys, types\n"
        "old = 'torch.onnx._internal.registration'\n"
        "try:\n"
        "    import torch.onnx._internal.registration\n"
        "except ImportError:\n"
        "    import torch.onnx._internal.torchscript_exporter.registration as new\n"
        "    sys.modules[old] = types.ModuleType(old)\n"
        "    sys.modules[old].__dict__.update(new.__dict__)\n"
        "mine = sys.modules[old]\n"
        "import crypten\n"
        "from protocols.crypten.binding.library import install\n"
        "install(); install()\n"
        "print(sys.modules[old] is mine)\n"
        "try:\n    crypten.init()\n"
        "except Exception as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert "True" in done.stdout, done.stderr
    assert "init is insecure and switched off" in done.stdout, done.stderr
