"""Fixtures of the parties' tests: a tiny random checkpoint and running deployments with the toy program."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from parties.client.model_reference import ModelReference
from tests.parties.deployment import Deployment
from tests.parties.toy import Toy

VOCABULARY = 40


def make_checkpoint(folder: Path) -> Path:
    """A random GPT-2 of one layer, 40 tokens and 32 positions."""
    torch.manual_seed(1)
    sizes = {"vocab_size": VOCABULARY, "n_positions": 32, "n_embd": 12, "n_layer": 1, "n_head": 3}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=39, initializer_range=0.4))
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """See `make_checkpoint`."""
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"))


class Running:
    """A running deployment, its toy program and its shared model."""

    def __init__(self, deployment: Deployment, toy: Toy, model: ModelReference) -> None:
        self.deployment = deployment
        self.toy = toy
        self.model = model


def run(folder: Path, checkpoint: Path, parties: int, **settings: float) -> Iterator[Running]:
    """Start, share, yield, stop."""
    toy = Toy()
    with Deployment(folder, parties, toy.program, **settings) as deployment:
        yield Running(deployment, toy, deployment.share(checkpoint))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Iterator[Running]:
    """Two parties and a dealer, for one test module."""
    yield from run(tmp_path_factory.mktemp("two"), checkpoint, 2)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Iterator[Running]:
    """Three parties and a dealer, for one test module."""
    yield from run(tmp_path_factory.mktemp("three"), checkpoint, 3)


@pytest.fixture(autouse=True)
def _plain_toy(request: pytest.FixtureRequest) -> Iterator[None]:
    """Undo what a test did to the toy."""
    yield
    for name in ("two", "three"):
        if name in request.fixturenames:
            toy = request.getfixturevalue(name).toy
            fresh = Toy()
            toy.before_round, toy.after_share, toy.rounds = fresh.before_round, fresh.after_share, fresh.rounds
            toy.flags = fresh.flags
