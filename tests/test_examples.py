"""Every `>>>` example in the packages' docstrings is run, and every public entry that can have one has one."""

from __future__ import annotations

import doctest
import importlib
import inspect
from pathlib import Path
from types import ModuleType

import pytest

import mpcache

ROOT = Path(__file__).parents[1]
PACKAGES = ("mpc", "protocols", "models", "parties", "launch", "mpcache")
# Needs running parties: tests/launch/test_pages.py runs it in a deployment.
PUBLIC = ("Cancellation", "PrivateModel", "RangeFinding", "SamplingParams", "Setting", "SuiteSpec", "estimate", "policies")
WITH_PARTIES = ("parties.client.private_model.PrivateModel",)


def modules() -> list[str]:
    """Names of the modules whose text has an example."""
    found = []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            if ">>>" in path.read_text(encoding="utf-8"):
                parts = path.relative_to(ROOT).with_suffix("").parts
                found.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return found


def examples(module: ModuleType) -> list[doctest.DocTest]:
    """The examples that are written in this module."""
    found = doctest.DocTestFinder(exclude_empty=True).find(module)
    return [test for test in found if test.examples and test.name not in WITH_PARTIES]


@pytest.mark.parametrize("name", modules())
def test_examples(name: str) -> None:
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    said: list[str] = []
    for test in examples(importlib.import_module(name)):
        runner.run(test, out=said.append)
    assert runner.failures == 0, "".join(said)


@pytest.mark.parametrize("name", PUBLIC)
def test_public_entries_have_an_example(name: str) -> None:
    assert ">>>" in (inspect.getdoc(getattr(mpcache, name)) or "")
