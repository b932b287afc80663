"""The cache policies that a generation can name, with their settings."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any

from models.cache import CachePolicy
from models.policies.registry import POLICIES


@dataclass(frozen=True)
class Policy:
    """A cache policy by its name in `policy="NAME:setting=value,..."`.

    settings: each setting's default. presets: settings by the name that `preset=NAME` stands for. description: what each
    setting means.
    """

    name: str
    settings: Mapping[str, Any]
    presets: Mapping[str, Mapping[str, Any]]
    description: str = field(repr=False)


def policies() -> Mapping[str, Policy]:
    """Return all cache policies by name.

    >>> policies()["h2o"].settings["budget"]
    0.1
    >>> "few-queries" in policies()["mpcache"].presets
    True
    """
    return MappingProxyType({name: _policy(kind) for name, kind in POLICIES.items()})


def _policy(kind: type[CachePolicy]) -> Policy:
    settings = {setting.name: setting.default for setting in fields(kind)}  # type: ignore[arg-type]
    presets = {name: MappingProxyType(dict(values)) for name, values in kind.presets.items()}
    return Policy(kind.name, MappingProxyType(settings), MappingProxyType(presets), inspect.getdoc(kind) or "")
