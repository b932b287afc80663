"""A folder of results: one JSON file per measurement, written whole or not at all, and never replaced.

The file's name is the cell's readable name and a hash of its effective configuration, so a run that was interrupted goes on
where it stopped, and a changed setting is another file. A failed measurement is not kept: it is tried again.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from launch.measure.bench.cell import Cell
from mpc.errors import ConfigurationError

FORMAT = 1


class ResultFolder:
    """Results of cells in `folder`, which is made when the first one is kept."""

    def __init__(self, folder: Path) -> None:
        if folder.exists() and not folder.is_dir():
            raise ConfigurationError(f"--out {folder} is a file; give a folder for results")
        self.folder = folder

    def path(self, cell: Cell) -> Path:
        """Return where the cell's result is or will be."""
        return self.folder / f"{cell.name}.json"

    def has(self, cell: Cell) -> bool:
        """Return whether the cell was measured before."""
        return self.path(cell).exists()

    def keep(self, cell: Cell, environment: dict[str, Any], measured: dict[str, Any]) -> Path:
        """Write a result. Raises `ConfigurationError` when there is one already: nothing is replaced."""
        self.folder.mkdir(parents=True, exist_ok=True)
        record = {"format": FORMAT, "cell": cell.model_dump(mode="json"), "environment": environment, "measured": measured}
        path = self.path(cell)
        temporary = path.with_suffix(f".{os.getpid()}.partial")
        try:
            with temporary.open("w", encoding="utf-8") as out:
                json.dump(record, out, indent=1, allow_nan=False)
                out.write("\n")
                out.flush()
                os.fsync(out.fileno())
            os.link(temporary, path)  # fails when the name is taken, unlike a rename
        except FileExistsError:
            raise ConfigurationError(f"{path} exists already; results are never replaced: move it away first") from None
        finally:
            temporary.unlink(missing_ok=True)
        return path


def read_results(folder: Path) -> list[dict[str, Any]]:
    """Return all results in a folder and below, by file name. Raises `ConfigurationError` naming a file that is not one."""
    if not folder.is_dir():
        raise ConfigurationError(f"--results {folder} is not a folder")
    found = []
    for path in sorted(folder.rglob("*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            if record["format"] != FORMAT:
                raise ConfigurationError(f"{path} has format {record['format']}, this version reads {FORMAT}")
            record["cell"] = Cell.model_validate(record["cell"])
            _ = record["environment"]["hardware"], record["measured"]
        except ConfigurationError:
            raise
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigurationError(f"{path} is not a result of `mpcache bench`: {type(error).__name__}") from None
        record["file"] = str(path.relative_to(folder))
        found.append(record)
    if not found:
        raise ConfigurationError(f"--results {folder} holds no result; run `mpcache bench --config FILE --out {folder}`")
    return found
