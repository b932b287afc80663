"""What an attack is: something that an adversary who is no developer could do to unmodified roles, and what came of it.

Every attack is a class in a file of its own in this folder, listed in `tests.tools.attack.attacks`. It runs against a live
deployment (real gRPC with mutual TLS on 127.0.0.1) and says what was caught; the tests of the suite run the same class.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol


@dataclass(frozen=True)
class Verdict:
    """caught: whether the attack failed, as it must. shown: the message that a person sees, or the figure that was
    measured and its bound. detail: what an adversary has, in one sentence."""

    caught: bool
    shown: str
    detail: str


class Attack(Protocol):
    """name: a short one in lower case with hyphens. who: the adversary. what: what it tries, one line."""

    name: ClassVar[str]
    who: ClassVar[str]
    what: ClassVar[str]

    def run(self, folder: Path) -> Verdict:
        """Start what is needed in an empty folder, attack it, stop it. Seconds to a few minutes."""
        ...
