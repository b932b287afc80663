"""The public bounds that a model owner gives with a model, as they travel: JSON {suite: {kind: bound}}.

They reach clients through the parties and enter the manifest of each session, so that all roles compute with the same. Who
receives them checks them: an owner or a party may send anything.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from mpc.errors import ConfigurationError, WireError
from protocols.ranges import checked_ranges

MOST_BYTES = 1 << 14

Ranges = Mapping[str, Mapping[str, int | str]]


def pack_ranges(suites: Ranges | None) -> str:
    """Return canonical JSON, or nothing for a model that was never calibrated.

    Raises `ConfigurationError` where it is too long.

    >>> pack_ranges({"masked": {"score": 8, "feature": 11}})
    '{"masked":{"feature":11,"score":8}}'
    """
    if suites is None:
        return ""
    text = json.dumps({suite: dict(bounds) for suite, bounds in suites.items()}, sort_keys=True, separators=(",", ":"))
    if len(text) > MOST_BYTES:
        raise ConfigurationError(f"the model's bounds take {len(text)} bytes, at most {MOST_BYTES} are shared")
    return text


def unpack_ranges(text: str, sender: str) -> dict[str, dict[str, int | str]] | None:
    """Return the bounds that a peer sent, None for a model that was never calibrated.

    Raises `WireError` naming the sender.
    """
    if not text:
        return None
    if len(text.encode()) > MOST_BYTES:
        raise WireError(f"{sender} sent bounds of {len(text)} characters, at most {MOST_BYTES} bytes are expected")
    try:
        return checked_ranges(json.loads(text), f"bounds from {sender}")
    except (ValueError, RecursionError):
        raise WireError(f"{sender} sent bounds that are not JSON") from None
    except ConfigurationError as error:
        raise WireError(str(error)) from None
