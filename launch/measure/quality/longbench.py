"""LongBench-format files on the user's disk: one JSON object a line, checked before anything runs."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.measure.quality.metrics import DATA_SETS, check_metric
from launch.terminal.texts import read_text_file
from models.checkpoint import Checkpoint
from mpc.errors import ConfigurationError

TEMPLATE = "{context}\n\n{input}\n"
FIELDS: dict[str, type] = {"input": str, "context": str, "answers": list, "dataset": str}
"""Fields that every line must have; all_classes, length, language and _id may be there."""


@dataclass(frozen=True)
class Task:
    """A line. dataset without "_e"; new_tokens: what LongBench generates for it, if nothing else is asked for."""

    line: int
    dataset: str
    context: str
    input: str
    answers: tuple[str, ...]
    classes: tuple[str, ...]

    @property
    def new_tokens(self) -> int:
        """Return LongBench's answer length."""
        return DATA_SETS[self.dataset][1]


def load_tasks(path: Path) -> list[Task]:
    """Return all lines. Raises `ConfigurationError` naming file, line and what is wrong, `EnvironmentProblem` for a
    package."""
    text = read_text_file(path, "--longbench")
    tasks = [_task(f"--longbench {path}, line {n}", n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not tasks:
        raise ConfigurationError(f"--longbench {path} is empty; give a file with one JSON object a line")
    for dataset in {task.dataset for task in tasks}:
        check_metric(dataset)
    return tasks


def _task(where: str, number: int, line: str) -> Task:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ConfigurationError(f"{where}: is not JSON ({error.msg} at column {error.colno})") from None
    if not isinstance(record, dict):
        raise ConfigurationError(f"{where}: is not a JSON object but {type(record).__name__}")
    for name, kind in FIELDS.items():
        if name not in record:
            raise ConfigurationError(f"{where}: the field '{name}' is missing; needed: {', '.join(FIELDS)}")
        if not isinstance(record[name], kind):
            raise ConfigurationError(f"{where}: '{name}' must be {kind.__name__}, got {type(record[name]).__name__}")
    answers = _strings(where, "answers", record["answers"])
    if not answers:
        raise ConfigurationError(f"{where}: 'answers' is empty; give at least one answer")
    classes = _strings(where, "all_classes", record.get("all_classes") or [])
    dataset = record["dataset"].removesuffix("_e")
    if dataset not in DATA_SETS:
        raise ConfigurationError(f"{where}: unknown dataset '{dataset[:60]}'; known: {', '.join(DATA_SETS)}")
    if dataset in ("trec", "lsht") and not classes:
        raise ConfigurationError(f"{where}: dataset '{dataset}' needs 'all_classes'")
    return Task(number, dataset, record["context"], record["input"], answers, classes)


def _strings(where: str, name: str, found: Any) -> tuple[str, ...]:
    if not isinstance(found, list) or not all(isinstance(x, str) for x in found):
        raise ConfigurationError(f"{where}: '{name}' must be a list of texts")
    return tuple(found)


def check_template(template: str) -> str:
    """Return the template itself. Raises `ConfigurationError` unless it holds {context} or {input}, and nothing else in
    braces."""
    names = re.findall(r"\{(\w*)\}", template)
    if not names or not set(names) <= {"context", "input"}:
        raise ConfigurationError(f"--template {template!r}: needs {{context}} and {{input}}, and no other name in braces")
    return template


def prompt_of(checkpoint: Checkpoint, task: Task, template: str, new_tokens: int, cut: bool) -> list[int]:
    """Return a prompt's token ids. cut: what does not fit the model is taken out of the middle, as LongBench's code does;
    otherwise it is a `ConfigurationError`."""
    values = {"context": task.context, "input": task.input}
    text = re.sub(r"\{(context|input)\}", lambda found: values[found[1]], template)
    ids = checkpoint.tokenizer.encode(text)
    room = checkpoint.architecture.positions - new_tokens + 1
    if not ids:
        raise ConfigurationError(f"--longbench, line {task.line}: its prompt has no token; fill context or input")
    if room < 2:
        raise ConfigurationError(f"--longbench: {new_tokens} new tokens leave no room for a prompt; lower --new")
    if len(ids) <= room:
        return ids
    if not cut:
        raise ConfigurationError(
            f"--longbench, line {task.line}: a prompt of {len(ids)} tokens and {new_tokens} new ones do not fit the model's "
            f"{checkpoint.architecture.positions} positions; use --cut-prompts to leave out their middle, or lower --new"
        )
    half = room // 2
    return [*ids[: room - half], *ids[-half:]]


def datasets_of(tasks: Sequence[Task]) -> list[str]:
    """Return the names in order of appearance."""
    return list(dict.fromkeys(task.dataset for task in tasks))
