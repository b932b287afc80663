"""Places to compute in, for groups of sessions in step (`mpc.in_step`) that share a process.

Groups that compute at the same time on one processor all end late, and then all wait for the network at the same time. If
one computes after the other, each computes while the other one waits: a round of two groups whose computing takes c, on a
network that takes d to answer, lasts max(c + d, 2 c) in place of 2 c + d.

When a group computes is public, and says nothing but how long others did.
"""

from __future__ import annotations

import threading

PATIENCE_SECONDS = 0.2
"""After so long a group computes beside the others: they may be at a long prompt, or wait for the dealer."""


class ComputePlaces:
    """So many groups of a process compute at a time."""

    def __init__(self, count: int) -> None:
        self._free = threading.Semaphore(count)

    def take(self) -> bool:
        """Wait for a place, not for ever; returns whether there was one, which `give` gives back."""
        return self._free.acquire(timeout=PATIENCE_SECONDS)

    def give(self) -> None:
        """Give a place back."""
        self._free.release()


class ComputePhase:
    """One group's computing between two messages. begun: since the last `end`."""

    def __init__(self, places: ComputePlaces | None = None) -> None:
        self.begun = False
        self._places = places
        self._taken = False

    def begin(self) -> None:
        """Wait for a place, once a phase; by the one member that has the turn."""
        self._taken = self._places is not None and self._places.take()
        self.begun = True

    def end(self) -> None:
        """Give back what was taken."""
        if self._taken and self._places is not None:
            self._places.give()
        self.begun = self._taken = False
