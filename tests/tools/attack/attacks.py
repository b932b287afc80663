"""All attacks, in the order in which they run."""

from __future__ import annotations

from tests.tools.attack.contract import Attack
from tests.tools.attack.scaled_prompt_row import ScaledPromptRow

ATTACKS: tuple[Attack, ...] = (ScaledPromptRow(),)
