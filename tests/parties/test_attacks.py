"""Attacks on a live deployment that must fail; `python -m tests.tools.attack` runs them all."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tools.attack.contract import Attack
from tests.tools.attack.gateway_without_key import GatewayWithoutKey
from tests.tools.attack.scaled_prompt_row import ScaledPromptRow


@pytest.mark.parametrize("attack", [GatewayWithoutKey(), ScaledPromptRow()], ids=lambda attack: attack.name)
def test_it_is_caught(attack: Attack, tmp_path: Path) -> None:
    verdict = attack.run(tmp_path)
    assert verdict.caught, verdict
