"""Sessions of a real deployment whose caches lie in pages: the tokens of plaintext, and nothing left behind."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from models.checkpoint import load_checkpoint
from models.costs.cached import cache_bytes
from models.generation import GenerationPlan, PlainModel
from mpc.errors import ConfigurationError
from parties.party.compute_party import ComputePartyServer
from tests.models import random_checkpoints
from tests.parties.deployment import Deployment

PROMPT = [(7 * n * n + 3 * n) % 90 + 3 for n in range(24)]
NEW = 3


def test_sessions_in_step_share_less_memory_than_they_need(tmp_path: Path) -> None:
    random_checkpoints.save("gpt2", tmp_path / "checkpoint")
    checkpoint = load_checkpoint(tmp_path / "checkpoint")
    plain = PlainModel(checkpoint)
    whole = cache_bytes(checkpoint.architecture, len(PROMPT), NEW)
    limits = {"max_in_step": 2, "max_cache_bytes": whole // 2, "max_paged_bytes": 2 * whole - whole // 2}
    key = tmp_path / "key"
    key.write_text("7" * 64)
    key.chmod(0o600)
    with Deployment(tmp_path, 2, deadline_seconds=60, limits=limits, store_key=key) as deployment:
        deployment.share(tmp_path / "checkpoint", "tiny")
        prompts, found = [PROMPT, PROMPT[::-1]], dict[int, list[int]]()

        def ask(number: int) -> None:
            client = deployment.client()
            found[number] = client.ask(prompts[number], NEW, suite="masked", stop_ids=()).tokens

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(300)
        assert found == {n: plain.generate(ids, GenerationPlan(len(ids), NEW)) for n, ids in enumerate(prompts)}
        for name in ("party0", "party1"):
            party = deployment.servers[name]
            assert isinstance(party, ComputePartyServer)
            assert party.memory.counts.read > 0
            assert (party.memory.paged_bytes, party.pages.owners("session")) == (0, [])
        with pytest.raises(
            ConfigurationError, match=r"allows [\d,]+: shorten it, choose a policy that keeps less, or raise"
        ):
            deployment.client().ask(PROMPT + PROMPT, 12, suite="masked")
