"""Every policy at every budget and length: what is asked for is checked and laid out first, then measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.local.in_process import InProcessSuite
from launch.measure.generation import generate_on_shares
from launch.measure.quality import metrics, prompts
from launch.measure.quality.budgets import Contender, contenders, default_policies
from launch.measure.quality.longbench import TEMPLATE, Task, check_template, datasets_of, load_tasks, prompt_of
from launch.measure.quality.prompts import Prompt, RecallTask
from launch.measure.quality.runner import Kept, Runner
from launch.measure.selection_trace import Decision
from launch.measure.selection_trace import agreement as same_decisions
from models.architectures import without_encoder
from models.checkpoint import Checkpoint
from models.generation import GenerationPlan
from models.policies import parse
from mpc.errors import ConfigurationError, MpcacheError
from protocols.registry import SuiteSpec

Say = Callable[[str], None]


@dataclass(frozen=True)
class SweepSettings:
    """What is asked for; the command's options. new_tokens None: the answer's for a recall task, 16 for a text, LongBench's
    own."""

    policies: tuple[str, ...] = ()
    budgets: tuple[float, ...] = (0.05, 0.1, 0.2)
    lengths: tuple[int, ...] = (256, 512, 1024)
    questions: int = 50
    seed: int = 0
    new_tokens: int | None = None
    text: Path | None = None
    text_tokens: int = 128
    longbench: Path | None = None
    template: str = TEMPLATE
    cut_prompts: bool = False
    needle: bool = False
    depths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    spot_check: int = 0
    suite: str = "masked"
    parties: int = 2
    device: str = "cpu"


@dataclass(frozen=True)
class Job:
    """Everything that will run. prompts, texts: by length; tasks: LongBench's lines, each with prompt and answer length."""

    contenders: list[Contender]
    task: RecallTask | None
    new_tokens: int
    prompts: dict[int, list[Prompt]]
    texts: dict[int, list[int]]
    tasks: list[tuple[Task, list[int], int]]


def prepare(checkpoint: Checkpoint, settings: SweepSettings) -> Job:
    """Check all of it and make all prompts. Raises `ConfigurationError` naming option, value and remedy."""
    architecture = without_encoder(checkpoint.architecture, "`mpcache quality`")
    found = contenders(settings.policies or default_policies(architecture), settings.budgets)
    task = prompts.task_of(checkpoint)
    if settings.needle and task is None:
        raise ConfigurationError("--needle: the model's tokenizer is not the recall task's; use a model of models/recall")
    if task is None and settings.text is None and settings.longbench is None:
        raise ConfigurationError(
            "--model: its tokenizer is not the recall task's, so there is nothing to ask it; give --text or --longbench"
        )
    if any(not 0 <= depth <= 1 for depth in settings.depths):
        raise ConfigurationError(f"--depths {','.join(f'{d:g}' for d in settings.depths)}: depths lie between 0 and 1")
    check_template(settings.template)
    if settings.seed < 0:
        raise ConfigurationError(f"--seed {settings.seed}: must not be negative")
    answers = [] if task is None else [task.answer_tokens(length) for length in settings.lengths]
    new_tokens = settings.new_tokens or max(answers, default=16)
    least = 0 if task is None else max(task.least_tokens(length) for length in settings.lengths)
    if new_tokens < least:
        raise ConfigurationError(f"--new {new_tokens}: an answer of the recall task has {least} tokens; raise it")
    by_length: dict[int, list[Prompt]] = {}
    texts: dict[int, list[int]] = {}
    ids = None if settings.text is None else prompts.read_text(checkpoint, settings.text)
    for length in settings.lengths if task is not None or ids is not None else ():
        prompts.check_length(architecture, length, new_tokens, task)
        if ids is not None:
            texts[length] = prompts.text_part(architecture, ids, length, settings.text_tokens)
        if task is not None:
            by_length[length] = task.prompts(length, settings.questions, settings.seed)
        elif ids is not None:
            by_length[length] = prompts.text_prompts(ids, length, settings.questions)
    lines = []
    if settings.longbench is not None:
        for line in load_tasks(settings.longbench):
            new = settings.new_tokens or line.new_tokens
            given = prompt_of(checkpoint, line, settings.template, new, settings.cut_prompts)
            lines.append((line, given, new))
    lengths = [*by_length, *(len(given) for _, given, _ in lines)]
    problems = [c.problem(architecture, length) for c in found for length in lengths]
    if all(problems):
        raise ConfigurationError(f"no policy can be measured: {problems[0]}")
    if settings.spot_check and not by_length:
        raise ConfigurationError("--spot-check needs prompts of the recall task or of --text; LongBench's are not used")
    return Job(found, task, new_tokens, by_length, texts, lines)


