"""What `python -m tests.tools.gpu_check` found on a GPU (docs/gpu.md), as tables."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launch.report.tables import NOTHING, Table, seconds_text
from launch.terminal.console import byte_count, digits
from mpc.errors import ConfigurationError

FORMAT = 1
HEADER = ("part", "what", "", "seconds", "a second", "rounds", "sent", "dealt", "memory", "error")
SIZES = {"sent_bytes": "sent", "dealt_bytes": "dealt", "peak_memory_bytes": "memory"}


def read_check(path: Path) -> dict[str, Any]:
    """Return a check's file. Raises `ConfigurationError` for what is none."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if found["format"] != FORMAT:
            raise ConfigurationError(f"--gpu {path} has format {found['format']}, this version reads {FORMAT}")
        _ = found["device"], found["complete"], check_tables(found)
    except ConfigurationError:
        raise
    except OSError as error:
        raise ConfigurationError(f"--gpu {path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(
            f"--gpu {path} is not a file of `python -m tests.tools.gpu_check`: {type(error).__name__}"
        ) from None
    return found


def check_tables(found: Mapping[str, Any]) -> list[Table]:
    """Return what each part came to, and what was measured in it."""
    sizes = "tiny sizes, no measurement" if found["small"] else "sizes of GPT-2 and LLaMA-2-7B"
    whole = "" if found["complete"] else " The check was stopped before its end."
    parts = tuple(
        (name, part["state"], str(len(part["rows"])), seconds_text(part["seconds"]), _line(part["why"]))
        for name, part in found["parts"].items()
    )
    rows = tuple(_row(name, row) for name, part in found["parts"].items() for row in part["rows"])
    kinds = 'A row is "wrong" where a result differs from the CPU\'s, or lies beyond its error.'
    return [
        Table(f"Check on {found['device']}", f"{sizes}.{whole}", ("part", "", "rows", "seconds", "why"), parts),
        Table(f"Measured on {found['device']}", f"{kinds} Seconds are medians; of steps, those of each role.", HEADER, rows),
    ]


def _row(part: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    if "skip" in row:
        return (part, _line(f"{row['name']}: {row['skip']}"), "skipped", *[NOTHING[0]] * (len(HEADER) - 3))
    took = row.get("seconds")
    seconds = ", ".join(f"{role} {digits(t)}" for role, t in took.items()) if isinstance(took, dict) else seconds_text(took)
    rates = [f"{byte_count(row['bytes_per_second'])}"] if "bytes_per_second" in row else []
    rates += [f"{digits(row['operations_per_second'] / 1e9)} G operations"] if "operations_per_second" in row else []
    moved = [byte_count(row[key]) if key in row else NOTHING[0] for key in SIZES]
    rounds = str(row["rounds"]) if "rounds" in row else NOTHING[0]
    error = f"{row['error']:.1e}" if "error" in row else NOTHING[0]
    right = "right" if row.get("ok", True) else "wrong"
    return (part, _line(row["name"]), right, seconds, ", ".join(rates) or NOTHING[0], rounds, *moved, error)


def _line(text: str) -> str:
    """Return the last line of a text."""
    return text.strip().splitlines()[-1].strip() if text.strip() else NOTHING[0]
