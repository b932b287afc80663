"""Every policy on every task's prompts: each prompt is processed once, every answer is kept as soon as it is there.

A prompt's answers are one small JSON file, named by a digest of all that its tokens and the model depend on. A second start
reads what is there and goes on with the rest; another policy costs its own answers and the prompts' passes.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from launch.measure.quality.budgets import Contender
from launch.measure.quality.long_prompts import Frame
from launch.measure.quality.long_tasks import TASKS, Asked
from launch.measure.quality.metrics import perplexity
from launch.measure.quality.prefilled import Prefilled, PrefilledModel
from launch.measure.quality.prompts import text_part
from launch.predict.planning import trace_token
from models.checkpoint import Checkpoint
from models.costs.tracing import STEP, Setting
from models.policies import parse
from models.shapes import with_positions
from mpc.errors import ConfigurationError, MpcacheError

VERSION = 1
"""Of the tasks' texts and of what a file holds: another number makes other digests."""
TEXT = "perplexity"
FOLLOWING = 64
"""Tokens behind a text's prompt that its perplexity is of."""
Tell = Callable[[str, int, int], None]
"""(what is going on, answers that are there, all)."""


@dataclass(frozen=True)
class TaskSettings:
    """What is asked for. tasks: of `TASKS`, and `TEXT`; prompts: of each task and length, at depths spread evenly; form:
    "chat" or "plain"; text: tokens of the text that perplexity is of."""

    contenders: Sequence[Contender]
    tasks: Sequence[str]
    lengths: Sequence[int]
    prompts: int
    seed: int
    form: str
    frame: Frame
    text: Sequence[int] = ()
    suite: str = "masked"
    parties: int = 2
    device: str = "cpu"


@dataclass(frozen=True)
class Place:
    """One prompt: which task, how long, which of the prompts."""

    task: str
    length: int
    number: int