def measure(checkpoint: Checkpoint, settings: SweepSettings, job: Job, say: Say) -> dict[str, Any]:
    """Return all results as plain numbers: "rows", "needle", "longbench", "spot_check". say: told what is going on."""
    runner = Runner(checkpoint, settings.device)
    rows = []
    for length, asked in job.prompts.items():
        say(f"{length} tokens: full cache")
        full = [runner.answer(prompt.ids, "full", job.new_tokens) for prompt in asked]
        for one in job.contenders:
            say(f"{length} tokens: {one.policy}")
            rows.append(_row(runner, job, one, length, full))
    return {
        "rows": rows,
        "needle": _needle(runner, settings, job, say) if settings.needle else [],
        "longbench": _longbench(runner, job, say),
        "spot_check": _spot_check(runner, settings, job, say) if settings.spot_check else None,
    }


def _head(one: Contender, length: int | None = None) -> dict[str, Any]:
    head: dict[str, Any] = {"asked": one.asked, "policy": one.policy, "budget": one.budget}
    return head if length is None else {**head, "length": length}


def _row(runner: Runner, job: Job, one: Contender, length: int, full: list[list[int]]) -> dict[str, Any]:
    names = ("recall", "token_agreement", "answer_agreement", "attended_tokens", "kept_tokens", "attention_mass")
    asked = job.prompts[length]
    row = {**_head(one, length), "problem": one.problem(runner.architecture, length), "prompts": len(full)}
    row["questions"] = sum(prompt.questions for prompt in asked)
    row |= dict.fromkeys((*names, "attention_mass_by_layer", "perplexity", "perplexity_tokens"))
    if row["problem"]:
        return row
    answers = [runner.answer(prompt.ids, one.policy, job.new_tokens) for prompt in asked]
    row["token_agreement"], row["answer_agreement"] = agreement(full, answers)
    if job.task is not None:
        row["recall"] = recall(asked, answers)
    probed = (runner.probe(prompt.ids, given, one.policy) for prompt, given in zip(asked, full, strict=True))
    kept: list[Kept] = [k for k in probed if k is not None]
    if kept:
        by_layer = [_mean(values) for values in zip(*(k.mass for k in kept), strict=True)]
        row["attention_mass"], row["attention_mass_by_layer"] = _mean(by_layer), by_layer
        row["attended_tokens"], row["kept_tokens"] = _mean([k.attended for k in kept]), _mean([k.kept for k in kept])
    if length in job.texts:
        losses = runner.losses(job.texts[length], length, one.policy)
        row["perplexity"], row["perplexity_tokens"] = metrics.perplexity(losses), len(losses)
    return row


