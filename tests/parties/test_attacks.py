"""Attacks on a live deployment that must fail; `python -m tests.tools.attack` runs them all."""

from __future__ import annotations

from pathlib import Path

from tests.tools.attack.scaled_prompt_row import ScaledPromptRow


def test_a_prompt_is_made_of_tokens(tmp_path: Path) -> None:
    verdict = ScaledPromptRow().run(tmp_path)
    assert verdict.caught, verdict
