"""Which modules define a protocol: found in their source, so that none can be forgotten.

A function speaks when it asks the tape for a dealt value, opens or sends something, or calls a function that speaks.
Calls are followed by name through the imports of modules; a method of an object counts by its own name alone.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
ASKS = frozenset(
    [
        *("deal", "deal_table", "deal_xor", "dependent", "random_shares", "common"),  # of the dealer
        *("opening", "open_together", "exchange", "exchange_all", "zero_sharing"),  # of the other parties
        *("Opening", "BitOpening", "XorOpening", "Reveal", "Handover", "MPCTensor"),
    ]
)
OWNERS = {"random": ("tape",), "open": ("s", "session"), "mul": ("beaver",), "square": ("beaver",), "matmul": ("beaver",)}


def dotted(path: Path) -> str:
    """Name by which a module is imported."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def _imports(tree: ast.Module) -> dict[str, str]:
    """What names stand for: {"mul": "protocols.crypten.arithmetic.mul", "softmax": "protocols.masked.softmax"}."""
    return {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def _called(call: ast.Call, module: str, names: dict[str, str]) -> Iterator[str]:
    """What a call may be of: a primitive's name, or the full name of a module's function."""
    function = call.func
    if isinstance(function, ast.Name):
        yield names.get(function.id, f"{module}.{function.id}")
        yield function.id
    elif isinstance(function, ast.Attribute):
        owner = function.value
        last = owner.id if isinstance(owner, ast.Name) else owner.attr if isinstance(owner, ast.Attribute) else ""
        if last in names:
            yield f"{names[last]}.{function.attr}"
        if function.attr in ASKS or last in ASKS or last in OWNERS.get(function.attr, ()):
            yield "asks"


def speaking(*folders: Path) -> set[Path]:
    """The modules of these folders in which some function speaks."""
    calls: dict[str, set[str]] = {}
    homes: dict[str, Path] = {}
    for path in (path for folder in folders for path in sorted(folder.glob("*.py"))):
        tree, module = ast.parse(path.read_text()), dotted(path)
        names = _imports(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                name = f"{module}.{node.name}"
                homes[name] = path
                inside = (n for n in ast.walk(node) if isinstance(n, ast.Call))
                calls.setdefault(name, set()).update(found for call in inside for found in _called(call, module, names))
    speaks = {name for name, found in calls.items() if found & {*ASKS, "asks"}}
    while more := {name for name, found in calls.items() if name not in speaks and found & speaks}:
        speaks |= more
    return {homes[name] for name in speaks}
