"""`mpcache quality --memory`: policies at equal memory."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.terminal.console import err, out, print_json
from launch.terminal.outputs import make_writable_folder

if TYPE_CHECKING:
    from launch.measure.quality.equal_memory import MemorySettings

RESULTS, PAGE, PLOT = "results.json", "results.md", "memory.png"
PACKAGES = ("mpcache", "torch", "transformers", "tokenizers", "matplotlib")


def seeds_of(text: str) -> list[int]:
    """Return the seeds separated by commas, each once. Raises `ConfigurationError`."""
    from mpc.errors import ConfigurationError

    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts) or len(set(parts)) < len(parts):
        raise ConfigurationError(f"--seeds '{text}': whole numbers from 0 on are needed, separated by commas, each once")
    return list(map(int, parts))


def settings_of(
    policies: Sequence[str], shares: Sequence[float], lengths: Sequence[int], questions: int | None, seeds: str
) -> MemorySettings:
    """Return what is asked for, with all policies where none is named. Raises `ConfigurationError`."""
    from launch.measure.quality.equal_memory import MemorySettings
    from models.policies.registry import POLICIES

    return MemorySettings(policies or tuple(POLICIES), shares, lengths, questions or 10, seeds_of(seeds))


def run_memory(model: Path, settings: MemorySettings, folder: Path | None, as_json: bool, others: dict[str, Any]) -> None:
    """Measure, keep and show. others: options that do not go with --memory, by name, unset where they are false. Raises
    `ConfigurationError` for what cannot be, before anything runs."""
    from launch.measure.quality.equal_memory import EqualMemory
    from launch.measure.quality.prompts import Lists, check_length, task_of
    from models.architectures import without_encoder
    from models.checkpoint import load_checkpoint
    from mpc.errors import ConfigurationError

    given = [name for name, value in others.items() if value]
    if given:
        raise ConfigurationError(f"--memory does not go with {', '.join(given)}; leave one of them out")
    for share in settings.shares:
        if not 0 < share <= 1:
            raise ConfigurationError(
                f"--memory {share:g}: a share of the full cache's bytes is above 0 and up to 1, such as 0.1"
            )
    checkpoint = load_checkpoint(model)
    architecture, task = without_encoder(checkpoint.architecture, "`mpcache quality`"), task_of(checkpoint)
    if task is None:
        raise ConfigurationError("--memory: the model's tokenizer is no recall task's; use a model of models/recall")
    if settings.turns and not isinstance(task, Lists):
        raise ConfigurationError(f"--turns: the recall task is {task.name}; use a model of question lists")
    for length in settings.lengths:
        check_length(architecture, length, task.answer_tokens(length), task)
    if folder is not None:
        check_new(folder)
    started = time.monotonic()
    with err.status("budgets") as status:
        rows = EqualMemory(checkpoint, task, settings, status.update).run()
    record = {
        "model": str(model),
        "recall_task": task.name,
        "settings": asdict(settings),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "rows": rows,
        "seconds": time.monotonic() - started,
    }
    files = [] if folder is None else _write(folder, record)
    if as_json:
        print_json(record)
    else:
        _show(rows, files)


def check_new(folder: Path) -> None:
    """Make the folder. Raises `ConfigurationError` when that or writing there is impossible, or results lie there."""
    from mpc.errors import ConfigurationError

    make_writable_folder(folder)
    for name in (RESULTS, PAGE, PLOT):
        if (folder / name).exists():
            raise ConfigurationError(f"--out {folder}: {name} exists already; name another folder, or move it away")


def _write(folder: Path, record: dict[str, Any]) -> list[Path]:
    """Write results.json, its page and its plot."""
    from launch.measure.quality.memory_page import page
    from launch.measure.quality.plots import plot_memory

    (folder / RESULTS).write_text(json.dumps(record, ensure_ascii=False, allow_nan=False, indent=1) + "\n", encoding="utf-8")
    (folder / PAGE).write_text(page(record), encoding="utf-8")
    files = [folder / RESULTS, folder / PAGE]
    return [*files, folder / PLOT] if plot_memory(record["rows"], folder / PLOT) else files


def _show(rows: Sequence[dict[str, Any]], files: Sequence[Path]) -> None:
    from rich.table import Table

    from launch.measure.quality.memory_page import heads, problems, tables

    for title, body in tables(rows):
        table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
        for n, head in enumerate(heads(rows)):
            table.add_column(head, justify="right" if n else "left", overflow="fold")
        for line in body:
            table.add_row(*line)
        out.print(f"{title}:", style="bold")
        out.print(table)
    for problem in problems(rows):
        out.print(problem)
    for file in files:
        out.print(f"written: {file}", soft_wrap=True)
