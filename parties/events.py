"""What a server logs of its sessions: one event a line, with public facts only.

A fact is a name of the configuration, a public size, a duration, an error's code or its message (which never holds a
secret). Whoever formats records as JSON finds the facts in `record.facts`.
"""

from __future__ import annotations

import json
import logging

from mpc.errors import MpcacheError

DIGITS = 4
LONGEST = 2000  # characters of a text that comes from a peer
log = logging.getLogger("mpcache")


def clean(text: str) -> str:
    """A peer's text made fit for one line of a terminal or log."""
    return "".join(c if c.isprintable() else " " for c in text[:LONGEST])


def event(name: str, server: str, /, level: int = logging.INFO, **facts: object) -> None:
    """Log one event. Facts that are None are left out."""
    shown = {key: _fact(value) for key, value in facts.items() if value is not None}
    text = " ".join(f"{key}={_shown(value)}" for key, value in shown.items())
    extra = {"event": name, "server": server, "facts": shown}
    log.log(level, "%s: %s %s", server, name.replace("_", " "), text, extra=extra)


def refused(server: str, peer: str, call: str, error: MpcacheError) -> None:
    """A call that came to nothing: not allowed, malformed, too much, or to a server that has no place."""
    level = logging.WARNING if error.code == "permission" else logging.INFO
    event("refused", server, level, peer=peer, call=call, code=error.code, error=str(error))


def _shown(value: object) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) and (" " in value or '"' in value) else str(value)


def _fact(value: object) -> object:
    if isinstance(value, float):
        return round(value, DIGITS)
    if isinstance(value, str):
        return clean(value)
    return value
