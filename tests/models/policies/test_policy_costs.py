"""What parties count of a session with a policy is what is predicted, and the same for every prompt of one length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import models.recall
from launch.local.in_process import InProcessSuite
from launch.local.shares import KeptShares, WeightShares, additive_shares
from models.checkpoint import load_checkpoint
from models.costs.estimation import estimate
from models.costs.tracing import Setting
from models.decoder import Decoder
from models.generation import GenerationPlan, generate
from models.loaded import load_weights
from models.policies import parse
from models.recall.documents import evaluation_cases
from protocols.registry import SuiteSpec
from protocols.suite import Suite

MODEL = Path(models.recall.__file__).parent / "gpt2"
PROMPT, NEW = 64, 3
TEXTS = [
    "cake:budget=0.4,window=8",
    "layers:weights=3 1|cake:budget=0.4,window=8",
    "compresskv:budget=0.4,heads=0.1 1.0 1.3",
    "lazyeviction:budget=0.5,every=2,observed=3",
    "batches:tokens=32,ahead=4|lazyeviction:budget=0.5,every=2,observed=3",
    "mikv:budget=0.4,every=2",
    "demote:fraction_bits=1|cake:budget=0.4,window=8",
    "lag:every=2|layers:weights=1 2|h2o:budget=0.4",
]


def counted(text: str, suite: str, parties: int, document: int) -> list[tuple[Any, ...]]:
    """Every operation with its rounds and bytes, as the last party counts them."""
    checkpoint = load_checkpoint(MODEL)
    ids = checkpoint.tokenizer.encode(evaluation_cases(160, 2, 5)[document].prompt)[-PROMPT:]
    plan = GenerationPlan(PROMPT, NEW, policy=text)
    weights = WeightShares(checkpoint, parties)
    prompt = additive_shares(torch.tensor(ids), parties)

    def program(s: Suite, party: int | None) -> list[tuple[Any, ...]]:
        loaded = s.run(load_weights(s, checkpoint.architecture, lambda name: weights.share(s, name, party)))
        s.ledger.costs.clear()
        decoder = Decoder(s, checkpoint.architecture, loaded, parse(text))
        s.run(generate(s, decoder, plan, None if party is None else prompt[party], KeptShares()))
        costs = s.ledger.costs.items()
        return [(*key, cost.rounds, cost.bytes_sent, cost.offline_bytes) for key, cost in costs]

    return InProcessSuite(SuiteSpec(suite), parties).run(program)[-1]


@pytest.mark.parametrize(("suite", "parties"), [("masked", 2), ("masked", 3), ("crypten", 2)])
@pytest.mark.parametrize("text", TEXTS)
def test_every_prompt_costs_what_is_predicted(text: str, suite: str, parties: int) -> None:
    architecture = load_checkpoint(MODEL).architecture
    first, second = (counted(text, suite, parties, document) for document in range(2))
    assert first == second
    found = estimate(architecture, Setting(suite, parties, text), PROMPT, NEW).total
    names = ("rounds", "bytes_sent", "offline_bytes")
    assert [sum(row[2 + n] for row in first) for n in range(3)] == [found.total(name) for name in names]
