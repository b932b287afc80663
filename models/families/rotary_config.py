"""Rotary positions of a config.json, as transformers 5 reads them.

`rope_scaling`, where it holds anything, takes the place of `rope_parameters` altogether. A value that the chosen entry
leaves out comes from the top level of the file, then from transformers' default. `original_max_position_embeddings` is the
other way round: at the top level it wins over the entry's own.
"""

from __future__ import annotations

from decimal import Decimal, localcontext
from pathlib import Path
from typing import Any

from models.architecture import Rotary
from models.config import Config, brief
from mpc.errors import ConfigurationError

THETA = 10_000.0
KINDS = ("default", "linear", "llama3", "dynamic", "yarn")
_PART = "rotary positions on a part of the channels are not supported"


def read_rotary(config: Config) -> Rotary:
    """Return the rotary positions that a config.json describes. Raises `CheckpointError` naming key, value and remedy."""
    key = "rope_scaling" if config.values.get("rope_scaling") else "rope_parameters"
    entries = config.values.get(key) or {}
    if not isinstance(entries, dict) or any(isinstance(v, dict) for v in entries.values()):
        raise config.error(key, "one set of rotary parameters for all layers is needed")
    inner = Config(entries, Path(f"{config.path}: {key}"))
    (inner if "partial_rotary_factor" in entries else config).refuse("partial_rotary_factor", _PART, 1, 1.0)
    kind = entries.get("rope_type", entries.get("type", "default"))
    if kind not in KINDS:
        raise config.error(key, f"rope type {brief(kind)} is not supported; supported: {', '.join(KINDS)}")
    found: dict[str, Any] = {"theta": _theta(config, inner), "scaling": kind}
    if kind != "default":
        found["factor"] = _factor(config, inner, kind)
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


def positions(config: Config, rotary: Rotary) -> int:
    """Return the longest sequence: `max_position_embeddings`, or what yarn and dynamic scaling are meant to stretch it to.

    transformers sets no bound of its own; it is kept here because a model says nothing sensible beyond it.
    """
    most = config.integer("max_position_embeddings")
    if rotary.scaling in ("yarn", "dynamic"):
        return max(most, int(rotary.factor * rotary.original_positions))
    return most


def _theta(config: Config, inner: Config) -> float:
    for source in (inner, config):
        if "rope_theta" in source.values:
            return source.number("rope_theta")
    return THETA


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
