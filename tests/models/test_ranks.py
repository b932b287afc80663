"""Parties whose weights lie at several ranks: the same answers, rounds and bytes, with a part of the weights in each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from launch.local.in_process import InProcessSuite
from launch.local.shares import WeightShares
from launch.measure.generation import generate_on_shares
from models.checkpoint import load_checkpoint
from models.generation import GenerationPlan, PlainModel, generate_plain
from models.loaded import load_weights
from mpc.channel import Channel
from mpc.errors import ConfigurationError
from mpc.ranks import Ranks
from mpc.tape import Tape
from protocols.masked import weights as masked_weights
from protocols.masked.split_weight import SplitWeight
from protocols.masked.values import MaskedWeight
from protocols.registry import SuiteSpec
from protocols.suite import Suite
from tests.models import random_checkpoints as checkpoints
from tests.mpc.rank_processes import running

IDS = [5, 17, 60, 3, 42]


@dataclass(frozen=True)
class SplitSuite(InProcessSuite):
    """All parties in this process, each with the same ranks: they hold blocks of all of them."""

    ranks: Ranks | None = None

    def make(self, tape: Tape, channel: Channel | None) -> Suite:
        suite = super().make(tape, channel)
        if channel is not None and self.ranks is not None:
            suite.split_weights(self.ranks)
        return suite


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    with running(tmp_path_factory.mktemp("ranks"), 2) as group:
        yield group.ranks


@pytest.mark.parametrize(("name", "parties"), [("gpt2", 2), ("llama-grouped", 3), ("mixtral", 2)])
def test_that_answers_are_those_of_whole_weights(
    name: str, parties: int, ranks: Ranks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a table that is head as well, one that is not, and weights of experts, which stay whole."""
    monkeypatch.setattr(masked_weights, "SMALL", 1)
    checkpoints.save(name, tmp_path)
    checkpoint, plan = load_checkpoint(tmp_path), GenerationPlan(len(IDS), 3)
    found = generate_on_shares(checkpoint, IDS, plan, SplitSuite(SuiteSpec("masked"), parties, ranks=ranks), ["logits"])
    assert found.checked() == generate_plain(checkpoint, IDS, plan)
    assert found.logits is not None
    exact = PlainModel(checkpoint).logits([*IDS, *found.tokens[:-1]])[-3:]
    whole = generate_on_shares(checkpoint, IDS, plan, InProcessSuite(SuiteSpec("masked"), parties), ["logits"])
    assert whole.logits is not None
    worst = (whole.logits - exact).abs().max()
    assert (found.logits - exact).abs().max() <= 2 * worst


def test_that_a_rank_holds_half_of_the_weights(ranks: Ranks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but vectors and tables whose rows are added; parties send the same, rounds and bytes."""
    monkeypatch.setattr(masked_weights, "SMALL", 1)
    checkpoints.save("gpt2", tmp_path)
    checkpoint = load_checkpoint(tmp_path)
    shares = WeightShares(checkpoint, 2)

    def program(suite: Suite, party: int | None) -> tuple[int, int, int, int]:
        loaded = suite.run(load_weights(suite, checkpoint.architecture, lambda name: shares.share(suite, name, party)))
        fixed = {name: value.weight for name, value in loaded.items() if isinstance(value, MaskedWeight)}
        matrices = {name: w for name, w in fixed.items() if len(w.shape) == 2 and name != "embedding.positions"}
        here = 0 if party is None else sum(w.bytes_here for w in matrices.values())
        split = sum(isinstance(w, SplitWeight) for w in matrices.values())
        total = suite.ledger.total()
        return here, split - len(matrices), total.rounds, total.bytes_sent

    half, whole = (SplitSuite(SuiteSpec("masked"), 2, ranks=found).run(program) for found in (ranks, None))
    for (ours, kept, *costs), (all_of_it, _, *usual) in zip(half, whole, strict=True):
        assert kept == 0
        assert ours <= 0.51 * all_of_it
        assert costs == usual


def test_that_other_suites_refuse(ranks: Ranks) -> None:
    def program(suite: Suite, party: int | None) -> None:
        suite.split_weights(ranks)

    with pytest.raises(ConfigurationError, match="suite 'crypten' keeps weights in one process: use suite masked, or"):
        InProcessSuite(SuiteSpec("crypten")).run(program)


def test_that_a_weight_can_be_gathered(ranks: Ranks) -> None:
    """What is no product with rows works, too; either way round."""
    values = torch.arange(12).reshape(3, 4)
    weight = SplitWeight.empty(ranks, (3, 4), torch.int64, (16, 64))
    weight.put(slice(0, 3), values, values + 1)
    assert torch.equal(weight.whole().m, values)
    turned = weight.move(lambda t: t.permute(1, 0))
    assert isinstance(turned, SplitWeight)
    assert torch.equal(turned.whole().own, values.t() + 1)
    assert weight.move(lambda t: t.permute(0, 1)) is weight
    assert torch.equal(weight.move(lambda t: t.reshape(12)).m, values.reshape(12))
