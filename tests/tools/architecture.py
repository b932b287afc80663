"""The tree as its imports show it: circles, sizes, and the drawings of docs/architecture.md.

`python -m tests.tools.architecture` draws them anew; `--check` says whether they are what the imports give. A drawing shows,
for one package, its files and folders (each folder taken as one) with an arrow to whatever each imports, but where
a longer way leads there already. Imports for types alone count as well.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("mpc", "protocols", "models", "parties", "launch", "mpcache")
PAGE = ROOT / "docs" / "architecture.md"
DRAWN = ("models", "parties", "launch")
Graph = dict[str, set[str]]


@dataclass(frozen=True)
class Module:
    """One file: its dotted name, where it lies, its text parsed, and how many lines it has."""

    name: str
    path: Path
    tree: ast.Module
    lines: int


def modules(*packages: str) -> dict[str, Module]:
    """All modules of the packages by their dotted names; a package's `__init__` under the package's name."""
    return {name: module for package in packages for name, module in _parsed(package).items()}


@cache
def _parsed(package: str) -> dict[str, Module]:
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        text = path.read_text(encoding="utf-8")
        found[name] = Module(name, path, ast.parse(text), text.count("\n"))
    return found


def imports(known: Mapping[str, Module]) -> Graph:
    """Which of the modules each one imports, anywhere in its file."""
    return {name: {other for other in _named(module.tree, known) if other != name} for name, module in known.items()}


def _named(tree: ast.Module, known: Mapping[str, Module]) -> Iterable[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                if inner in known:
                    yield inner
                elif node.module in known:
                    yield node.module


def siblings(graph: Graph, package: str) -> Graph:
    """The files and folders of a package ("" for the packages themselves) and which of the others each one imports."""
    start = f"{package}." if package else ""

    def child(name: str) -> str:
        return name[len(start) :].partition(".")[0] if name.startswith(start) and name != package else ""

    found: Graph = {}
    for name, targets in graph.items():
        if own := child(name):
            found.setdefault(own, set()).update({child(target) for target in targets} - {"", own})
    return found


def folders(graph: Graph) -> list[str]:
    """All packages and sub-packages, and "" for what holds the packages."""
    return ["", *sorted({name[:place] for name in graph for place, letter in enumerate(name) if letter == "."})]


def circles(graph: Graph) -> list[list[str]]:
    """The strongly connected parts of more than one member, by Tarjan's algorithm."""
    found: list[list[str]] = []
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []

    def visit(name: str) -> None:
        order[name] = low[name] = len(order)
        stack.append(name)
        for target in sorted(graph.get(name, ())):
            if target not in order:
                visit(target)
                low[name] = min(low[name], low[target])
            elif target in stack:
                low[name] = min(low[name], order[target])
        if low[name] == order[name]:
            part = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(part) > 1:
                found.append(sorted(part))

    for name in sorted(graph):
        if name not in order:
            visit(name)
    return found


def long_functions(known: Mapping[str, Module], most: int) -> list[str]:
    """Functions of more than `most` lines, decorators and docstrings among them: `module:name lines`."""
    return [
        f"{module.name}:{node.name} {lines}"
        for module in known.values()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (lines := (node.end_lineno or 0) - node.lineno + 1) > most
    ]


def _reachable(graph: Graph, start: str) -> set[str]:
    found: set[str] = set()
    waiting = [start]
    while waiting:
        for target in graph.get(waiting.pop(), ()):
            if target not in found:
                found.add(target)
                waiting.append(target)
    return found


def drawing(graph: Graph, folders: Container[str] = ()) -> str:
    """A Mermaid flow chart of a graph without circles, without arrows that a longer way implies. Folders end with "/"."""
    lines = ["```mermaid", "flowchart TD"]
    for name in sorted(graph):
        lines.append(f"    {name}[{name}{'/' if name in folders else ''}]")
    for name in sorted(graph):
        implied = set().union(*(_reachable(graph, other) for other in graph[name]))
        lines += [f"    {name} --> {target}" for target in sorted(graph[name] - implied)]
    return "\n".join([*lines, "```"])


def drawings() -> dict[str, str]:
    """The page's drawings by name: "packages", and each package that has rooms."""
    graph = imports(modules(*PACKAGES))
    rooms = {name: {path.name for path in (ROOT / name).iterdir() if path.is_dir()} for name in DRAWN}
    return {
        "packages": drawing(siblings(graph, ""), PACKAGES),
        **{name: drawing(siblings(graph, name), rooms[name]) for name in DRAWN},
    }


def redrawn(page: str) -> str:
    """The page with what stands between `<!-- drawing NAME -->` and `<!-- end -->` made anew."""
    for name, text in drawings().items():
        before, mark, rest = page.partition(f"<!-- drawing {name} -->\n")
        _, end, after = rest.partition("<!-- end -->")
        if not mark or not end:
            raise ValueError(f"{PAGE} has no place for the drawing '{name}'")
        page = f"{before}{mark}{text}\n{end}{after}"
    return page


def main() -> int:
    """Draw anew, or with `--check` return 1 when the page shows something else."""
    page = PAGE.read_text(encoding="utf-8")
    fresh = redrawn(page)
    if sys.argv[1:] == ["--check"]:
        if fresh != page:
            print("docs/architecture.md is out of date; run `python -m tests.tools.architecture`", file=sys.stderr)
        return int(fresh != page)
    PAGE.write_text(fresh, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
