"""When tokens go: always after the prompt or each of its batches; while decoding never, at every token, or now and then."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """every: while decoding, the cache may grow by so many tokens above what stays, then all of them go at once; 0: none
    ever goes. distance: or so far from the end of what the prompt left, a token goes at each one decoded; 0: none. Public.

    >>> [n for n in range(10, 16) if Schedule(every=4).due(cached=n, kept=10)]
    [14, 15]
    """

    every: int = 0
    distance: int = 0

    def due(self, cached: int, kept: int) -> bool:
        """Whether tokens go now that so many are cached."""
        return self.every > 0 and cached >= kept + self.every

    def leaves(self, kept: int, sinks: int) -> int | None:
        """Return the place whose token goes at each token decoded, behind `sinks` first ones; None where there is none.

        >>> Schedule(distance=25).leaves(kept=100, sinks=4), Schedule(distance=25).leaves(kept=9, sinks=4)
        (75, 4)
        """
        return max(sinks, kept - self.distance) if self.distance else None
