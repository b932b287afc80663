"""Checks of policies' settings, and the text form in which a policy travels: `name:setting=value,setting=value`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from models.architecture import Architecture
from mpc.errors import ConfigurationError

if TYPE_CHECKING:
    from models.cache import CachePolicy


MOST_NUMBERS = 1000  # that one part of a text stands for
MOST_HELD_BITS = 4  # fraction bits of rows that are held with few of them


def ratio(policy: str, name: str, value: Any) -> None:
    """Raise `ConfigurationError` unless 0 < value <= 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise ConfigurationError(f"policy {policy}: {name} = {value!r} must be a share above 0 and up to 1")


def whole(policy: str, name: str, value: Any, least: int) -> None:
    """Raise `ConfigurationError` unless value is a whole number >= least."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigurationError(f"policy {policy}: {name} = {value!r} must be a whole number, {least} or more")


def at_most(policy: str, name: str, value: float, most: float, why: str = "which rankings hold") -> None:
    """Raise `ConfigurationError` for a value above what rankings, or whatever `why` says, hold."""
    if value > most:
        raise ConfigurationError(f"policy {policy}: {name} = {value} must be at most {most}, {why}")


def few_bits(policy: str, name: str, value: Any) -> None:
    """Raise `ConfigurationError` unless value is a number of fraction bits that rows can be held with."""
    whole(policy, name, value, 0)
    at_most(policy, name, value, MOST_HELD_BITS, "which small rings hold")


def odd(policy: str, name: str, value: Any) -> None:
    """Raise `ConfigurationError` unless value is a whole odd number >= 1."""
    whole(policy, name, value, 1)
    if value % 2 == 0:
        raise ConfigurationError(f"policy {policy}: {name} = {value} must be odd")


def yes_or_no(policy: str, name: str, value: Any) -> None:
    """Raise `ConfigurationError` unless value is a bool."""
    if not isinstance(value, bool):
        raise ConfigurationError(f"policy {policy}: {name} = {value!r} must be true or false")


def one_of(policy: str, name: str, value: Any, known: Sequence[str]) -> None:
    """Raise `ConfigurationError` unless value is one of a few words."""
    if value not in known:
        raise ConfigurationError(f"policy {policy}: {name} = {str(value)[:60]!r} must be one of {', '.join(known)}")


def numbers(policy: str, name: str, text: str) -> tuple[float, ...]:
    """Return the numbers that a text names, at least one above 0. Raises `ConfigurationError`.

    >>> numbers("layers", "weights", "4 2.5 1*3")
    (4.0, 2.5, 1.0, 1.0, 1.0)
    """
    found: list[float] = []
    for part in str(text).split():
        number, star, times = part.partition("*")
        try:
            value, count = float(number), int(times) if star else 1
        except ValueError:
            value, count = -1.0, 0
        if not (0 <= value < math.inf and 1 <= count <= MOST_NUMBERS):
            raise ConfigurationError(
                f"policy {policy}: {name} has '{part[:60]}', which must be a number, 0 or more, or number*count for several"
            )
        found += [value] * count
    if not sum(found) > 0:
        raise ConfigurationError(
            f"policy {policy}: {name} = '{str(text)[:100]}' must name numbers, such as 4 2 1*10, one of them above 0"
        )
    return tuple(found)


def layer_heads(policy: str, text: str) -> tuple[tuple[int, int], ...]:
    """Return the (layer, query head) that a text names as `layer.head`. Raises `ConfigurationError`.

    >>> layer_heads("compresskv", "0.1 3.7")
    ((0, 1), (3, 7))
    """
    found: list[tuple[int, int]] = []
    for part in str(text).split():
        layer, dot, head = part.partition(".")
        if not dot or not (layer + head).isdecimal() or not layer or not head:
            raise ConfigurationError(f"policy {policy}: heads has '{part[:60]}', which must be layer.head, such as 0.1 3.7")
        if (int(layer), int(head)) in found:
            raise ConfigurationError(f"policy {policy}: heads names {part[:60]} twice; it would count twice")
        found.append((int(layer), int(head)))
    return tuple(found)


def of_model(policy: str, heads: Sequence[tuple[int, int]], architecture: Architecture) -> None:
    """Raise `ConfigurationError` for heads that a model does not have."""
    for layer, head in heads:
        if layer >= architecture.layers or head >= architecture.heads:
            raise ConfigurationError(
                f"policy {policy}: heads has {layer}.{head}, the model has layers 0 to {architecture.layers - 1} and query "
                f"heads 0 to {architecture.heads - 1}; name those of this model"
            )


def budget_tokens(share: float, tokens: int) -> int:
    """Return the public number of tokens that a share of `tokens` stands for: rounded, at least 1.

    >>> budget_tokens(0.1, 1024), budget_tokens(0.1, 3)
    (102, 1)
    """
    return max(1, min(tokens, round(share * tokens)))


def no_windows(policy: str, architecture: Architecture, prompt_tokens: int) -> None:
    """Raise `ConfigurationError` for a model with sliding windows: rows that have moved have no position to be cut at."""
    for layer in range(architecture.layers):
        window = architecture.window(layer)
        if window is not None and window < architecture.positions:
            raise ConfigurationError(
                f"policy {policy} does not work on layers with a sliding window (layer {layer}: {window} tokens); "
                "use the policy full, which keeps the window"
            )


def text_of(policy: CachePolicy) -> str:
    """Return `name:setting=value,...` with the settings that differ from the defaults."""
    assert dataclasses.is_dataclass(policy)
    parts = []
    for field in dataclasses.fields(policy):
        value = getattr(policy, field.name)
        if value != field.default:
            whole_float = isinstance(value, float) and value > 1 and value == int(value)
            text = str(value).lower() if isinstance(value, bool) else int(value) if whole_float else value
            parts.append(f"{field.name}={text}")
    return policy.name + (":" + ",".join(parts) if parts else "")


def value_of(policy: str, name: str, text: str, default: Any) -> Any:
    """Return a setting's value in the type of its default. Raises `ConfigurationError`."""
    if isinstance(default, bool):
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
        raise ConfigurationError(f"policy {policy}: {name} = {text!r} must be true or false")
    if isinstance(default, str):
        return text
    try:
        return int(text) if isinstance(default, int) else float(text)
    except ValueError:
        kind = "a whole number" if isinstance(default, int) else "a number"
        raise ConfigurationError(f"policy {policy}: {name} = {text!r} must be {kind}") from None
