"""How many rows of a drafted step stay, as client and parties say it; public."""

from __future__ import annotations

from typing import Any

from mpc.errors import WireError
from parties.wire import wire_pb2 as wire


def kept(step: int, rows: int) -> wire.Kept:
    """Return the message that the first `rows` rows of output `step` stay."""
    return wire.Kept(step=step, rows=rows)


def kept_rows(message: Any, step: int, rows: int, sender: str) -> int:
    """Return how many of `rows` rows of output `step` stay, from the message of a stream. Raises `WireError`."""
    kind = message.WhichOneof("content")
    if kind != "kept":
        raise WireError(f"{sender} sent '{kind}' where the rows of output {step} that stay were expected")
    said = message.kept
    if said.step != step or not 1 <= said.rows <= rows:
        raise WireError(f"{sender} said that {said.rows} rows of output {said.step} stay; 1 to {rows} of output {step} can")
    return int(said.rows)