@dataclass
class TaskSweep:
    """Runs what is asked for and keeps it in `folder` (nothing is kept without one). tell: progress."""

    checkpoint: Checkpoint
    settings: TaskSettings
    folder: Path | None
    tell: Tell = lambda what, done, total: None
    _done: int = field(default=0, init=False)

    @cached_property
    def model(self) -> PrefilledModel:
        """Return the model, which is loaded when the first prompt needs it."""
        return PrefilledModel(self.checkpoint, self.settings.device)

    @cached_property
    def model_digest(self) -> str:
        """Return the digest of the checkpoint's files."""
        whole = hashlib.sha256()
        for path in sorted(self.checkpoint.directory.iterdir()):
            if path.suffix in (".json", ".safetensors", ".jinja", ".txt", ".model") and path.is_file():
                with path.open("rb") as file:
                    whole.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
        return whole.hexdigest()

    def places(self) -> list[Place]:
        """Return all prompts, short ones first."""
        settings = self.settings
        return [Place(t, length, n) for length in settings.lengths for t in settings.tasks for n in range(settings.prompts)]

    def run(self) -> dict[str, Any]:
        """Return all results: "answers", one by prompt and policy, and "costs", one by policy and length."""
        settings = self.settings
        places = self.places()
        total = len(places) * len(settings.contenders)
        answers = []
        for place in places:  # what does not fit is known before anything runs
            self._prompt(place)
        for place in places:
            answers += self._place(place, total)
        return {"answers": answers, "costs": [self._cost(one, n) for n in settings.lengths for one in settings.contenders]}

    # ---- one prompt ------------------------------------------------------------------------------------------------
    def setting(self, place: Place) -> dict[str, Any]:
        """Return all that a prompt's tokens and a model's answer depend on, but for the policy."""
        settings = self.settings
        found = {"version": VERSION, "model": self.model_digest, **vars(place), "form": settings.form, "seed": settings.seed}
        if place.task == TEXT:
            found["text"] = hashlib.sha256(json.dumps(list(settings.text)).encode()).hexdigest()
        return found | {"prompts": settings.prompts}

    def _place(self, place: Place, total: int) -> list[dict[str, Any]]:
        setting = self.setting(place)
        known = self._read(setting)
        prompt: Prefilled | None = None
        rows = []
        for one in self.settings.contenders:
            what = f"{place.length} tokens, {place.task} {place.number + 1}: {one.policy}"
            self.tell(what, self._done, total)
            problem = one.problem(self.checkpoint.architecture, place.length)
            if problem is None and one.policy not in known:
                ids, asked = self._prompt(place)
                prompt = prompt or self.model.prefill(ids[: place.length])
                known[one.policy] = self._answer(prompt, one.policy, ids[place.length :], asked)
                self._write(setting, known)
            self._done += 1
            rows.append({**vars(place), "policy": one.policy, "problem": problem, **known.get(one.policy, {})})
        return rows

    def _prompt(self, place: Place) -> tuple[list[int], Asked | None]:
        """Return token ids, and what is asked; of a text the prompt and what follows it."""
        settings = self.settings
        if place.task == TEXT:
            last = len(settings.text) - place.length - FOLLOWING
            start = round(place.number * last / max(1, settings.prompts - 1))
            return text_part(self.checkpoint.architecture, settings.text[start:], place.length, FOLLOWING), None
        rng = np.random.default_rng((settings.seed, place.number, place.length))
        asked = TASKS[place.task](rng, (place.number + 0.5) / settings.prompts, place.length)
        return settings.frame.prompt(asked, place.length, rng), asked

    def _answer(self, prompt: Prefilled, policy: str, following: list[int], asked: Asked | None) -> dict[str, Any]:
        started = time.monotonic()
        if asked is None:
            losses = self.model.losses(prompt, policy, following)
            return {"losses": losses, "seconds": time.monotonic() - started}
        decode = self.checkpoint.tokenizer.decode
        ids = self.model.answer(prompt, policy, asked.new_tokens, lambda given: asked.score(decode(given)) == 1)
        text = decode(ids)
        return {
            "score": asked.score(text),
            "answer": text,
            "wanted": list(asked.wanted),
            "seconds": time.monotonic() - started,
        }

    # ---- files -----------------------------------------------------------------------------------------------------
    def _path(self, setting: dict[str, Any]) -> Path | None:
        name = hashlib.sha256(json.dumps(setting, sort_keys=True).encode()).hexdigest()[:24]
        return None if self.folder is None else self.folder / f"{name}.json"

    def _read(self, setting: dict[str, Any]) -> dict[str, Any]:
        """Return the answers by policy. Raises `ConfigurationError` for a file that is not one of these."""
        path = self._path(setting)
        if path is None or not path.exists():
            return {}
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            if record["setting"] == setting and isinstance(record["answers"], dict):
                return dict(record["answers"])
        except (ValueError, KeyError, TypeError, OSError):
            pass
        raise ConfigurationError(f"--out: {path} is not what an earlier start has written; move it away")

    def _write(self, setting: dict[str, Any], answers: dict[str, Any]) -> None:
        """Write all of it or nothing: beside, then renamed."""
        path = self._path(setting)
        if path is None:
            return
        beside = path.with_suffix(f".{os.getpid()}.part")
        beside.write_text(json.dumps({"setting": setting, "answers": answers}, indent=1) + "\n", encoding="utf-8")
        beside.replace(path)

    # ---- costs -----------------------------------------------------------------------------------------------------
    def _cost(self, one: Contender, length: int) -> dict[str, Any]:
        """Return the costs of the token behind a prompt, on shares, as `mpcache estimate` counts: rounds, bytes sent and
        dealt."""
        setting = Setting(self.settings.suite, self.settings.parties, one.policy)
        row: dict[str, Any] = {"policy": one.policy, "length": length, "rounds": None, "sent": None, "dealt": None}
        self.tell(f"{length} tokens, cost on shares: {one.policy}", self._done, self._done)
        try:
            parse(one.policy).check(self.checkpoint.architecture, length)
            with torch.inference_mode():
                cost = trace_token(with_positions(self.checkpoint.architecture, length + 1), setting, length).total(STEP)
        except MpcacheError as error:
            return row | {"problem": str(error)}
        return row | {"rounds": cost.rounds, "sent": cost.bytes_sent, "dealt": cost.offline_bytes, "problem": None}


def rows_of(found: dict[str, Any], settings: TaskSettings) -> list[dict[str, Any]]:
    """Return one row a policy and length: sums of scores by task, perplexity, costs."""
    rows = []
    for length in settings.lengths:
        for one in settings.contenders:
            mine = [a for a in found["answers"] if (a["policy"], a["length"]) == (one.policy, length)]
            (cost,) = (c for c in found["costs"] if (c["policy"], c["length"]) == (one.policy, length))
            scores = {}
            for task in settings.tasks:
                if task != TEXT:
                    scores[task] = sum(a["score"] for a in mine if a["task"] == task and "score" in a)
            losses = [x for a in mine if a["task"] == TEXT for x in a.get("losses", ())]
            problem = next((a["problem"] for a in mine if a["problem"]), None)
            rows.append(
                {
                    "asked": one.asked,
                    "policy": one.policy,
                    "budget": one.budget,
                    "length": length,
                    "prompts": settings.prompts,
                    "scores": scores,
                    "perplexity": perplexity(losses) if losses else None,
                    "problem": problem,
                    "no_cost": cost["problem"],
                    **{name: cost[name] for name in ("rounds", "sent", "dealt")},
                }
            )
    return rows
