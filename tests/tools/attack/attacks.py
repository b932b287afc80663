"""All attacks, in the order in which they run."""

from __future__ import annotations

from tests.tools.attack.contract import Attack

ATTACKS: tuple[Attack, ...] = ()
