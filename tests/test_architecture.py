"""The tree: floors, no circles, small files and functions, drawings that are what the imports give."""

from __future__ import annotations

import re

import pytest

from tests.tools import architecture
from tests.tools.architecture import PACKAGES, circles, folders, imports, long_functions, modules, siblings

MOST_LINES = 400
MOST_FUNCTION_LINES = 60
GENERATED = ("parties.wire.wire_pb2", "parties.wire.wire_pb2_grpc")
LISTS = ("models.recall.train", "models.recall.train_questions", "tests.tools.planted_faults")
"""Trainings of the shipped models, and lists: they read from top to bottom, whatever their length."""


@pytest.fixture(scope="module")
def graph() -> architecture.Graph:
    return imports(modules(*PACKAGES))


def test_that_no_package_imports_one_above_it(graph: architecture.Graph) -> None:
    for package, imported in siblings(graph, "").items():
        assert all(PACKAGES.index(other) < PACKAGES.index(package) for other in imported), (package, imported)


def test_that_no_files_import_each_other_in_a_circle(graph: architecture.Graph) -> None:
    assert circles(graph) == []


def test_that_no_files_and_folders_of_a_package_form_a_circle(graph: architecture.Graph) -> None:
    assert {folder: found for folder in folders(graph) if (found := circles(siblings(graph, folder)))} == {}


def test_that_files_can_be_read_in_one_sitting() -> None:
    known = modules(*PACKAGES, "tests")
    long = {m.name: m.lines for m in known.values() if m.lines > MOST_LINES and m.name not in (*GENERATED, *LISTS)}
    assert long == {}


def test_that_functions_are_short() -> None:
    known = {name: module for name, module in modules(*PACKAGES, "tests").items() if name not in (*GENERATED, *LISTS)}
    assert long_functions(known, MOST_FUNCTION_LINES) == []


def test_that_the_drawings_are_those_of_the_imports() -> None:
    page = architecture.PAGE.read_text(encoding="utf-8")
    assert architecture.redrawn(page) == page


def test_that_the_page_names_what_is_there() -> None:
    """Files and folders are named from the root, in tables within the folder that the row is about."""
    page = architecture.PAGE.read_text(encoding="utf-8")
    found = re.findall(r"`([\w./]+(?:\.py|\.proto|/))`", page)
    named = {name for name in found if "NAME" not in name} - {"models/families/qwen3.py"}
    about = ("", "protocols", "protocols/crypten", "protocols/masked", "parties")
    assert len(named) > 50
    assert {name for name in named if not any((architecture.ROOT / folder / name).exists() for folder in about)} == set()
    for file, symbol in re.findall(r"`([\w./]+\.py)`, `(?:\w+\.)?(\w+)`", page):
        paths = (path for folder in about if (path := architecture.ROOT / folder / file).exists())
        assert symbol == "py" or symbol in next(paths).read_text(encoding="utf-8"), (file, symbol)


def test_what_counts_as_a_circle() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
    assert siblings({"p.x.one": {"p.y"}, "p.y": {"p.x.two"}, "p.x.two": set()}, "p") == {"x": {"y"}, "y": {"x"}}
    assert architecture.drawing({"a": {"b", "c"}, "b": {"c"}, "c": set()}).count("-->") == 2