def agreement(full: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> tuple[float, float]:
    """Return the shares of equal tokens, place by place over the longer of two answers, and of fully equal answers."""
    equal = sum(a == b for x, y in zip(full, answers, strict=True) for a, b in zip(x, y, strict=False))
    places = sum(max(len(x), len(y)) for x, y in zip(full, answers, strict=True))
    return equal / places, _mean([x == y for x, y in zip(full, answers, strict=True)])


def recall(asked: Sequence[Prompt], answers: Sequence[Sequence[int]]) -> float:
    """Return the share of all questions that are answered right."""
    right = sum(prompt.right(given) for prompt, given in zip(asked, answers, strict=True))
    return right / sum(prompt.questions for prompt in asked)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _needle(runner: Runner, settings: SweepSettings, job: Job, say: Say) -> list[dict[str, Any]]:
    assert job.task is not None
    cells = []
    count = -(-settings.questions // len(settings.depths))
    for length in settings.lengths:
        asked = {depth: job.task.prompts(length, count, settings.seed, depth) for depth in settings.depths}
        for one in job.contenders:
            if one.problem(runner.architecture, length):
                continue
            say(f"needle, {length} tokens: {one.policy}")
            for depth, given in asked.items():
                answers = [runner.answer(prompt.ids, one.policy, job.new_tokens) for prompt in given]
                cells.append({**_head(one, length), "depth": depth, "prompts": count, "recall": recall(given, answers)})
    return cells


def _longbench(runner: Runner, job: Job, say: Say) -> list[dict[str, Any]]:
    rows = []
    decode = runner.checkpoint.tokenizer.decode
    full = [runner.answer(ids, "full", new) for _, ids, new in job.tasks]
    for one in job.contenders if job.tasks else ():
        say(f"LongBench: {one.policy}")
        for dataset in datasets_of([task for task, _, _ in job.tasks]):
            mine = [(job.tasks[n], full[n]) for n in range(len(job.tasks)) if job.tasks[n][0].dataset == dataset]
            problems = [one.problem(runner.architecture, len(ids)) for (_, ids, _), _ in mine]
            row = {**_head(one), "dataset": dataset, "lines": len(mine), "problem": next(filter(None, problems), None)}
            row |= {"score": None, "token_agreement": None}
            if not row["problem"]:
                answers = [runner.answer(ids, one.policy, new) for (_, ids, new), _ in mine]
                scores = [
                    metrics.score(dataset, decode(given), task.answers, task.classes)
                    for ((task, _, _), _), given in zip(mine, answers, strict=True)
                ]
                row["score"], row["token_agreement"] = 100 * _mean(scores), agreement([f for _, f in mine], answers)[0]
            rows.append(row)
    return rows


def _spot_check(runner: Runner, settings: SweepSettings, job: Job, say: Say) -> dict[str, Any]:
    """Run prompts of the smallest length on shares, with every policy: tokens, and what policies decide. What lies behind
    an end of text is not compared, nor decisions where tokens differ.

    A run that ends in an error is not equal.
    """
    length = min(job.prompts)
    roles = InProcessSuite(SuiteSpec(settings.suite), settings.parties, settings.device)
    runs = []
    for one in job.contenders:
        if one.problem(runner.architecture, length):
            continue
        plan = GenerationPlan(length, job.new_tokens, "greedy", one.policy)
        for number, prompt in enumerate(job.prompts[length][: settings.spot_check]):
            say(f"on shares, {length} tokens, prompt {number + 1}: {one.policy}")
            decisions: list[Decision] = []
            plain = runner.answer(prompt.ids, one.policy, job.new_tokens, decisions)
            run = {**_head(one, length), "prompt": number, "equal": False, "error": None}
            run |= {"decisions": 0, "equal_decisions": 0, "gap": 0.0, "decisions_after": 0}
            try:
                secure = generate_on_shares(runner.checkpoint, prompt.ids, plan, roles, {"decisions"})
                run["equal"] = secure.checked()[: len(plain)] == plain
                if run["equal"]:  # after another token there is other work to decide about
                    found = same_decisions(decisions, secure.decisions)
                    run |= {"decisions": found.compared, "equal_decisions": found.equal}
                    run |= {"gap": found.gap, "decisions_after": found.after}
            except MpcacheError as error:  # the plaintext results are kept
                run["error"] = f"{error.code}: {error}"
            runs.append(run)
    equal = sum(run["equal"] for run in runs)
    return {
        "suite": settings.suite,
        "parties": settings.parties,
        "equal": equal,
        "different": len(runs) - equal,
        "ok": equal == len(runs),
        "decisions": sum(run["decisions"] for run in runs),
        "equal_decisions": sum(run["equal_decisions"] for run in runs),
        "decisions_after": sum(run["decisions_after"] for run in runs),
        "gap": max((run["gap"] for run in runs), default=0.0),
        "runs": runs,
    }


def effective_policies(job: Job) -> list[str]:
    """Return all policies in their canonical text."""
    return [parse(one.policy).spec for one in job.contenders]
