"""`mpcache quality`: what cache policies cost in quality, in plaintext, with a check on shares."""

from __future__ import annotations

import json
import platform
import time
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launch.cli.commands.quality_memory import run_memory, settings_of
from launch.cli.options import DEFAULT_SUITE, DeviceOption, JsonOption, ModelOption, PartiesOption, SuiteOption
from launch.local.checks import check_device, check_suite
from launch.terminal.console import err, out, print_json
from launch.terminal.outputs import make_writable_folder

if TYPE_CHECKING:
    from launch.measure.quality.sweep import SweepSettings

RESULTS, PAGE, QUALITY_PLOT, NEEDLE_PLOT = "results.json", "results.md", "quality.png", "needle.png"
PACKAGES = ("mpcache", "torch", "transformers", "tokenizers", "matplotlib")

PoliciesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--policies",
        "--policy",
        help="Policies, separated by spaces; may be repeated. By default all of docs/policies.md.",
    ),
]
BudgetsOption = Annotated[str, typer.Option("--budgets", help="Set where a policy's text leaves its budget open.")]
LengthsOption = Annotated[
    str | None,
    typer.Option("--lengths", help="Tokens of prompts; 256,512,1024, with --memory 1024, with --tasks 1000,2000,4000."),
]
QuestionsOption = Annotated[
    int | None, typer.Option("--questions", min=1, help="Prompts of each length; 50, with --tasks 12 of each task.")
]
SeedOption = Annotated[int, typer.Option("--seed", help="Of documents and questions.")]
NewOption = Annotated[
    int | None,
    typer.Option("--new", min=1, help="Tokens to generate; by default the task's answer, 16 (text), LongBench's own."),
]
TextOption = Annotated[
    Path | None,
    typer.Option("--text", help="Text file: perplexity of what follows a prompt of it (--tasks: Python's documentation)."),
]
TextTokensOption = Annotated[int, typer.Option("--text-tokens", min=1, help="Tokens that perplexity is of, at most.")]
LongBenchOption = Annotated[Path | None, typer.Option("--longbench", help="LongBench-format file, one JSON object a line.")]
TemplateOption = Annotated[
    str | None, typer.Option("--template", help="Prompt of a LongBench line, with {context} and {input}.")
]
CutPromptsOption = Annotated[
    bool, typer.Option("--cut-prompts", help="Leave out the middle of LongBench prompts that do not fit the model.")
]
NeedleOption = Annotated[bool, typer.Option("--needle", help="Recall by depth of the asked record and length.")]
DepthsOption = Annotated[str, typer.Option("--depths", help="Of --needle, from 0 to 1.")]
SpotCheckOption = Annotated[
    int,
    typer.Option("--spot-check", min=0, help="Prompts of the smallest length to run on shares too, with each policy."),
]
TasksOption = Annotated[
    str | None,
    typer.Option(
        "--tasks",
        help="Tasks in long texts, made here: all, or some of single, keyed, queried, variables, common, turns, again, "
        "perplexity.",
    ),
]
MemoryOption = Annotated[
    str | None,
    typer.Option("--memory", help="Shares of the full cache's bytes, such as 0.1,0.2: every policy within each of them."),
]
SeedsOption = Annotated[str | None, typer.Option("--seeds", help="Of --memory, such as 0,7; by default --seed alone.")]
TurnsOption = Annotated[
    bool, typer.Option("--turns", help="Of --memory: conversations of several question lists in place of single answers.")
]
FormOption = Annotated[
    str, typer.Option("--form", help="Of --tasks: chat, plain, or auto for chat where the model has a template.")
]
FolderOption = Annotated[
    Path | None,
    typer.Option("--out", help="Folder for results.json, results.md and plots; nothing is replaced. --tasks goes on in it."),
]


