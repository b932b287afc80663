"""Preprocessing in sessions: same tokens, same costs, errors with the right name, no thread left."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from models.checkpoint import load_checkpoint
from models.generation import GenerationPlan, generate_plain
from mpc import preprocessing as mpc_preprocessing
from mpc.errors import ConfigurationError, TapeError
from parties.config.role_config import RoleConfig
from parties.party import preprocessing as preprocessing
from tests.parties.deployment import Deployment

PROMPT = [3, 17, 8, 30, 5]
COUNTED = ("bytes_sent", "bytes_received", "rounds", "messages", "offline_bytes")


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("preprocessing")]


def gone() -> bool:
    limit = time.monotonic() + 10
    while threads() and time.monotonic() < limit:
        time.sleep(0.02)
    return not threads()


@pytest.mark.parametrize(("parties", "ways"), [(2, ("greedy", "logits", "sample", "padded")), (3, ("greedy",))])
def test_tokens_and_costs_are_the_same(parties: int, ways: tuple[str, ...], tmp_path: Path, checkpoint: Path) -> None:
    wanted = generate_plain(load_checkpoint(checkpoint), PROMPT, GenerationPlan(len(PROMPT), 3))
    costs: dict[str, Any] = {}
    for setting in ("off", "on"):
        with Deployment(tmp_path / setting, parties, deadline_seconds=20, preprocessing=setting) as deployment:
            deployment.share(checkpoint)
            for decoding in ways:
                warm = 1e-4 if decoding == "sample" else None  # at 1e-4 no noise shows
                asked: dict[str, Any] = {"decoding": decoding, "temperature": warm, "stop_ids": (), "suite": "masked"}
                if decoding == "padded":
                    asked |= {"decoding": "greedy", "prompt_buckets": (8,)}
                result = deployment.client().ask(PROMPT, 3, **asked)
                assert result.tokens[: len(wanted)] == wanted
                costs[setting, decoding] = {
                    name: {stage: [cost[c] for c in COUNTED] for stage, cost in found["stages"].items()}
                    for name, found in result.costs.items()
                }
            assert gone()
    for decoding in ways:
        assert costs["on", decoding] == costs["off", decoding]


def test_an_error_of_the_thread_ends_the_session_by_name(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = 0
    dependent = mpc_preprocessing.PreprocessingTape.dependent

    def broken(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal taken
        taken += 1
        if taken == 20:
            raise TapeError("tape entry 99: dealt something else")
        return dependent(self, *args, **kwargs)

    with Deployment(tmp_path, 2, deadline_seconds=20, preprocessing="on") as deployment:
        deployment.share(checkpoint)
        monkeypatch.setattr(mpc_preprocessing.PreprocessingTape, "dependent", broken)
        with pytest.raises(TapeError, match="tape entry 99: dealt something else"):
            deployment.client().ask(PROMPT, 4, stop_ids=(), suite="masked")
        assert gone()
        monkeypatch.undo()
        assert len(deployment.client().ask(PROMPT, 2, stop_ids=(), suite="masked").tokens) == 2


def test_a_small_store_is_enough(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preprocessing, "LIMIT_BYTES", 1 << 10)
    with Deployment(tmp_path, 2, deadline_seconds=20, preprocessing="on") as deployment:
        deployment.share(checkpoint)
        assert len(deployment.client().ask(PROMPT, 2, stop_ids=(), suite="masked").tokens) == 2
        assert gone()


@pytest.mark.parametrize(
    ("setting", "cores", "expected"), [("auto", 3, False), ("auto", 4, True), ("on", 1, True), ("off", 8, False)]
)
def test_when_it_is_wanted(
    setting: str, cores: int, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    config = Deployment(tmp_path).config("party", "party0", preprocessing=setting)
    assert preprocessing.wanted(config) == expected


@pytest.mark.parametrize(("value", "word"), [(True, "on"), (False, "off"), ("on", "on"), ("auto", "auto")])
def test_words_of_the_configuration(value: Any, word: str, tmp_path: Path) -> None:
    config: RoleConfig = Deployment(tmp_path).config("party", "party0", preprocessing=value)
    assert config.preprocessing == word


def test_other_words_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"preprocessing: .*'auto', 'on' or 'off'.*sometimes"):
        Deployment(tmp_path).config("party", "party0", preprocessing="sometimes")
