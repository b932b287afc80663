"""Rotary positions of a config.json, as transformers 5 reads them.

`rope_scaling`, where it holds anything, takes the place of `rope_parameters` altogether. A value that the chosen entry
leaves out comes from the top level of the file, then from transformers' default. `original_max_position_embeddings` is the
other way round: at the top level it wins over the entry's own.

Of `longrope` the short factors are read, with which a model runs sequences up to the positions that it was first trained
for; `positions` allows no longer ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal, localcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.architecture import Rotary
from models.config import Config, brief
from mpc.errors import ConfigurationError

THETA = 10_000.0
KINDS = ("default", "linear", "llama3", "dynamic", "yarn")
_PART = "rotary positions on a part of the channels are not part of this family"


@dataclass(frozen=True)
class RotaryRules:
    """What a family's rotary positions differ in. head: channels of a head where only a part of them may turn, 0 where all
    always do. part: the part where nothing is said, and its `key` beside `rope_theta`. theta, theta_key: likewise. kinds:
    ways to scale. entry: of `rope_parameters`, where layers differ.
    """

    head: int = 0
    part: float = 1.0
    part_key: str = "partial_rotary_factor"
    theta: float = THETA
    theta_key: str = "rope_theta"
    kinds: tuple[str, ...] = KINDS
    entry: str = ""


PLAIN = RotaryRules()


def read_rotary(config: Config, rules: RotaryRules = PLAIN) -> Rotary:
    """Return the rotary positions that a config.json describes. Raises `CheckpointError` naming key, value and remedy."""
    key = "rope_scaling" if config.values.get("rope_scaling") else "rope_parameters"
    entries = config.values.get(key) or {}
    if rules.entry and isinstance(entries, dict) and rules.entry in entries:
        entries = entries[rules.entry] or {}
    if not isinstance(entries, dict) or any(isinstance(v, dict) for v in entries.values()):
        raise config.error(key, "one set of rotary parameters for all layers is needed")
    inner = Config(entries, Path(f"{config.path}: {key}"))
    found: dict[str, Any] = {"channels": _channels(config, inner, rules), "theta": _theta(config, inner, rules)}
    kind = entries.get("rope_type", entries.get("type", "default"))
    if "longrope" in rules.kinds and kind in ("su", "yarn"):
        kind = "longrope"  # its names in earlier files
    if kind not in rules.kinds:
        raise config.error(key, f"rope type {brief(kind)} is not supported; supported: {', '.join(rules.kinds)}")
    if kind == "longrope":
        found |= _long(config, inner)
    elif kind != "default":
        found |= {"scaling": kind, "factor": _factor(config, inner, kind)}
    if kind == "dynamic":
        found["original_positions"] = config.integer("max_position_embeddings")
    elif kind in ("llama3", "yarn"):
        found["original_positions"] = _original(config, inner)
    if kind == "llama3":
        found["low_frequency_factor"] = inner.number("low_freq_factor")
        found["high_frequency_factor"] = inner.number("high_freq_factor")
    if kind == "yarn":
        found |= _yarn(inner, found["factor"])
    try:
        return Rotary(**found)
    except ConfigurationError as error:
        raise config.error(key, str(error)) from None


def positions(config: Config, rotary: Rotary | None, key: str = "max_position_embeddings") -> int:
    """Return the longest sequence: `max_position_embeddings`, or what yarn and dynamic scaling are meant to stretch it to,
    or what short factors are for.

    transformers sets no bound of its own; it is kept here because a model says nothing sensible beyond it.
    """
    most = config.integer(key)
    if rotary is not None and rotary.scaling in ("yarn", "dynamic"):
        return max(most, int(rotary.factor * rotary.original_positions))
    return min(most, rotary.original_positions) if rotary is not None and rotary.scaling == "factors" else most


def channel_order(channels: int, turning: int, interleaved: bool) -> Tensor:
    """Return which stored channel of a head comes where, so that rotary positions turn channels c and c + C/2.

    The first `turning` stored channels turn: c with c + turning / 2, or interleaved, 2c with 2c + 1; the others join both
    halves.

    >>> channel_order(8, turning=4, interleaved=True).tolist()
    [0, 2, 4, 5, 1, 3, 6, 7]
    """
    turned = torch.arange(turning).reshape((-1, 2) if interleaved else (2, -1))
    first, second = turned.T if interleaved else turned
    rest = torch.arange(turning, channels).reshape(2, -1)
    return torch.cat([first, rest[0], second, rest[1]])


def _channels(config: Config, inner: Config, rules: RotaryRules) -> int | None:
    """Return how many channels of a head turn, None for all."""
    said = inner if "partial_rotary_factor" in inner.values else config
    key = "partial_rotary_factor" if said is inner else rules.part_key
    if not rules.head:
        said.refuse(key, _PART, 1, 1.0)
        return None
    count = int(rules.head * said.number(key, rules.part))
    if count < 2 or count % 2 or count > rules.head or rules.head % 2:
        raise said.error(key, f"{count} of {rules.head} channels of a head turn; an even number of an even number is needed")
    return None if count == rules.head else count


def _long(config: Config, inner: Config) -> dict[str, Any]:
    """Return the short factors of longrope. Source: Ding et al., "LongRoPE" (arXiv 2402.13753)."""
    short = inner.values.get("short_factor")
    if not isinstance(short, list) or not all(isinstance(x, int | float) and not isinstance(x, bool) for x in short):
        raise inner.error("short_factor", "a list of numbers is needed")
    original = _original(config, inner)
    stretched = inner.number("factor", config.integer("max_position_embeddings") / original)
    with localcontext() as context:
        context.prec = 40
        grown = (1 + Decimal(stretched).ln() / Decimal(original).ln()).sqrt() if stretched > 1 else Decimal(1)
    return {
        "scaling": "factors",
        "factors": tuple(float(x) for x in short),
        "original_positions": original,
        "attention_factor": inner.number("attention_factor", float(grown)),
    }


def _theta(config: Config, inner: Config, rules: RotaryRules) -> float:
    for source, key in ((inner, "rope_theta"), (config, rules.theta_key)):
        if key in source.values:
            return source.number(key)
    return rules.theta


def _original(config: Config, inner: Config) -> int:
    """Return the positions before the stretching."""
    key = "original_max_position_embeddings"
    for source in (config, inner):
        if key in source.values:
            return source.integer(key)
    return config.integer("max_position_embeddings")


def _factor(config: Config, inner: Config, kind: str) -> float:
    if kind == "yarn" and "factor" in inner.values and inner.values["factor"] is None:
        return config.integer("max_position_embeddings") / _original(config, inner)
    return inner.number("factor")


def _yarn(inner: Config, factor: float) -> dict[str, Any]:
    """Return what only yarn has. Source: Peng et al., "YaRN" (arXiv 2309.00071), with the variants that transformers
    knows."""
    found: dict[str, Any] = {"truncate": inner.flag("truncate", True)}
    for key in ("beta_fast", "beta_slow"):
        if inner.values.get(key):  # 0 and null mean the default
            found[key] = inner.number(key)
    if inner.present("attention_factor"):
        return found | {"attention_factor": inner.number("attention_factor")}
    both = all(inner.values.get(key) for key in ("mscale", "mscale_all_dim"))
    wanted, other = (inner.number("mscale"), inner.number("mscale_all_dim")) if both else (1.0, 0.0)
    return found | {"attention_factor": float(_mscale(factor, wanted) / _mscale(factor, other))}


def _mscale(factor: float, scale: float) -> Decimal:
    """Return 0.1 * scale * ln(factor) + 1, and 1 where nothing is stretched; decimal, hence the same on every host."""
    with localcontext() as context:
        context.prec = 40
        return max(Decimal(factor).ln(), Decimal(0)) * Decimal(scale) / 10 + 1
