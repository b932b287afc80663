"""Seconds that `mpcache bench` measured, for predictions: what parties compute, with their messages on one machine."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from models.architecture import Architecture
from models.costs.tracing import Setting
from models.policies import parse
from mpc.errors import ConfigurationError


@dataclass
class Measurements:
    """token: seconds of one decode step by policy; once: of all layers' work after the prompt by policy."""

    token: dict[str, float] = field(default_factory=dict)
    once: dict[str, float] = field(default_factory=dict)


def read_measurements(paths: Iterable[Path], architecture: Architecture, setting: Setting, prompt: int) -> Measurements:
    """Read measurements from files that end with a line of `mpcache bench --json`, of this model, suite, number of
    parties and prompt.

    Of an eviction, all layers cost what the measured one does, and the last layer computes the observed queries' attention
    besides. Raises `ConfigurationError` naming the file and what does not fit.
    """
    found = Measurements()
    for path in paths:
        record = _record(path)
        for name, wanted in (
            ("layers", architecture.layers),
            ("suite", setting.suite),
            ("parties", setting.parties),
            ("cached", prompt),
            ("options", dict(setting.options)),
        ):
            if record.get(name) != wanted:
                raise ConfigurationError(
                    f"--measured {path}: {name} is {record.get(name)!r}, the plan is for {wanted!r}; "
                    "measure the same model, suite, parties and prompt"
                )
        policy = parse(str(record.get("policy"))).spec
        try:
            if record.get("eviction"):
                importance = sum(s["seconds"] for s in record["stages"] if s["name"] == "importance")
                found.once[policy] = record["layers"] * float(record["per_layer"]["seconds"]) + float(importance)
            else:
                found.token[policy] = float(record["seconds_median"])
        except (KeyError, TypeError, ValueError):
            raise ConfigurationError(f"--measured {path}: {_WANTED}") from None
    for policy in sorted({*found.once, *found.token} - {"full"}):
        for wanted, what in (("full", found.token), (policy, found.token), (policy, found.once)):
            if wanted not in what:
                kind = "an eviction (--eviction)" if what is found.once else "a decode step"
                raise ConfigurationError(f"--measured: {kind} with --policy {wanted} is missing beside those of {policy}")
    return found


_WANTED = "its last line is not one that `mpcache bench --json` prints"


def _record(path: Path) -> dict[str, Any]:
    try:
        lines = path.read_text(encoding="utf-8").strip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"--measured {path}: cannot be read ({error})") from None
    try:
        record = json.loads(lines[-1])
    except (IndexError, ValueError):
        record = None
    if not isinstance(record, dict):
        raise ConfigurationError(f"--measured {path}: {_WANTED}")
    return record
