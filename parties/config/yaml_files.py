"""YAML files of settings: read, and explained where they are wrong, by file and key."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from mpc.errors import ConfigurationError

LONGEST_LINE, MOST_LINES = 400, 8  # of an error about a file
Location = tuple[int | str, ...]


def read_yaml_text(path: Path) -> str:
    """Return a file's text. Raises `ConfigurationError` when it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except IsADirectoryError:
        usual = path / f"{path.name}.yaml"
        remedy = f"give {usual}" if usual.exists() else "give the file in it that has the settings"
        raise ConfigurationError(f"{path} is a folder; {remedy}") from None
    except OSError as error:
        where = "" if path.is_absolute() else f" (looked for in {Path.cwd()})"
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}{where}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path} is not a UTF-8 text file") from None


def yaml_values(text: str, path: Path) -> dict[str, Any]:
    """Return the keys and values in a file's text. Raises `ConfigurationError` naming the file and the line."""
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark is not None else ""
        raise ConfigurationError(f"{path} is not valid YAML{line}: {getattr(error, 'problem', 'syntax error')}") from None
    except (RecursionError, ValueError):
        raise ConfigurationError(
            f"{path} is not valid YAML: it is nested too deeply, or holds a number without end"
        ) from None
    if not isinstance(values, dict):
        raise ConfigurationError(f"{path}: expected 'key: value' lines, got {type(values).__name__}")
    return values


def explain(error: ValidationError, known: Callable[[Location], list[str]]) -> str:
    """Return what is wrong, key by key. known: the keys that there are where an unknown one was found."""
    lines = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            there = known(item["loc"])
            close = difflib.get_close_matches(str(item["loc"][-1]), there, n=1, cutoff=0.5)
            hint = f"did you mean '{close[0]}'?" if close else f"known keys: {', '.join(there)}"
            lines.append(f"unknown key '{where}': {hint}")
        elif item["type"] == "missing":
            lines.append(f"'{where}' is missing")
        else:
            text = item["msg"].removeprefix("Value error, ")
            shown = f" (got {item['input']!r})" if isinstance(item["input"], str | int | float) else ""
            lines.append(f"{where}: {text}{shown}" if where else text)
    return "; ".join(line if len(line) <= LONGEST_LINE else line[:LONGEST_LINE] + " ..." for line in lines[:MOST_LINES])
