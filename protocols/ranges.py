"""The kinds of values that have public bounds, and what each suite lets an owner declare.

A bound is an option of the suite with the kind's name: log2 of the bound, for all layers or by layer (`protocols.bounds`).
What holds for every kind is here; which of the options a suite has, its options say (`protocols.options`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from mpc.errors import ConfigurationError, RangeError
from protocols.bounds import RANGES, Bounds, largest
from protocols.registry import SUITES

MARGIN = 2.0
"""What calibration leaves between the largest value that it has seen and the bound, as a factor: one bit."""

SURE = 3.4
"""Up to how many bounds a value that a linear layer gives is flagged for certain, before a ring has gone around.

The output itself is looked at in a ring that goes around after 14 bounds. Where the product with the weights comes before
the division by a row's deviation, it is looked at first, and its ring goes around after 25 / 6 of what a row at the bound of
`residual` makes of an output at its bound; a row that is flagged for nothing is below sqrt(1.5) bounds."""


def least_bound(kind: str, extreme: float) -> int:
    """Return the smallest bound that values up to `extreme` stay below; it is not limited to what a suite allows."""
    if not math.isfinite(extreme):
        raise RangeError(f"{kind}: the largest value is {extreme}")
    bound = RANGES[kind].low
    while largest(kind, bound) <= extreme:
        bound += 1
    return bound


def checked_ranges(suites: object, source: str) -> dict[str, dict[str, int | str]]:
    """Return {suite: {kind: bound}} from a file or another role, that is from anybody, if it is as it should be.

    Raises `ConfigurationError` naming the source and what is wrong in it.
    """
    if not isinstance(suites, Mapping) or not all(isinstance(options, Mapping) for options in suites.values()):
        raise ConfigurationError(f"{source}: bounds by suite are needed, such as {{'masked': {{'score': 8}}}}")
    found: dict[str, dict[str, int | str]] = {}
    for suite, options in suites.items():
        if suite not in SUITES or not SUITES[suite].options.kinds:
            raise ConfigurationError(f"{source}: bounds for the suite {_brief(suite)}, which keeps none here")
        found[suite] = {}
        for kind, value in options.items():
            if kind not in RANGES:
                raise ConfigurationError(f"{source}: {_brief(kind)} is no kind of value; known: {', '.join(RANGES)}")
            if isinstance(value, bool) or not isinstance(value, int | str):
                raise ConfigurationError(f"{source}: {suite}.{kind} = {_brief(value)} is no bound")
            try:
                Bounds.parse(kind, value, RANGES[kind].low, RANGES[kind].high)
            except RangeError as error:
                raise ConfigurationError(f"{source}: {suite}: {error}") from None
            found[suite][kind] = value
    return found


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
