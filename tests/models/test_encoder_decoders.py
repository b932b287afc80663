"""Encoder-decoders (T5): the plain suite's logits and tokens equal Hugging Face's, on shares too, at the estimated costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.t5.modeling_t5 import T5Attention

from models.checkpoint import Checkpoint, load_checkpoint
from models.config import Config
from models.families.registry import decoder_family
from models.generation import GenerationPlan, PlainModel, generate_plain, token_indices
from models.known_checkpoints import KNOWN
from tests.models import random_encoder_decoders as checkpoints
from tests.models.random_checkpoints import prompt

TOLERANCE = 1e-4
LENGTH = 19


def pushed(checkpoint: Checkpoint, ids: list[int], answer: list[int], batch: bool) -> Tensor:
    """Logits [1 + answer, V] in plaintext, the answer's tokens one by one or in one batch."""
    plain = PlainModel(checkpoint, checkpoint.weights["head.weight"].dtype)
    suite, decoder, size = plain.suite, plain.decoder(), plain.architecture.vocabulary
    cache = decoder.new_cache()

    def feed(tokens: list[int]) -> Any:
        return suite.indices(len(tokens), token_indices(tokens, size), size)

    found = [suite.output(suite.run(decoder.begin(feed(ids), cache))).share]
    parts = [answer] if batch else [[token] for token in answer]
    found += [suite.output(suite.run(decoder.forward(feed(part), cache))).share for part in parts]
    return torch.cat(found)


@pytest.mark.parametrize("name", sorted(checkpoints.VARIANTS))
def test_logits_and_tokens(name: str, tmp_path: Path) -> None:
    model = checkpoints.save(name, tmp_path)
    ids, answer = prompt(model, LENGTH), prompt(model, LENGTH, 2)
    wanted = checkpoints.logits(model, ids, answer)
    assert wanted.std() > 0.3  # the comparison below must be able to fail
    for batch in (False, True):
        found = pushed(load_checkpoint(tmp_path), ids, answer, batch)
        torch.testing.assert_close(found, wanted, atol=TOLERANCE, rtol=0)
    plan = GenerationPlan(LENGTH, 9)
    assert generate_plain(load_checkpoint(tmp_path), ids, plan) == checkpoints.generated(model, ids, 9)


@pytest.mark.parametrize(("buckets", "most"), [(32, 128), (11, 13), (6, 40), (4, 3), (7, 4), (40, 21), (64, 1000)])
def test_buckets_are_those_of_transformers(buckets: int, most: int) -> None:
    options = KNOWN["t5-base"] | {"relative_attention_num_buckets": buckets, "relative_attention_max_distance": most}
    encoder = decoder_family(Config(options, Path("config.json"))).architecture.encoder
    assert encoder is not None
    far = torch.arange(-2 * most, 2 * most + 1)
    both = T5Attention._relative_position_bucket(far, True, buckets, most)
    back = T5Attention._relative_position_bucket(-far.abs(), False, buckets, most)
    middle = 2 * most
    assert encoder.places_both_ways(len(far))[middle].tolist() == both.tolist()
    assert encoder.places_back(2 * most, 1, 2 * most + 1)[0].tolist() == back[: middle + 1].tolist()
