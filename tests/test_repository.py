"""What stands at the top says one version, licence and list of authors everywhere."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import yaml

import mpcache

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
CHANGES = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_one_version() -> None:
    newest = next(found for found in re.findall(r"^## \[([^]]+)\]", CHANGES, re.MULTILINE) if found != "Unreleased")
    assert newest == PROJECT["version"] == CITATION["version"] == mpcache.__version__ == version("mpcache")


def test_the_changelog_is_one() -> None:
    dates = re.findall(r"^## \[\d+\.\d+\.\d+\] - (.+)$", CHANGES, re.MULTILINE)
    assert dates
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d|unreleased", date) for date in dates)
    assert set(re.findall(r"^### (.+)$", CHANGES, re.MULTILINE)) <= {
        "Added", "Changed", "Deprecated", "Removed", "Fixed", "Security",
    }  # fmt: skip


def test_one_licence() -> None:
    assert PROJECT["license"] == CITATION["license"] == "Apache-2.0"
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_the_citation_has_what_the_format_asks_for() -> None:
    assert CITATION["cff-version"] == "1.2.0"
    assert CITATION["authors"] == [{"name": author["name"]} for author in PROJECT["authors"]]
    for work in (CITATION, *CITATION["references"]):
        assert {"title", "authors", "type"} <= set(work)
        for author in work["authors"]:
            assert set(author) in (
                {"name"},
                {"given-names", "family-names"},
                {"given-names", "name-particle", "family-names"},
            )
    assert "message" in CITATION
