"""Every policy on every task's prompts: each prompt is processed once, every answer is kept as soon as it is there.

A prompt's answers are one small JSON file, named by a digest of all that its tokens and the model depend on. A second start
reads what is there and goes on with the rest; another policy costs its own answers and the prompts' passes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from launch.measure.quality.budgets import Contender
from launch.measure.quality.long_prompts import Frame
from launch.measure.quality.long_tasks import TASKS, Asked, share_of
from launch.measure.quality.metrics import perplexity
from launch.measure.quality.prefilled import Prefilled, PrefilledModel, Turn
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
        """Return a row a policy; those that have not answered yet do so in step."""
        setting = self.setting(place)
        known = self._read(setting)
        everyone = self.settings.contenders
        problems = {one.policy: one.problem(self.checkpoint.architecture, place.length) for one in everyone}
        wanted = [policy for policy, problem in problems.items() if problem is None and policy not in known]
        self.tell(f"{place.length} tokens, {place.task} {place.number + 1}", self._done, total)
        if wanted:
            ids, asked = self._prompt(place)
            prompt = self.model.prefill(ids[: place.length])
            known |= zip(wanted, self._answers(prompt, wanted, ids[place.length :], asked), strict=True)
            self._write(setting, known)
        self._done += len(everyone)
        return [{**vars(place), "policy": p, "problem": problem, **known.get(p, {})} for p, problem in problems.items()]

    def _prompt(self, place: Place) -> tuple[list[int], Asked | None]:
        """Return token ids, and what is asked; of a text the prompt and what follows it."""
        settings = self.settings
        if place.task == TEXT:
            last = len(settings.text) - place.length - FOLLOWING
            start = round(place.number * last / max(1, settings.prompts - 1))
            return text_part(self.checkpoint.architecture, settings.text[start:], place.length, FOLLOWING), None
        rng = np.random.default_rng((settings.seed, place.number, place.length))
        asked = TASKS[place.task](rng, (place.number + 0.5) / settings.prompts, place.length)
        ids = settings.frame.prompt(asked, place.length, rng)
        later = sum(len(settings.frame.turn(one)) for one in asked.later) + asked.new_tokens * len(asked.every_wanted)
        positions = self.checkpoint.architecture.positions
        if len(ids) + later > positions:
            raise ConfigurationError(
                f"--lengths {place.length}: the task {place.task} needs {len(ids) + later} positions, the model has "
                f"{positions}; lower it"
            )
        return ids, asked

    def _answers(
        self, prompt: Prefilled, policies: Sequence[str], following: list[int], asked: Asked | None
    ) -> list[dict[str, Any]]:
        """Return what is kept of each policy's answer."""
        if asked is None:
            return [{"losses": [token.loss for token in fed]} for fed in self.model.fed(prompt, policies, following)]
        decode = self.checkpoint.tokenizer.decode
        given = [[], *map(self.settings.frame.turn, asked.later)]
        turns = [
            Turn(ids, asked.new_tokens, lambda answer, wanted=wanted: share_of(wanted, decode(answer)) == 1)  # type: ignore[misc]
            for ids, wanted in zip(given, asked.every_wanted, strict=True)
        ]
        wanted = [word for words in asked.every_wanted for word in words]
        texts = [list(map(decode, found)) for found in self.model.conversations(prompt, policies, turns)]
        return [{"score": asked.score(text), "answer": " | ".join(text), "wanted": wanted} for text in texts]

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
