"""`mpcache quality --tasks`: policies on any model by tasks in long texts, with what they cost on shares."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from launch.terminal.console import err, out, print_json
from launch.terminal.outputs import make_writable_folder

if TYPE_CHECKING:
    from launch.measure.quality.long_prompts import Frame
    from launch.measure.quality.task_sweep import TaskSettings, TaskSweep
    from models.checkpoint import Checkpoint

RESULTS, PAGE, ANSWERS = "results.json", "results.md", "answers"
PACKAGES = ("mpcache", "torch", "transformers", "tokenizers")
FORMS = ("auto", "chat", "plain")
POLICIES = "full mpcache mpcache:preset=paper h2o snapkv tova quest streaming-llm dynamic-top-k"


@dataclass(frozen=True)
class Rest:
    """The command's further options. others: those that do not go with --tasks, by name, unset where they are false."""

    prompts: int
    seed: int
    form: str
    text: Path | None
    suite: str
    parties: int
    device: str
    folder: Path | None
    as_json: bool
    others: dict[str, Any]


def run_tasks(
    model: Path, tasks: str, policies: Sequence[str], budgets: Sequence[float], lengths: Sequence[int], rest: Rest
) -> None:
    """Measure, keep and show. Raises `ConfigurationError` for what cannot be, before anything runs."""
    from launch.measure.quality.task_sweep import TaskSweep, rows_of
    from models.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(model)
    settings = _task_settings(checkpoint, tasks, policies, budgets, lengths, rest)
    folder = None if rest.folder is None else _folder(rest.folder)
    started = time.monotonic()
    sweep = TaskSweep(checkpoint, settings, None if folder is None else folder / ANSWERS)
    found = _watched(sweep)
    record = {
        "model": model.resolve().name if str(model) in ("", ".") else str(model),
        "model_digest": sweep.model_digest,
        "settings": {
            "tasks": list(settings.tasks),
            "policies": [one.policy for one in settings.contenders],
            "lengths": list(lengths),
            "prompts": rest.prompts,
            "seed": rest.seed,
            "form": settings.form,
            "suite": rest.suite,
            "parties": rest.parties,
            "text": "Python's documentation" if rest.text is None else str(rest.text),
        },
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "rows": rows_of(found, settings),
        "answers": found["answers"],
        "seconds": time.monotonic() - started,
    }
    files = [] if folder is None else _write(folder, record)
    if rest.as_json:
        print_json(record)
    else:
        _show(record, files)


def _task_settings(
    checkpoint: Checkpoint, tasks: str, policies: Sequence[str], budgets: Sequence[float], lengths: Sequence[int], rest: Rest
) -> TaskSettings:
    """Return what is asked for, checked. Raises `ConfigurationError` naming option, value and remedy."""
    from launch.measure.quality.budgets import contenders, default_policies
    from launch.measure.quality.long_tasks import TASKS
    from launch.measure.quality.task_sweep import FOLLOWING, TEXT, TaskSettings
    from models.architectures import without_encoder
    from mpc.errors import ConfigurationError

    known = (*TASKS, TEXT)
    names = known if tasks.strip() == "all" else tuple(filter(None, (part.strip() for part in tasks.split(","))))
    wrong = [name for name in names if name not in known]
    if wrong or not names or len(set(names)) < len(names):
        raise ConfigurationError(f"--tasks '{tasks}': name each once, all or some of {', '.join(known)}")
    given = [name for name, value in rest.others.items() if value]
    if given:
        raise ConfigurationError(f"--tasks does not go with {', '.join(given)}; leave one of them out")
    if rest.seed < 0:
        raise ConfigurationError(f"--seed {rest.seed}: must not be negative")
    form, frame = _form(checkpoint, rest.form)
    architecture = without_encoder(checkpoint.architecture, "`mpcache quality --tasks`")
    for length in lengths:
        if length + FOLLOWING > architecture.positions:
            raise ConfigurationError(
                f"--lengths {length}: with {FOLLOWING} more tokens needs {length + FOLLOWING} positions, the model has "
                f"{architecture.positions}; lower it"
            )
    texts = policies or (default_policies(architecture) if architecture.layers < 4 else POLICIES.split())
    text = _text(checkpoint, rest.text, max(lengths) + FOLLOWING) if TEXT in names else []
    return TaskSettings(
        contenders=contenders(texts, budgets, plaintext=True),
        tasks=names,
        lengths=lengths,
        prompts=rest.prompts,
        seed=rest.seed,
        form=form,
        frame=frame,
        text=text,
        suite=rest.suite,
        parties=rest.parties,
        device=rest.device,
    )


