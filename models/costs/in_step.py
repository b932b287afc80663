"""What sessions in step (`mpc.in_step`) cost together, from what one of them costs."""

from __future__ import annotations

from dataclasses import dataclass

from models.costs.tracing import Costs
from mpc.step_messages import overhead


@dataclass(frozen=True)
class InStep:
    """Sessions that do the same at the same time, such as to decode a token each. rounds: of all together, which are those
    of one; bytes_sent: by a party, of all; overhead_bytes: sent beside them, for the lists of the shared messages.
    """

    sessions: int
    rounds: float
    bytes_sent: float
    overhead_bytes: float

    @property
    def rounds_saved(self) -> float:
        """Return how many rounds fewer these are than one session's after another's."""
        return (self.sessions - 1) * self.rounds


def in_step(costs: Costs, sessions: int, parties: int) -> InStep:
    """Return what so many sessions of these costs take in step.

    >>> in_step(Costs({("head", "argmax", "rounds"): 20, ("head", "argmax", "bytes_sent"): 1000}), sessions=8, parties=2)
    InStep(sessions=8, rounds=20, bytes_sent=8000, overhead_bytes=2080)
    """
    rounds = costs.total("rounds")
    listed = rounds * (parties - 1) * overhead(sessions)
    return InStep(sessions, rounds, sessions * costs.total("bytes_sent"), listed)
