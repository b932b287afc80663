"""What `gpu_check` asks for is what this version takes: it is run seldom, and its first minutes must be enough."""

from __future__ import annotations

import pytest

from models.checkpoint import load_checkpoint
from models.generation import GenerationPlan
from tests.tools.gpu_check.work import POLICIES, PROMPT, RECALL


@pytest.mark.parametrize("policy", POLICIES)
def test_policies_hold_the_prompt(policy: str) -> None:
    GenerationPlan(len(PROMPT), 4, policy=policy).check(load_checkpoint(RECALL / "gpt2").architecture)
