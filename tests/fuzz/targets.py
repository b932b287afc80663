"""Every decoder of bytes from outside: from peers and clients on the wire, and from files that another host wrote.

A target takes one case. It may raise `MpcacheError` (or what `refusals` names); anything else is a bug.
"""

from __future__ import annotations

from tests.fuzz import file_targets, wire_targets
from tests.fuzz.samples import Target

__all__ = ["TARGETS", "Target"]

TARGETS: dict[str, Target] = {**wire_targets.TARGETS, **file_targets.TARGETS}