def _form(checkpoint: Checkpoint, wanted: str) -> tuple[str, Frame]:
    """Return the prompts' form and what stands around their text."""
    from launch.measure.quality.long_prompts import Frame
    from models.tokenizer.chat_template import ChatTemplate
    from mpc.errors import CheckpointError, ConfigurationError

    if wanted not in FORMS:
        raise ConfigurationError(f"--form '{wanted}': one of {', '.join(FORMS)} is needed")
    if wanted != "plain":
        try:
            return "chat", Frame(checkpoint.tokenizer, ChatTemplate.load(checkpoint.directory))
        except CheckpointError:
            if wanted == "chat":
                raise
    return "plain", Frame(checkpoint.tokenizer)


def _text(checkpoint: Checkpoint, path: Path | None, least: int) -> list[int]:
    """Return the tokens of a text file, or of the documentation that Python brings along; at least `least`."""
    from pydoc_data.topics import topics

    from launch.measure.quality.prompts import read_text
    from mpc.errors import ConfigurationError

    if path is None:
        ids = checkpoint.tokenizer.encode("\n\n".join(text for _, text in sorted(topics.items())))
    else:
        ids = read_text(checkpoint, path)
    if len(ids) < least:
        raise ConfigurationError(
            f"--text: it has {len(ids)} tokens, {least} are needed; use a longer one or smaller --lengths"
        )
    return ids


def _folder(folder: Path) -> Path:
    """Make the folder, with the one for answers. Raises `ConfigurationError` when that or writing there is impossible."""
    make_writable_folder(make_writable_folder(folder) / ANSWERS)
    return folder


def _watched(sweep: TaskSweep) -> dict[str, Any]:
    """Run the sweep with a bar."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True) as progress:
        task = progress.add_task("", total=None)
        sweep.tell = lambda what, done, total: progress.update(task, description=what, completed=done, total=total)
        return sweep.run()


def _write(folder: Path, record: dict[str, Any]) -> list[Path]:
    """Write results.json and its page, each whole or not at all. An earlier start's are replaced: this one goes on with
    them."""
    from launch.measure.quality.task_page import page

    files = []
    for name, text in (
        (RESULTS, json.dumps(record, ensure_ascii=False, allow_nan=False, indent=1) + "\n"),
        (PAGE, page(record)),
    ):
        beside = folder / f"{name}.part"
        beside.write_text(text, encoding="utf-8")
        files.append(beside.replace(folder / name))
    return files


def _show(record: dict[str, Any], files: Sequence[Path]) -> None:
    from rich.table import Table

    from launch.measure.quality.task_page import cells, heads, problems

    rows = record["rows"]
    for length in dict.fromkeys(row["length"] for row in rows):
        mine = [row for row in rows if row["length"] == length]
        table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
        for n, title in enumerate(heads(mine)):
            table.add_column(title, justify="right" if n else "left", overflow="fold")
        for row in mine:
            table.add_row(*cells(row, mine))
        out.print(f"{length} tokens, {mine[0]['prompts']} prompts of each task:", style="bold")
        out.print(table)
    for problem in problems(rows):
        out.print(problem)
    for file in files:
        out.print(f"written: {file}", soft_wrap=True)
