"""One cell of a benchmark's matrix, and the matrix itself: every combination of a few lists, from YAML or flags."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from launch.predict.networks import find_network
from models.drafting import MOST_GUESSES
from mpc.errors import ConfigurationError

Option = bool | int | float | str | None
Measure = Literal["token", "prompt", "session", "estimate", "estimate-prompt", "peer", "peer-prompt"]
LOCALHOST = "localhost"


class Cell(BaseModel):
    """What is measured once. Everything in it is public and makes part of the result's name.

    measure: "token", one decode step after `prompt` cached tokens, with `draft` guesses behind its token; "prompt", the
    prompt itself up to the first token; "session", `new_tokens` tokens by client, parties, dealer and model owner as in
    real use, from a checkpoint; "estimate", the mean of `new_tokens` decode steps predicted without running them;
    "estimate-prompt", the prompt predicted likewise; "peer" and "peer-prompt", the decode step and the prompt in another
    system that `suite` names. model: a known shape or config.json; for a session a checkpoint's folder. network:
    "localhost" as it is, or a profile or "RTT_MS,MBIT" shaped in network namespaces.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    measure: Measure = "token"
    model: str = "gpt2"
    layers: int | None = Field(default=None, ge=1)
    suite: str = "masked"
    options: dict[str, Option] = Field(default_factory=dict)
    policy: str = "full"
    draft: int = Field(default=0, ge=0, le=MOST_GUESSES)
    prompt: int = Field(default=1024, ge=1)
    new_tokens: int = Field(default=1, ge=1)
    parties: int = Field(default=2, ge=2, le=16)
    device: str = "cpu"
    network: str = LOCALHOST
    repeat: int = Field(default=5, ge=1)
    threads: int = Field(default=1, ge=1)
    preprocessing: bool = True
    seed: int = Field(default=1, ge=0)

    @field_validator("network")
    @classmethod
    def _network(cls, value: str) -> str:
        if value != LOCALHOST:
            try:
                find_network(value)
            except ConfigurationError as error:
                raise ValueError(str(error)) from None
        return value

    @property
    def key(self) -> str:
        """Return the hash of the whole configuration, 10 hexadecimal digits."""
        values = self.model_dump(mode="json", exclude=set() if self.draft else {"draft"})
        text = json.dumps(values, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    @property
    def name(self) -> str:
        """Return a readable file name that is different for every configuration."""
        model = Path(self.model).name.removesuffix(".json")
        policy = self.policy.partition(":")[0].partition(";")[0].partition("@")[0]
        parts = [self.measure, model, self.suite, policy, str(self.prompt), f"{self.parties}p", self.network, self.key]
        return "-".join(re.sub(r"[^A-Za-z0-9_.]+", "_", part) for part in parts)

    @model_validator(mode="after")
    def _fits(self) -> Cell:
        if self.measure == "session" and self.new_tokens < 2:
            raise ValueError("new_tokens: a session is measured over 2 tokens or more, since the first one is the prompt's")
        if self.measure not in ("session", "estimate") and self.new_tokens != 1:
            raise ValueError(f"new_tokens: measure '{self.measure}' is about one token; leave it at 1")
        if self.measure != "token" and self.draft:
            raise ValueError(f"draft: measure '{self.measure}' has no guesses; leave it at 0, or measure 'token'")
        return self

    def title(self) -> str:
        """Return one line for a person."""
        where = "" if self.network == LOCALHOST else f", {self.network}"
        draft = f", draft of {self.draft}" if self.draft else ""
        what = f"{self.measure}: {self.model}, {self.suite}, {self.policy}{draft}"
        return f"{what}, {self.prompt} tokens, {self.parties} parties{where}"


LISTS = {  # what is compared with each other varies fastest, so that it is measured within the same minutes
    "measures": "measure",
    "models": "model",
    "devices": "device",
    "networks": "network",
    "parties": "parties",
    "new_tokens": "new_tokens",
    "prompts": "prompt",
    "policies": "policy",
    "suites": "suite",
}


class Matrix(BaseModel):
    """Lists that are multiplied, settings that hold for all cells, and corrections.

    suite_options: options by suite. only: keep the cells that match one of these partial cells (all, when empty). exclude:
    drop the cells that match one of these. cells: further cells, each given by itself.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    measures: list[Measure] = ["token"]
    models: list[str] = Field(default_factory=lambda: ["gpt2"])
    suites: list[str] = Field(default_factory=lambda: ["masked"])
    policies: list[str] = Field(default_factory=lambda: ["full"])
    prompts: list[int] = Field(default_factory=lambda: [1024])
    new_tokens: list[int] = Field(default_factory=lambda: [1])
    parties: list[int] = Field(default_factory=lambda: [2])
    devices: list[str] = Field(default_factory=lambda: ["cpu"])
    networks: list[str] = Field(default_factory=lambda: [LOCALHOST])
    layers: int | None = None
    repeat: int = 5
    threads: int = 1
    preprocessing: bool = True
    seed: int = 1
    suite_options: dict[str, dict[str, Option]] = Field(default_factory=dict)
    only: list[dict[str, Any]] = Field(default_factory=list)
    exclude: list[dict[str, Any]] = Field(default_factory=list)
    cells: list[dict[str, Any]] = Field(default_factory=list)

    def all_cells(self) -> list[Cell]:
        """Return every cell once, in the order of the lists (the last list varies fastest). Raises `ConfigurationError`.

        >>> [cell.title() for cell in Matrix(policies=["full", "mpcache"]).all_cells()]
        ['token: gpt2, masked, full, 1024 tokens, 2 parties', 'token: gpt2, masked, mpcache, 1024 tokens, 2 parties']
        """
        common = {name: getattr(self, name) for name in ("layers", "repeat", "threads", "preprocessing", "seed")}
        values = [getattr(self, name) for name in LISTS]
        for name, chosen in zip(LISTS, values, strict=True):
            if not chosen:
                raise ConfigurationError(f"'{name}' is empty: give at least one value")
        made = []
        for combination in itertools.product(*values):
            cell = dict(zip(LISTS.values(), combination, strict=True))
            if cell["measure"] not in ("session", "estimate"):
                cell["new_tokens"] = 1
            made.append({**common, **cell, "options": self.suite_options.get(cell["suite"], {})})
        for where, patterns in (("only", self.only), ("exclude", self.exclude)):
            for pattern in patterns:
                _known(where, pattern)
        kept = [m for m in made if not self.only or any(_matches(m, p) for p in self.only)]
        kept = [m for m in kept if not any(_matches(m, p) for p in self.exclude)]
        cells = [_cell(m) for m in [*kept, *({**common, **extra} for extra in self.cells)]]
        if not cells:
            raise ConfigurationError("the matrix has no cell: 'only' and 'exclude' leave nothing")
        return list({cell.key: cell for cell in cells}.values())


def _known(where: str, pattern: dict[str, Any]) -> None:
    unknown = sorted(set(pattern) - set(Cell.model_fields))
    if unknown:
        raise ConfigurationError(f"'{where}' names '{unknown[0]}', which no cell has; keys: {', '.join(Cell.model_fields)}")


def _matches(cell: dict[str, Any], pattern: dict[str, Any]) -> bool:
    def fits(name: str, wanted: Any) -> bool:
        have = cell.get(name)
        return have in wanted if isinstance(wanted, list) else have == wanted

    return all(fits(name, wanted) for name, wanted in pattern.items())


def _cell(values: dict[str, Any]) -> Cell:
    try:
        return Cell.model_validate(values)
    except ValidationError as error:
        raise ConfigurationError(_explain(error)) from None


def _explain(error: ValidationError) -> str:
    lines = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"]) or "matrix"
        if item["type"] == "extra_forbidden":
            lines.append(f"unknown key '{where}'; keys: {', '.join([*Matrix.model_fields])}")
        else:
            lines.append(f"{where}: {item['msg'].removeprefix('Value error, ')} (got {item['input']!r})")
    return "; ".join(lines)


def read_matrix(path: Path) -> Matrix:
    """Return a matrix from a YAML file. Raises `ConfigurationError` naming file, key and value."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"--config {path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark is not None else ""
        raise ConfigurationError(f"--config {path} is not valid YAML{line}") from None
    if not isinstance(values, dict):
        raise ConfigurationError(f"--config {path}: expected 'key: value' lines, got {type(values).__name__}")
    try:
        return Matrix.model_validate(values)
    except ValidationError as error:
        raise ConfigurationError(f"--config {path}: {_explain(error)}") from None


def changed(matrix: Matrix, changes: list[str]) -> Matrix:
    """Return the matrix with KEY=VALUE settings in place of its own; a value is YAML. Raises `ConfigurationError`."""
    values = matrix.model_dump(exclude_unset=True)
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals or key not in Matrix.model_fields:
            raise ConfigurationError(f"--set '{change}' is not KEY=VALUE with a key of: {', '.join(Matrix.model_fields)}")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ConfigurationError(f"--set '{change}': the value is not valid YAML, such as [128, 1024]") from None
        values[key] = [value] if key in LISTS and not isinstance(value, list) else value
    try:
        return Matrix.model_validate(values)
    except ValidationError as error:
        raise ConfigurationError(f"--set: {_explain(error)}") from None
