"""Imports CrypTen 0.4.1, or says which command makes it importable.

Its metadata names packages that it never loads, one of them dead, so it is installed without its dependencies; what it truly
needs besides torch and numpy (omegaconf, pyyaml and onnx) comes with this package. The extra `mpcache[crypten]` lets pip
resolve all that the metadata names. Newer versions of torch moved a module that CrypTen imports.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

from mpc.errors import EnvironmentProblem
from protocols.registry import CRYPTEN_VERSION as VERSION
from protocols.registry import SUITES

INSTALL = SUITES["crypten"].install
INSTALL_NEEDED = "pip install omegaconf pyyaml onnx"

_MOVED = "torch.onnx._internal.registration"
_MOVED_TO = "torch.onnx._internal.torchscript_exporter.registration"


def _alias_moved_module() -> None:
    try:
        importlib.import_module(_MOVED)
    except ImportError:
        try:
            sys.modules[_MOVED] = importlib.import_module(_MOVED_TO)
        except ImportError as error:
            raise EnvironmentProblem(
                f"crypten {VERSION} needs {_MOVED} or {_MOVED_TO}, and this torch has neither; "
                "install a tested one with: pip install torch==2.13.0"
            ) from error


def require_crypten() -> ModuleType:
    """Return the module `crypten`, imported. Raises `EnvironmentProblem` with the command to run where that cannot work."""
    if "crypten" not in sys.modules:
        _alias_moved_module()
    try:
        crypten = importlib.import_module("crypten")
    except ModuleNotFoundError as error:
        if error.name == "crypten":
            raise EnvironmentProblem(
                f"crypten is not installed, and the suite crypten needs it (masked does not); run: {INSTALL}"
            ) from error
        raise EnvironmentProblem(f"crypten needs the module '{error.name}'; run: {INSTALL_NEEDED}") from error
    except ImportError as error:
        raise EnvironmentProblem(f"crypten cannot be imported ({error}); run: {INSTALL} && {INSTALL_NEEDED}") from error
    found = getattr(crypten, "__version__", "unknown")
    if found != VERSION:
        raise EnvironmentProblem(f"crypten {found} is installed, {VERSION} is needed; run: {INSTALL}")
    return crypten