def run(
    model: ModelOption,
    policies: PoliciesOption = None,
    budgets: BudgetsOption = "0.05,0.1,0.2",
    lengths: LengthsOption = None,
    questions: QuestionsOption = None,
    seed: SeedOption = 0,
    new: NewOption = None,
    text: TextOption = None,
    text_tokens: TextTokensOption = 128,
    longbench: LongBenchOption = None,
    template: TemplateOption = None,
    cut_prompts: CutPromptsOption = False,
    needle: NeedleOption = False,
    depths: DepthsOption = "0,0.25,0.5,0.75,1",
    spot_check: SpotCheckOption = 0,
    memory: MemoryOption = None,
    seeds: SeedsOption = None,
    turns: TurnsOption = False,
    tasks: TasksOption = None,
    form: FormOption = "auto",
    suite: SuiteOption = DEFAULT_SUITE,
    parties: PartiesOption = 2,
    device: DeviceOption = "cpu",
    folder: FolderOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare cache policies with the full cache: recall, equal tokens, attention kept, perplexity, LongBench scores.

    In plaintext; docs/quality.md defines the measures. With --spot-check answers are computed on shares too, all parties in
    this one process (never for secret data); exit code 1 when one differs. --memory gives policies equal memory in place of
    equal budgets. --tasks asks any model instead, with costs on shares; a second start goes on with what is in --out.
    """
    from launch.measure.quality.budgets import policy_texts
    from launch.measure.quality.sweep import SweepSettings
    from mpc.errors import ConfigurationError

    check_suite(suite)
    chosen, shares = tuple(policy_texts(policies or [])), numbers("--budgets", budgets)
    others: dict[str, Any] = {"--longbench": longbench, "--needle": needle, "--spot-check": spot_check, "--new": new}
    usual = "1024" if memory is not None else "1000,2000,4000" if tasks is not None else "256,512,1024"
    sizes = whole_numbers("--lengths", lengths or usual)
    if memory is not None:
        at = settings_of(chosen, numbers("--memory", memory), sizes, questions, str(seed) if seeds is None else seeds)
        at = replace(at, suite=suite, parties=parties, device=check_device(device), turns=turns)
        return run_memory(model, at, folder, as_json, {**others, "--tasks": tasks, "--text": text})
    if turns or seeds is not None:
        raise ConfigurationError("--turns and --seeds go with --memory; add it, or leave them out")
    if tasks is not None:
        from launch.cli.commands.quality_tasks import Rest, run_tasks

        rest = Rest(questions or 12, seed, form, text, suite, parties, check_device(device), folder, as_json, others)
        return run_tasks(model, tasks, chosen, shares, sizes, rest)
    asked = SweepSettings(chosen, shares, tuple(sizes), questions or 50, seed, new)
    asked = replace(asked, text=text, text_tokens=text_tokens, needle=needle, depths=numbers("--depths", depths))
    asked = replace(
        asked, longbench=longbench, template=asked.template if template is None else template, cut_prompts=cut_prompts
    )
    asked = replace(asked, spot_check=spot_check, suite=suite, parties=parties, device=check_device(device))
    _run_sweep(model, asked, folder, as_json)


def _run_sweep(model: Path, settings: SweepSettings, folder: Path | None, as_json: bool) -> None:
    """Measure, keep and show. Exit code 1 when an answer on shares differs."""
    from launch.measure.quality.sweep import effective_policies, measure, prepare
    from models.checkpoint import load_checkpoint

    if folder is not None:
        check_folder(folder)
    checkpoint = load_checkpoint(model)
    job = prepare(checkpoint, settings)
    started = time.monotonic()
    with err.status("plaintext") as status:
        found = measure(checkpoint, settings, job, status.update)
    record = {
        "model": str(model),
        "settings": _settings(settings, effective_policies(job), job.new_tokens),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "recall_task": None if job.task is None else job.task.name,
        **found,
        "seconds": time.monotonic() - started,
    }
    files = [] if folder is None else _write(folder, record)
    if as_json:
        print_json(record)
    else:
        _show(record, files)
    if record["spot_check"] is not None and not record["spot_check"]["ok"]:
        raise typer.Exit(1)


def numbers(option: str, text: str) -> tuple[float, ...]:
    """Return the numbers separated by commas, each once. Raises `ConfigurationError`."""
    from mpc.errors import ConfigurationError

    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or len(set(found)) < len(found):
        raise ConfigurationError(f"{option} '{text}': numbers separated by commas are needed, each once, such as 0.05,0.1")
    return tuple(found)


def whole_numbers(option: str, text: str) -> list[int]:
    """Return the positive whole numbers separated by commas, each once. Raises `ConfigurationError`."""
    from mpc.errors import ConfigurationError

    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts) or len(set(parts)) < len(parts):
        raise ConfigurationError(
            f"{option} '{text}': whole numbers separated by commas are needed, each once, such as 256,512"
        )
    return [int(part) for part in parts]


def check_folder(folder: Path) -> None:
    """Make the folder. Raises `ConfigurationError` when that or writing there is impossible, or results lie there."""
    from mpc.errors import ConfigurationError

    make_writable_folder(folder)
    for name in (RESULTS, PAGE, QUALITY_PLOT, NEEDLE_PLOT):
        if (folder / name).exists():
            raise ConfigurationError(f"--out {folder}: {name} exists already; name another folder, or move it away")


def _settings(settings: SweepSettings, policies: list[str], new_tokens: int) -> dict[str, Any]:
    """Return the effective settings as JSON holds them."""
    found = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(settings).items()}
    return {**found, "policies": policies, "new_tokens": new_tokens}


def _write(folder: Path, record: dict[str, Any]) -> list[Path]:
    """Write results.json (never over an existing one), its tables, and the plots that there is something for."""
    from launch.measure.quality.page import page
    from launch.measure.quality.plots import plot_needle, plot_quality
    from mpc.errors import ConfigurationError

    path = folder / RESULTS
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False, allow_nan=False, indent=1) + "\n")
        (folder / PAGE).write_text(page(record), encoding="utf-8")
        files = [path, folder / PAGE]
        plots = ((plot_quality, "rows", QUALITY_PLOT), (plot_needle, "needle", NEEDLE_PLOT))
        return files + [folder / name for plot, key, name in plots if plot(record[key], folder / name)]
    except OSError as error:
        raise ConfigurationError(f"--out {folder} cannot be written to: {error.strerror}; name another folder") from None


def _table(names: list[str], left: int) -> Any:
    from rich.table import Table

    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    for n, name in enumerate(names):
        table.add_column(name, justify="left" if n < left else "right", overflow="fold", no_wrap=n >= left)
    return table


def _show(record: dict[str, Any], files: list[Path]) -> None:
    from launch.measure.quality.page import columns, number

    if not record["recall_task"]:
        out.print("The model's tokenizer is no recall task's: recall is not measured.")
    rows = record["rows"]
    if rows:
        shown = columns(rows)
        table = _table(["policy", "length", "budget", *(title for title, _ in shown.values())], 1)
        for row in rows:
            cells = (number(row[name], form) for name, (_, form) in shown.items())
            table.add_row(row["asked"], str(row["length"]), number(row["budget"], "g"), *cells)
        out.print(table)
    for problem in dict.fromkeys(row["problem"] for row in [*rows, *record["longbench"]] if row["problem"]):
        out.print(f"not measured: {problem}")
    if record["needle"]:
        _show_needle(record["needle"])
    if record["longbench"]:
        table = _table(["policy", "data set", "budget", "lines", "score", "equal\ntokens"], 2)
        for row in record["longbench"]:
            ends = [number(row["score"], ".2f"), number(row["token_agreement"], ".3f")]
            table.add_row(row["asked"], row["dataset"], number(row["budget"], "g"), str(row["lines"]), *ends)
        out.print(table)
    check = record["spot_check"]
    if check is not None:
        from launch.measure.quality.page import decisions_text

        out.print(
            f"on shares (suite {check['suite']}, {check['parties']} parties): {check['equal']} answers equal to plaintext, "
            f"{check['different']} different",
            style="" if check["ok"] else "bold red",
        )
        if check["decisions"]:
            out.print(decisions_text(check))
        for run in check["runs"]:
            if not run["equal"]:
                what = "other tokens" if run["error"] is None else run["error"]
                out.print(f"{run['policy']}, prompt {run['prompt'] + 1}: {what}", style="bold red")
    for file in files:
        out.print(f"written: {file}", soft_wrap=True)


def _show_needle(cells: list[dict[str, Any]]) -> None:
    from launch.measure.quality.page import number

    depths = sorted({cell["depth"] for cell in cells})
    table = _table(["recall by depth: policy", "length", "budget", *(f"{depth:g}" for depth in depths)], 1)
    lines: dict[tuple[str, int, float | None], dict[float, float]] = {}
    for cell in cells:
        lines.setdefault((cell["asked"], cell["length"], cell["budget"]), {})[cell["depth"]] = cell["recall"]
    for (policy, length, budget), found in lines.items():
        table.add_row(policy, str(length), number(budget, "g"), *(number(found.get(d), ".2f") for d in depths))
    out.print(table)
