"""What a policy has learned goes with the model: from the owner's folder to a session's answer, or a refusal before it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from models.checkpoint import load_checkpoint
from models.generation import GenerationPlan, generate_plain
from mpc.errors import ConfigurationError
from tests.models.policies.learned_weights import save_random
from tests.parties.conftest import make_checkpoint
from tests.parties.deployment import Deployment

POLICY = "batches:tokens=8|locret:budget=0.5,width=4,last=2,stabilisers=2"
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Deployment, Path]]:
    folder = make_checkpoint(tmp_path_factory.mktemp("learned"))
    save_random(folder, POLICY, scale=0.5)
    with Deployment(tmp_path_factory.mktemp("deployment"), 2) as deployment:
        deployment.share(folder)
        yield deployment, folder


def test_a_session_with_learned_weights(shared: tuple[Deployment, Path]) -> None:
    deployment, folder = shared
    client = deployment.client()
    found = client.ask(PROMPT, 4, suite="masked", policy=POLICY).tokens
    plan = GenerationPlan(len(PROMPT), 4, policy=POLICY)
    assert list(found) == generate_plain(load_checkpoint(folder), PROMPT, plan)
    assert list(client.ask(PROMPT, 2, suite="masked").tokens)  # others are served from the same weights


@pytest.mark.parametrize("policy", ["locret:budget=0.5,width=5", "locret:budget=0.5"])
def test_another_width_is_refused(policy: str, shared: tuple[Deployment, Path]) -> None:
    with pytest.raises(ConfigurationError, match=r"'retaining.first.weight' \[\d+, \d+\], the model has \[\d+, 4\]"):
        shared[0].client().ask(PROMPT, 2, suite="masked", policy=policy)
