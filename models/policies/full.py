"""Everything is kept and attended to: what every other policy is compared with.

Leaks: to parties and dealer lengths alone (docs/security.md, "Policies").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from models.cache import CachePolicy


@dataclass(frozen=True)
class FullCache(CachePolicy):
    """Keep everything, attend to everything (to the sliding window, where a layer has one)."""

    name: ClassVar[str] = "full"

    @property
    def append_only(self) -> bool:
        return True

    def verifies(self, rows: int) -> bool:
        return True
