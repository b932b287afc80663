"""The generation program: plans, what reaches the client, sampling without showing logits."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models.checkpoint import Checkpoint, load_checkpoint
from models.generation import GenerationPlan, PlainModel, generate, generate_plain, token_indices
from mpc.errors import ConfigurationError
from protocols.suite import OutputShare
from tests.models import random_checkpoints as checkpoints


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    directory = tmp_path_factory.mktemp("checkpoint")
    checkpoints.save("llama-grouped", directory)
    return load_checkpoint(directory)


@pytest.fixture(scope="module")
def plain(checkpoint: Checkpoint) -> PlainModel:
    return PlainModel(checkpoint)


IDS = [5, 17, 60, 3, 99]


class Client:
    """Collects what is emitted; ends after `stop` tokens; in "logits" chooses the least likely token."""

    def __init__(self, stop: int = 1000) -> None:
        self.stop = stop
        self.shares: list[OutputShare] = []
        self.stages: list[tuple[str, int, int]] = []
        self.chosen: list[int] = []

    def emit(self, step: int, share: OutputShare) -> bool:
        assert step == len(self.shares)
        self.shares.append(share)
        return len(self.shares) < self.stop

    def next_tokens(self, step: int, count: int) -> Tensor | None:
        assert count == 1
        assert step == len(self.shares) - 1
        self.chosen.append(int(self.shares[-1].share[0].argmin()))
        return token_indices(self.chosen[-1:], 101)

    def progress(self, stage: str, done: int, total: int) -> None:
        self.stages.append((stage, done, total))


def run(plain: PlainModel, plan: GenerationPlan, client: Client) -> int:
    rows = token_indices(IDS, 101)
    produced: int = plain.suite.run(generate(plain.suite, plain.decoder(), plan, rows, client))
    return produced


def test_greedy_emits_indices_and_progress(plain: PlainModel) -> None:
    client = Client()
    assert run(plain, GenerationPlan(5, 3), client) == 3
    assert [tuple(s.share.shape) for s in client.shares] == [(1,)] * 3
    assert client.stages == [("prefill", 1, 2), ("prefill", 2, 2), ("tokens", 1, 3), ("tokens", 2, 3), ("tokens", 3, 3)]
    tokens = [int(s.share) for s in client.shares]
    for n, token in enumerate(tokens):
        assert token == int(plain.logits(IDS + tokens[:n])[-1].argmax())


def test_client_can_stop(plain: PlainModel) -> None:
    client = Client(stop=2)
    assert run(plain, GenerationPlan(5, 9), client) == 2
    assert len(client.shares) == 2


def test_logits_mode_feeds_back_what_the_client_chose(plain: PlainModel) -> None:
    client = Client()
    assert run(plain, GenerationPlan(5, 3, "logits"), client) == 3
    assert len(client.chosen) == 2  # nothing is asked for after the last token
    for n in range(3):
        wanted = plain.logits(IDS + client.chosen[:n])[-1:]
        torch.testing.assert_close(client.shares[n].share, wanted, atol=1e-5, rtol=0)


def test_sample_adds_noise_times_the_temperature(checkpoint: Checkpoint) -> None:
    noise = torch.zeros(3, 1, 101)
    noise[0, 0, 42], noise[2, 0, 7] = 1e4, 1e4
    rows = iter(noise)
    plain = PlainModel(checkpoint, noise=lambda shape: next(rows))
    tokens = plain.generate(IDS, GenerationPlan(5, 3, "sample", temperature=0.01))
    assert (tokens[0], tokens[2]) == (42, 7)
    assert tokens[1] == int(plain.logits([*IDS, 42])[-1].argmax())


def test_samples_follow_the_softmax(plain: PlainModel) -> None:
    """Chi-square of 600 samples at temperature 2 against softmax(logits / 2), bins of at least 8 expected."""
    temperature, draws = 2.0, 600
    logits = plain.logits(IDS)[-1]
    probabilities = torch.softmax(logits / temperature, 0)
    rows = plain.suite.public(logits.expand(draws, -1))
    chosen = plain.suite.run(plain.suite.perturbed(rows, temperature))
    counts = torch.bincount(plain.suite.output(chosen).share.argmax(-1), minlength=101).float()
    expected = probabilities * draws
    large = expected >= 8
    found = torch.cat([counts[large], counts[~large].sum()[None]])
    wanted = torch.cat([expected[large], expected[~large].sum()[None]])
    statistic = float(((found - wanted) ** 2 / wanted).sum())
    freedom = len(wanted) - 1
    assert statistic < freedom + 4 * math.sqrt(2 * freedom)
    flat = torch.full_like(wanted, draws / len(wanted))
    assert float(((found - flat) ** 2 / flat).sum()) > freedom + 4 * math.sqrt(2 * freedom)


def test_generation_fills_every_position(tmp_path: Path) -> None:
    checkpoints.save("gpt2", tmp_path)
    checkpoint = load_checkpoint(tmp_path)
    assert len(generate_plain(checkpoint, list(range(3, 64)), GenerationPlan(61, 4))) == 4
    with pytest.raises(
        ConfigurationError,
        match=r"prompt_tokens = 61 and new_tokens = 5 need 65 positions, the model has 64; ask for at most 4",
    ):
        generate_plain(checkpoint, list(range(3, 64)), GenerationPlan(61, 5))
    with pytest.raises(ConfigurationError, match=r"the model has 64; shorten the prompt to at most 64 tokens"):
        generate_plain(checkpoint, [3] * 65, GenerationPlan(65, 1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(checkpoint: Checkpoint, dtype: torch.dtype) -> None:
    tokens = generate_plain(checkpoint, IDS, GenerationPlan(5, 3), dtype=dtype)
    assert len(tokens) == 3
    if dtype == torch.float64:
        assert tokens == generate_plain(checkpoint, IDS, GenerationPlan(5, 3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1), "prompt_tokens must be a positive integer, got 0"),
        ((1, -2), "new_tokens must be a positive integer, got -2"),
        ((1, 2.5), r"new_tokens must be a positive integer, got 2\.5"),
        ((1, True), "new_tokens must be a positive integer, got True"),
        ((1, 1, "beam"), "decoding = 'beam'; known: greedy, sample, logits"),
        ((1, 1, "sample"), "decoding 'sample' needs a temperature, above 0 and at most 100"),
        ((1, 1, "sample", "full", 0.0), "temperature must be above 0 and at most 100, got 0"),
        ((1, 1, "sample", "full", 101.0), "temperature must be above 0 and at most 100, got 101"),
        ((1, 1, "sample", "full", float("nan")), "temperature must be above 0 and at most 100, got nan"),
        ((1, 1, "greedy", "full", 0.7), "temperature = 0.7 goes with decoding 'sample', not with 'greedy'"),
        ((1, 1, "logits", "full", 0.7), "temperature = 0.7 goes with decoding 'sample', not with 'logits'"),
    ],
)
def test_bad_plans(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        GenerationPlan(*arguments)


def test_bad_inputs(plain: PlainModel) -> None:
    with pytest.raises(ConfigurationError, match="the prompt is empty"):
        token_indices([], 10)
    for bad in (10, -1):
        with pytest.raises(
            ConfigurationError, match="prompt token number 2 lies outside the model's vocabulary of 10 tokens"
        ):
            token_indices([3, bad], 10)
    with pytest.raises(ConfigurationError, match="prompt_tokens = 4, but the prompt has 5 tokens"):
        plain.generate(IDS, GenerationPlan(4, 1))


def test_token_indices() -> None:
    indices = token_indices([2, 0], 3)
    assert indices.dtype == torch.int64
    assert indices.tolist() == [2, 0]
