"""The plain suite's logits and tokens equal Hugging Face's for random models of odd shapes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from models.checkpoint import Checkpoint, load_checkpoint
from models.generation import GenerationPlan, PlainModel, capped, generate_plain, plain_logits, token_indices
from tests.models import random_checkpoints as checkpoints

TOLERANCE = 1e-4
LENGTH = 13


@pytest.fixture(scope="module", params=sorted(checkpoints.VARIANTS))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Checkpoint]:
    """A Hugging Face model and its checkpoint, loaded by this project."""
    directory = tmp_path_factory.mktemp("checkpoint")
    model = checkpoints.save(request.param, directory)
    return model, load_checkpoint(directory)


def test_logits(pair: tuple[Any, Checkpoint]) -> None:
    model, checkpoint = pair
    ids = checkpoints.prompt(model, LENGTH)
    wanted = checkpoints.logits(model, ids)
    assert wanted.std() > 0.3  # the comparison below must be able to fail
    torch.testing.assert_close(plain_logits(checkpoint, ids), wanted, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", sorted(checkpoints.VARIANTS))
def test_logits_in_float64(name: str, tmp_path: Path) -> None:
    """Folding itself loses nothing; rotary models keep Hugging Face's float32 angles, hence their wider tolerance."""
    model = checkpoints.save(name, tmp_path).double()
    ids = checkpoints.prompt(model, LENGTH)
    found = plain_logits(load_checkpoint(tmp_path, torch.float64), ids, torch.float64)
    tolerance = 1e-10 if name.startswith("gpt2") else 1e-5
    torch.testing.assert_close(found, checkpoints.logits(model, ids), atol=tolerance, rtol=0)


def test_prefill_then_decode_equals_one_forward(pair: tuple[Any, Checkpoint]) -> None:
    model, checkpoint = pair
    ids = checkpoints.prompt(model, LENGTH)
    wanted = checkpoints.logits(model, ids)
    plain = PlainModel(checkpoint)
    suite, decoder = plain.suite, plain.decoder()
    vocabulary = plain.architecture.vocabulary
    rows = token_indices(ids, vocabulary)
    for first in (1, 6, 7):  # prompt lengths around the sliding windows
        cache = decoder.new_cache()
        value = suite.indices(first, rows[:first], vocabulary)
        found = [suite.output(suite.run(decoder.forward(value, cache, True))).share]
        for t in range(first, LENGTH):
            value = suite.indices(1, rows[t : t + 1], vocabulary)
            found.append(suite.output(suite.run(decoder.forward(value, cache))).share)
        shown = capped(plain.architecture, torch.cat(found))
        torch.testing.assert_close(shown, wanted[first - 1 :], atol=TOLERANCE, rtol=0)


def test_prompt_in_two_batches_equals_one(pair: tuple[Any, Checkpoint]) -> None:
    model, checkpoint = pair
    ids = checkpoints.prompt(model, LENGTH)
    plain = PlainModel(checkpoint)
    suite, decoder = plain.suite, plain.decoder()
    vocabulary = plain.architecture.vocabulary
    rows = token_indices(ids, vocabulary)
    cache = decoder.new_cache()
    found = []
    for first, last in ((0, 6), (6, LENGTH)):
        value = suite.indices(last - first, rows[first:last], vocabulary)
        found.append(suite.output(suite.run(decoder.forward(value, cache))).share)
    shown = capped(plain.architecture, torch.cat(found))
    torch.testing.assert_close(shown, checkpoints.logits(model, ids), atol=TOLERANCE, rtol=0)


def test_greedy_tokens(pair: tuple[Any, Checkpoint]) -> None:
    model, checkpoint = pair
    ids = checkpoints.prompt(model, 7)
    with torch.inference_mode():
        whole = model.generate(
            torch.tensor([ids]), attention_mask=torch.ones(1, 7), max_new_tokens=8, do_sample=False, pad_token_id=0
        )
    wanted = whole[0, 7:].tolist()
    assert generate_plain(checkpoint, ids, GenerationPlan(7, 8)) == wanted
    assert generate_plain(checkpoint, ids, GenerationPlan(7, 8, "logits")) == wanted


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_checkpoints(dtype: torch.dtype, tmp_path: Path) -> None:
    checkpoints.build("llama-grouped").to(dtype).save_pretrained(tmp_path)
    model = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = checkpoints.prompt(model, LENGTH)
    wanted = checkpoints.logits(model, ids)
    torch.testing.assert_close(plain_logits(load_checkpoint(tmp_path), ids), wanted, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", ["gpt2", "llama-grouped"])
def test_shards(name: str, tmp_path: Path) -> None:
    model = checkpoints.save(name, tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    ids = checkpoints.prompt(model, LENGTH)
    torch.testing.assert_close(
        plain_logits(load_checkpoint(tmp_path), ids), checkpoints.logits(model, ids), atol=TOLERANCE, rtol=0
    )


@pytest.mark.parametrize("name", ["gpt2", "llama-grouped"])
def test_base_model_names_without_prefix(name: str, tmp_path: Path) -> None:
    model = checkpoints.save(name, tmp_path)
    file = tmp_path / "model.safetensors"
    stripped = {k.removeprefix("transformer.").removeprefix("model."): v for k, v in load_file(file).items()}
    if name == "gpt2":
        stripped["h.0.attn.bias"] = torch.ones(1, 1, 64, 64)  # a buffer of published GPT-2 files
    save_file(stripped, file)
    ids = checkpoints.prompt(model, LENGTH)
    torch.testing.assert_close(
        plain_logits(load_checkpoint(tmp_path), ids), checkpoints.logits(model, ids), atol=TOLERANCE, rtol=0
    )


def test_rope_in_the_older_notation(tmp_path: Path) -> None:
    model = checkpoints.save("llama-rope-llama3", tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    scaling = config.pop("rope_parameters")
    config["rope_theta"] = scaling.pop("rope_theta")
    config["rope_scaling"] = scaling
    file.write_text(json.dumps(config))
    ids = checkpoints.prompt(model, LENGTH)
    torch.testing.assert_close(
        plain_logits(load_checkpoint(tmp_path), ids), checkpoints.logits(model, ids), atol=TOLERANCE, rtol=0
    )


def test_end_of_text_ids_of_the_generation_config(tmp_path: Path) -> None:
    model = checkpoints.build("llama-grouped")
    ids = checkpoints.prompt(model, 7)
    with torch.inference_mode():
        free = model.generate(torch.tensor([ids]), attention_mask=torch.ones(1, 7), max_new_tokens=12, pad_token_id=0)
    stop = free[0, 7 + 4].item()
    model.generation_config.eos_token_id = [100, stop]
    model.save_pretrained(tmp_path)
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint.architecture.eos == (100, stop)
    expected = free[0, 7 : 7 + 12].tolist()
    assert generate_plain(checkpoint, ids, GenerationPlan(7, 12)) == expected[: expected.index(stop) + 1]
