"""A padded prompt is answered as the prompt alone, and its length is in nothing that anybody but the client sees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from launch.local.in_process import InProcessSuite
from launch.measure.generation import generate_on_shares
from models.checkpoint import Checkpoint, load_checkpoint
from models.chunks import ChunkPlan
from models.drafting import DraftPlan
from models.generation import GenerationPlan, PlainModel
from models.padding import padded
from models.shapes import find_description
from mpc.errors import ConfigurationError
from parties.client.request import GenerationRequest
from parties.client.sampling_params import SamplingParams
from protocols.expert_ways import ExpertsWay
from protocols.registry import SuiteSpec
from tests.models import random_checkpoints as checkpoints

BUCKET, NEW = 12, 5
PROMPT = [(7 * n * n + 3 * n) % 90 + 3 for n in range(BUCKET)]
PLAN = GenerationPlan(BUCKET, NEW, padded=True)


def saved(name: str, folder: Path) -> Checkpoint:
    checkpoints.save(name, folder)
    return load_checkpoint(folder)


@pytest.mark.parametrize(
    "name", ["gpt2", "llama-grouped", "mistral-window", "llama-rope-llama3", "gemma2", "falcon-40b", "opt", "mixtral"]
)
def test_families(name: str, tmp_path: Path) -> None:
    """Learned and rotary positions, windows, soft caps, parts beside each other, experts: for every length of a bucket."""
    model = PlainModel(saved(name, tmp_path), torch.float64)
    for count in (1, 2, 7, BUCKET - 1, BUCKET):
        ids = PROMPT[:count]
        assert model.generate(ids, PLAN) == model.generate(ids, GenerationPlan(count, NEW)), count


@pytest.mark.parametrize(
    ("name", "suite", "parties", "tokens"),
    [
        ("gpt2", "masked", 2, 1),
        ("mistral-window", "masked", 3, 7),
        ("gpt2", "masked", 3, BUCKET),
        ("mistral-window", "crypten", 2, 5),
        ("gpt2", "crypten", 3, 9),
    ],
)
def test_on_shares(name: str, suite: str, parties: int, tokens: int, tmp_path: Path) -> None:
    """The answer of the prompt in plaintext, without padding, and no value out of its range."""
    checkpoint, ids = saved(name, tmp_path), PROMPT[:tokens]
    plan = GenerationPlan(BUCKET, 3, padded=True)
    found = generate_on_shares(checkpoint, ids, plan, InProcessSuite(SuiteSpec(suite), parties))
    wanted = PlainModel(checkpoint).generate(ids, GenerationPlan(tokens, 3))
    assert found.checked()[: len(wanted)] == wanted


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": "h2o:budget=0.5"}, "policy 'h2o:budget=0.5' cannot go with a padded prompt: .* use policy full"),
        ({"policy": "mpcache"}, "policy 'mpcache.*' cannot go with a padded prompt"),
        ({"draft": DraftPlan(2)}, "draft cannot go with a padded prompt"),
        ({"behind": 4}, "prefix cannot go with a padded prompt"),
        ({"chunks": ChunkPlan((4,), 1)}, "chunks cannot go with a padded prompt"),
    ],
)
def test_what_it_does_not_go_with(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        GenerationPlan(BUCKET, NEW, padded=True, **options)


def test_models_that_would_answer_otherwise(tmp_path: Path) -> None:
    llama = saved("llama-grouped", tmp_path).architecture
    assert llama.rotary is not None
    changed = {"scaling": "dynamic", "factor": 2.0, "original_positions": 16}
    llama = llama.model_copy(update={"rotary": llama.rotary.model_copy(update=changed)})
    with pytest.raises(ConfigurationError, match="turns its keys by the padded length from 16 tokens on"):
        PLAN.check(llama)
    GenerationPlan(BUCKET, 4, padded=True).check(llama)
    with pytest.raises(ConfigurationError, match="a padded prompt: 't5' reads its prompt with an encoder"):
        PLAN.check(find_description("t5-small"))
    mixture = PlainModel(saved("mixtral", tmp_path / "mixture"))
    mixture.suite.experts = ExpertsWay(1.25)
    with pytest.raises(ConfigurationError, match=r"experts = capacity:1\.25: padding of a prompt would take places"):
        mixture.generate(PROMPT[:3], PLAN)


@pytest.mark.parametrize(
    ("buckets", "tokens", "found"),
    [((64, 128), 1, 64), ((64, 128), 64, 64), ((128, 64), 65, 128), ((7,), 7, 7), ((7,), 8, "longer than the largest")],
)
def test_buckets(buckets: tuple[int, ...], tokens: int, found: int | str) -> None:
    request = GenerationRequest(list(range(tokens)), SamplingParams(NEW), prompt_buckets=buckets)
    if isinstance(found, str):
        with pytest.raises(ConfigurationError, match=found):
            request.plan()
        return
    plan = request.plan()
    assert (plan.prompt_tokens, plan.padded, plan.prompt_shape) == (found, True, (found + 1,))
    assert padded(request.prompt_ids, found)[0] == found - tokens
    assert padded(request.prompt_ids, found)[-tokens:].tolist() == request.prompt_ids


@pytest.mark.parametrize("buckets", [(0,), (-3, 4), (True,), (2.5,)])
def test_lengths_that_are_none(buckets: tuple[Any, ...]) -> None:
    with pytest.raises(ConfigurationError, match="prompt_buckets: lengths must be positive integers"):
        GenerationRequest([1], SamplingParams(NEW), prompt_buckets=buckets).plan()
