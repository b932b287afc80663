"""Whole generations on a device: the tokens of the CPU, in one process, for both families; CPU and device in one session."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from launch.local.in_process import InProcessSuite
from launch.measure.generation import generate_on_shares
from models.checkpoint import load_checkpoint
from models.generation import GenerationPlan, PlainModel, generate_plain
from protocols.registry import SuiteSpec
from tests.models import random_checkpoints as checkpoints

RECALL = Path(__file__).parents[2] / "models" / "recall"
PROMPT = [168, 99, 55, 26, 126, 9, 101, 112, 157, 197]


def plan(policy: str = "full", tokens: int = 2) -> GenerationPlan:
    return GenerationPlan(len(PROMPT), tokens, policy=policy)


@pytest.mark.parametrize("name", ["gpt2", "llama-grouped"])
def test_a_generation_on_shares(device: str, name: str, tmp_path: Path) -> None:
    ids = checkpoints.prompt(checkpoints.save(name, tmp_path, layers=1), len(PROMPT))
    checkpoint = load_checkpoint(tmp_path)
    found = generate_on_shares(checkpoint, ids, plan(), InProcessSuite(SuiteSpec("masked"), 2, device))
    assert found.checked() == generate_plain(checkpoint, ids, plan(), torch.float64)


@pytest.mark.parametrize("places", ["party 0", "party 1"])
def test_a_party_on_the_cpu_and_one_on_a_device_give_the_same_tokens(device: str, places: str) -> None:
    """All that multiplies shares is equal at both to the last bit, or the result would be noise."""
    checkpoint = load_checkpoint(RECALL / "llama")
    devices = ["cpu", device, "cpu"] if places == "party 1" else [device, "cpu", device]
    found = generate_on_shares(checkpoint, PROMPT, plan(tokens=1), InProcessSuite(SuiteSpec("masked"), 2, devices))
    assert found.checked() == generate_plain(checkpoint, PROMPT, plan(tokens=1), torch.float64)


@pytest.mark.parametrize("policy", ["full", "h2o:budget=0.5", "quest:page=2,budget=0.5"])
def test_plaintext(device: str, policy: str) -> None:
    for name in ("gpt2", "llama"):
        checkpoint = load_checkpoint(RECALL / name)
        there = PlainModel(checkpoint, torch.float64, device).generate(PROMPT, plan(policy, 4))
        assert there == generate_plain(checkpoint, PROMPT, plan(policy, 4), torch.float64)
