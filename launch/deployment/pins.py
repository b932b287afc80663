"""Writing peers' fingerprints into a role's configuration file, which keeps its comments and all else as they are."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mpc.errors import ConfigurationError
from parties.config.role_config import RoleConfig, load_config, read_config
from parties.files import write_file
from parties.names import read_fingerprint

LISTS = ("parties", "clients", "model_owners")
WORD = re.compile(r"\S+")


def read_pins(items: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the fingerprints by name, from NAME=FINGERPRINT and from files of lines NAME FINGERPRINT, as `mpcache certs
    fingerprint` prints them (`#` begins a comment). Raises `ConfigurationError` naming what cannot be read."""
    found: dict[str, list[str]] = {}
    for item in items:
        name, equals, mark = item.partition("=")
        pairs = [(name, mark, item)] if equals else _lines(Path(item))
        for name, mark, where in pairs:
            try:
                read = read_fingerprint(mark)
            except ValueError as error:
                raise ConfigurationError(f"{where}: {error}") from None
            if read not in found.setdefault(name, []):
                found[name].append(read)
    return {name: tuple(marks) for name, marks in found.items()}


def _lines(path: Path) -> Iterator[tuple[str, str, str]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise ConfigurationError(f"'{path}' is neither NAME=FINGERPRINT nor a file of such lines that can be read") from None
    for number, line in enumerate(lines, 1):
        words = WORD.findall(line.partition("#")[0])
        if len(words) == 2:
            yield words[0], words[1], f"{path}, line {number}"
        elif words:
            raise ConfigurationError(f"{path}, line {number}: expected NAME FINGERPRINT, found {len(words)} words")


def pin(path: Path, pins: Mapping[str, tuple[str, ...]], keep: bool) -> dict[str, tuple[str, ...]]:
    """Write the fingerprints of those of `pins` that the file lists; returns what is written, by name.

    keep: those that are there stay beside the new ones, while a peer changes its key. The role's own entry is written too
    where the file has one. Raises `ConfigurationError`, and changes nothing, when the file would not say the same otherwise.
    """
    before = load_config(path)
    text = path.read_bytes().decode()
    listed = {one.name: one.fingerprint for one in _entries(before)}
    wanted = {
        name: tuple(dict.fromkeys([*(listed[name] if keep else ()), *marks]))
        for name, marks in pins.items()
        if name in listed
    }
    edits = sorted((edit for node in _nodes(text) if (edit := _edit(text, node, wanted)) is not None), reverse=True)
    for start, end, new in edits:
        text = text[:start] + new + text[end:]
    after = read_config(text, path)
    marks = {one.name: one.fingerprint for one in _entries(after)}
    if marks != {**listed, **wanted} or _without(after) != _without(before):
        raise ConfigurationError(f"{path} is written in a way that cannot be changed here: write the fingerprints in it")
    write_file(path, text.encode(), path.stat().st_mode & 0o777)
    return wanted


def _entries(config: RoleConfig) -> list[Any]:
    dealers = [] if config.dealer is None else [config.dealer]
    return [*config.parties, *dealers, *config.clients, *config.model_owners]


def _without(config: RoleConfig) -> dict[str, Any]:
    """Return a configuration's values but the fingerprints."""
    values = config.model_dump()
    entries = [*(entry for key in LISTS for entry in values[key]), *([values["dealer"]] if values["dealer"] else [])]
    for entry in entries:
        entry.pop("fingerprint")
    return values


def _nodes(text: str) -> Iterator[yaml.Node]:
    """Return the YAML nodes of all entries that may have a fingerprint."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode)
    for key, value in root.value:
        if key.value in LISTS and isinstance(value, yaml.SequenceNode):
            yield from value.value
        elif key.value == "dealer" and isinstance(value, yaml.MappingNode):
            yield value


def _edit(text: str, node: yaml.Node, wanted: Mapping[str, tuple[str, ...]]) -> tuple[int, int, str] | None:
    """Return what to replace for one entry: from, to, by what. None for nothing."""
    if isinstance(node, yaml.ScalarNode):
        marks = wanted.get(node.value)
        new = f"{{name: {node.value}, fingerprint: {_flow(marks)}}}" if marks else ""
        return (node.start_mark.index, node.end_mark.index, new) if marks else None
    assert isinstance(node, yaml.MappingNode)
    values = {key.value: value for key, value in node.value}
    marks = wanted.get(getattr(values.get("name"), "value", ""))
    if not marks:
        return None
    if (old := values.get("fingerprint")) is not None:
        end = old.start_mark.index + len(text[old.start_mark.index : old.end_mark.index].rstrip())
        lead = "" if old.start_mark.index > 0 and text[old.start_mark.index - 1].isspace() else " "
        return old.start_mark.index, end, lead + _flow(marks)
    end = values["name"].end_mark.index
    column = node.value[0][0].start_mark.column
    between = ", " if node.flow_style else "\n" + " " * column
    return end, end, f"{between}fingerprint: {_flow(marks)}"


def _flow(marks: tuple[str, ...]) -> str:
    """Write in YAML's flow style: the pairs of digits would be read as a number without quotation marks."""
    quoted = [f'"{mark}"' for mark in marks]
    return quoted[0] if len(quoted) == 1 else f"[{', '.join(quoted)}]"
