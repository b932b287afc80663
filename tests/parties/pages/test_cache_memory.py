"""Sessions whose cache lies in pages give the tokens, rounds and bytes of sessions whose cache lies in memory."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from models.checkpoint import load_checkpoint
from models.generation import GenerationPlan
from parties.pages import shelf
from protocols.registry import SuiteSpec
from tests.models import random_checkpoints
from tests.parties.pages.sessions import PROMPT, Paged

NEW = 4


@pytest.fixture(autouse=True)
def _small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelf, "PAGE_BYTES", 1 << 10)
    monkeypatch.setattr(shelf, "LEAST_ROWS", 4)


def test_sessions_side_by_side_in_too_little_memory(tmp_path: Path) -> None:
    """Each asks the others for layers; none loses a row by it."""
    random_checkpoints.save("gpt2", tmp_path / "model")
    paged = Paged(load_checkpoint(tmp_path / "model"), tmp_path / "store", SuiteSpec("masked"), most=60_000)
    plan = GenerationPlan(len(PROMPT), 3)
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(lambda _: paged.answer(plan, paged=True)[0], range(2)))
    assert found == [paged.wanted(plan)] * 2
    assert (paged.memory.used_bytes, paged.memory.paged_bytes) == (0, 0)
    paged.store.close()


@pytest.mark.parametrize(
    ("suite", "policy"),
    [
        ("masked", "full"),
        ("masked", "lag:every=2|h2o:budget=0.5"),
        ("masked", "streaming-llm:budget=0.5,sinks=2"),
        ("masked", "demote:fraction_bits=2|snapkv:budget=0.5,window=4"),
        ("crypten", "full"),
    ],
)
def test_a_session_in_pages_is_the_same_session(suite: str, policy: str, tmp_path: Path) -> None:
    random_checkpoints.save("gpt2", tmp_path / "model")
    checkpoint = load_checkpoint(tmp_path / "model")
    paged = Paged(checkpoint, tmp_path / "store", SuiteSpec(suite), most=1)
    plan = GenerationPlan(len(PROMPT), NEW, policy=policy)
    tokens, costs = paged.answer(plan, paged=True)
    assert tokens == paged.wanted(plan) or policy.startswith("demote")  # which rounds at random
    assert costs == paged.answer(plan, paged=False)[1]
    layers = checkpoint.architecture.layers
    assert paged.memory.counts.needed == (NEW - 1) * layers
    assert paged.memory.counts.read >= (NEW - 1) * layers - 1
    assert [line.last for line in paged.schedule] == [False] * (NEW - 1) * layers + [True] * layers + [False]  # it ends
    assert {"k", "v"} <= paged.shelved
    assert paged.memory.paged_bytes == 0
    assert list(paged.store.root.glob("session-*")) == []
    paged.store.close()
