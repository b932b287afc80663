"""Whatever a prompt says, a system sends the same: rounds, bytes and dealt bytes of every operation, as predicted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from launch.local.in_process import InProcessSuite
from launch.local.shares import KeptShares, WeightShares, additive_shares
from models.checkpoint import Checkpoint, load_checkpoint, read_architecture
from models.costs.estimation import estimate
from models.costs.tracing import Setting
from models.decoder import Decoder
from models.generation import GenerationPlan, generate
from models.loaded import load_weights
from models.policies import parse
from protocols.registry import SuiteSpec
from protocols.suite import Suite
from tests.models import random_checkpoints as checkpoints
from tests.models.policies.learned_weights import save_random

TOKENS, NEW = 40, 3
ACROSS_LAYERS = ("layers:", "cake:", "heads=0.1 1.3")  # what names layers; of all others one layer is run
TEXTS = [
    "cake:budget=0.5,window=8",
    "compresskv:budget=0.5,window=6,heads=0.1 1.3",
    "layers:weights=3 1|cake:budget=0.5,window=8",
    "demote:fraction_bits=1|cake:budget=0.5,window=8",
    "lazyeviction:budget=0.4,every=2,observed=4",
    "batches:tokens=20,ahead=4|lazyeviction:budget=0.5,every=2,observed=3",
    "lag:every=2|layers:weights=1 2|h2o:budget=0.4",
    "elastic:budget=0.4",
    "d2o:budget=0.5,every=2,candidates=6",
    "kvmerger:budget=0.5,weights=gaussian",
    "ems:budget=0.5,window=8,every=2",
    "epicache:budget=0.5,probe_tokens=6,last=4",
    "batches:tokens=14|epicache:budget=0.5,probe_tokens=6,last=4,reduce=max",
    "mikv:budget=0.4,every=2",
    "think:keep=0.5,window=6|full",
    "merge:how=nearest|snapkv:budget=0.5,window=6",
    "lag:every=2|merge:how=similar|tova:budget=0.5",
    "attention-gate:budget=0.5,heads=1,channels=4",
    "batches:tokens=18,ahead=8|snapkv:budget=0.4,window=8",
    "chunked:tokens=18|full",
    "batches:tokens=16|locret:budget=0.4,width=8,stabilisers=6",
    "cskv:rank=0.25,window=4,turning=low|full",
    "cskv:rank=0.25,window=4,turning=whole|full",  # of learned positions
]
TEXTS.append("mpcache:static=0.8,dynamic=0.5,fine=3,sinks=2,window=4,observed=6,sharing=1,per_head=true")
SECURE = [("masked", 2), ("masked", 3), ("crypten", 2)]


def spent(checkpoint: Checkpoint, text: str, suite: str, parties: int, ids: list[int]) -> list[dict[Any, Any]]:
    """Costs of every party, by stage, operation and what else the ledger tells apart."""
    weights, prompt = WeightShares(checkpoint, parties), additive_shares(torch.tensor(ids), parties)

    def program(s: Suite, party: int | None) -> dict[Any, Any]:
        loaded = s.run(load_weights(s, checkpoint.architecture, lambda name: weights.share(s, name, party)))
        s.ledger.costs.clear()
        decoder = Decoder(s, checkpoint.architecture, loaded, parse(text))
        plan = GenerationPlan(TOKENS, NEW, policy=text)
        s.run(generate(s, decoder, plan, None if party is None else prompt[party], KeptShares()))
        return {key: (c.rounds, c.bytes_sent, c.offline_bytes) for key, c in s.ledger.costs.items()}

    return InProcessSuite(SuiteSpec(suite), parties).run(program)


@pytest.mark.covering(1)
@pytest.mark.parametrize(("suite", "parties"), SECURE)
@pytest.mark.parametrize("text", TEXTS)
def test_two_prompts_of_one_length_cost_the_same(text: str, suite: str, parties: int, tmp_path: Path) -> None:
    """One of all tokens alike, whose scores are all ties, and one by chance; grouped queries, rotary positions. With three
    parties the latter alone, against what is predicted."""
    family = "gpt2" if "turning=whole" in text else "llama-grouped"
    checkpoints.save(family, tmp_path, layers=2 if any(part in text for part in ACROSS_LAYERS) else 1)
    if parse(text).weight_shapes(read_architecture(tmp_path)):
        save_random(tmp_path, text)
    checkpoint = load_checkpoint(tmp_path)
    chance = torch.randint(0, 97, (TOKENS,), generator=torch.Generator().manual_seed(1)).tolist()
    one = spent(checkpoint, text, suite, parties, chance)
    assert parties == 3 or one == spent(checkpoint, text, suite, parties, [5] * TOKENS)
    predicted = estimate(checkpoint.architecture, Setting(suite, parties, text), TOKENS, NEW).total
    for n, name in enumerate(("rounds", "bytes_sent", "offline_bytes")):
        assert sum(cost[n] for cost in one[-1].values()) == predicted.total(name)
