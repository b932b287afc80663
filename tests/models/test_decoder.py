"""The decoder's own promises: stages, probes, cache, policy hooks, what it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models.cache import CachePolicy, KVCache, Stage
from models.checkpoint import Checkpoint, load_checkpoint
from models.decoder import Decoder
from models.generation import GenerationPlan, PlainModel, token_indices
from models.loaded import load_weights
from models.observation import Observation, Seen
from models.policies.full import FullCache
from mpc.errors import ConfigurationError
from protocols.plain.suite import PlainSuite, tensor_of
from protocols.suite import Suite, Value
from tests.models import random_checkpoints as checkpoints
from tests.tools.recorder import Recorder


def saved(name: str, directory: Path) -> tuple[Any, Checkpoint, list[int]]:
    model = checkpoints.save(name, directory)
    return model, load_checkpoint(directory), checkpoints.prompt(model, 9)


def feed(plain: PlainModel, ids: list[int]) -> Value:
    vocabulary = plain.architecture.vocabulary
    return plain.suite.indices(len(ids), token_indices(ids, vocabulary), vocabulary)


def centred(name: str, states: torch.Tensor) -> torch.Tensor:
    """GPT-2's residual stream is kept without its mean (models.families.folding); the others' as it is."""
    return states - states.mean(-1, keepdim=True) if name.startswith("gpt2") else states


@pytest.mark.parametrize("name", ["gpt2", "qwen2-window-from-layer-1"])
def test_probe_sees_hugging_faces_hidden_states(tmp_path: Path, name: str) -> None:
    model, checkpoint, ids = saved(name, tmp_path)
    recorder = Recorder()
    logits = PlainModel(checkpoint).logits(ids, recorder)
    with torch.inference_mode():
        states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    names = ["embedding", *(f"layer {n}/{part}" for n in range(2) for part in ("attention", "mlp")), "logits"]
    assert list(recorder.values) == names
    torch.testing.assert_close(recorder.values["embedding"][0], centred(name, states[0][0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(recorder.values["layer 0/mlp"][0], centred(name, states[1][0]), atol=1e-4, rtol=0)
    assert torch.equal(recorder.values["logits"][0], logits)


def test_last_only_equals_the_last_row(tmp_path: Path) -> None:
    _, checkpoint, ids = saved("mistral-window", tmp_path)
    plain, recorder = PlainModel(checkpoint), Recorder()
    decoder = plain.decoder(recorder)
    last = plain.suite.run(decoder.forward(feed(plain, ids), decoder.new_cache(), True))
    assert tuple(last.shape) == (1, 101)
    assert recorder.values["layer 1/mlp"][0].shape == (1, 60)  # the last layer computes the last token only
    torch.testing.assert_close(tensor_of(last), plain.logits(ids)[-1:], atol=1e-5, rtol=0)


def test_stages_of_the_ledger(tmp_path: Path) -> None:
    _, checkpoint, ids = saved("gpt2", tmp_path)
    plain = PlainModel(checkpoint)
    plain.generate(ids, GenerationPlan(9, 2))
    inner = ["embedding", "layer 0/attention", "layer 0/mlp", "layer 1/attention", "layer 1/mlp", "head"]
    wanted = {"model load", "prefill", "token 0", "token 1"} | {f"{o}/{i}" for o in ("prefill", "token 1") for i in inner}
    assert set(plain.suite.ledger.seconds) == wanted


def test_weights_serve_a_later_suite(tmp_path: Path) -> None:
    _, checkpoint, ids = saved("gpt2", tmp_path)
    plain = PlainModel(checkpoint)
    later = PlainSuite()
    decoder = Decoder(later, plain.architecture, plain.weights)
    indices = later.indices(9, token_indices(ids, 97), 97)
    found = later.run(decoder.forward(indices, decoder.new_cache()))
    torch.testing.assert_close(tensor_of(found), plain.logits(ids))
    assert later.ledger.seconds
    assert all(not stage.startswith("model load") for stage in later.ledger.seconds)


def test_windows_bound_the_cache(tmp_path: Path) -> None:
    _, checkpoint, ids = saved("qwen2-window-from-layer-1", tmp_path)
    plain = PlainModel(checkpoint)
    decoder, cache = plain.decoder(), plain.decoder().new_cache()
    plain.suite.run(decoder.forward(feed(plain, ids), cache))
    assert [entry.length for entry in cache.layers] == [9, 4]
    plain.suite.run(decoder.forward(feed(plain, ids[:1]), cache))
    assert [entry.length for entry in cache.layers] == [10, 4]
    assert cache.seen == 10


class LastTokens(CachePolicy):
    """Attends to the last `keep` tokens and notes what it is called with."""

    name = "last"

    def __init__(self, keep: int, queries: int, **asked: Any) -> None:
        self.keep, self.asked = keep, Observation(queries, **asked)
        self.calls: list[tuple[Any, ...]] = []

    def observation(self, tokens: int, layer: int) -> Observation:
        return self.asked

    def prompt_stages(self, suite: Suite, cache: KVCache, layer: int, seen: Seen) -> list[Stage]:
        shape = None if seen.mass is None else tuple(seen.mass.shape)
        self.calls.append(("prompt_stages", layer, shape, cache.layers[layer].length))
        return []

    async def after_append(self, suite: Suite, cache: KVCache, layer: int) -> None:
        self.calls.append(("after_append", layer, cache.layers[layer].length))

    async def attend(self, suite: Suite, cache: KVCache, layer: int, q: Value) -> Value:
        k, v = cache.layers[layer].keys_and_values()
        self.calls.append(("attend", layer, tuple(q.shape)))
        mask = torch.arange(k.shape[1]) >= k.shape[1] - self.keep
        return await suite.attention(q, k, v, mask[None, None])


def test_policy_hooks(tmp_path: Path) -> None:
    _, checkpoint, ids = saved("llama-grouped", tmp_path)  # 5 key/value heads, 2 query heads each, 20 channels
    policy = LastTokens(3, 2)
    plain = PlainModel(checkpoint, policy=policy)
    plain.generate(ids, GenerationPlan(9, 2))
    assert policy.calls == [
        ("prompt_stages", 0, (5, 9), 9),
        ("prompt_stages", 1, (5, 9), 9),
        ("after_append", 0, 10),
        ("attend", 0, (5, 2, 20)),
        ("after_append", 1, 10),
        ("attend", 1, (5, 2, 20)),
    ]


def test_attention_shown_to_a_policy_is_that_of_the_prompts_last_queries(tmp_path: Path) -> None:
    """In the last layer, too, where only the last token's attention is computed; and for a prompt in batches."""
    _, checkpoint, ids = saved("llama-grouped", tmp_path)
    shown: dict[int, Tensor] = {}

    class Keep(LastTokens):
        def prompt_stages(self, suite: Suite, cache: KVCache, layer: int, seen: Seen) -> list[Stage]:
            assert seen.mass is not None
            shown[layer] = tensor_of(seen.mass)
            return []

    for queries in (2, 4, 9, 20):
        seen = []
        for last_only, batches in ((False, (9,)), (True, (9,)), (True, (5, 4)), (True, (2, 1, 6))):
            plain = PlainModel(checkpoint, policy=Keep(3, queries))
            decoder = plain.decoder()
            cache = decoder.new_cache()
            cache.prompt_tokens = 9
            at = 0
            for tokens in batches:
                plain.suite.run(decoder.forward(feed(plain, ids[at : at + tokens]), cache, last_only))
                at += tokens
            seen.append(dict(shown))
            shown.clear()
        for layer in range(2):
            assert seen[0][layer].sum(-1) == pytest.approx(2.0 * min(queries, 9))  # R = 2 heads, each sums to 1
            for other in seen[1:]:
                torch.testing.assert_close(seen[0][layer], other[layer])


class Told(LastTokens):
    """Notes what it is told of every layer."""

    def __init__(self, queries: int, **asked: Any) -> None:
        super().__init__(3, queries, **asked)
        self.told: dict[int, Seen] = {}

    def prompt_stages(self, suite: Suite, cache: KVCache, layer: int, seen: Seen) -> list[Stage]:
        self.told[layer] = seen
        return []


def told_and_true(folder: Path, queries: int, **asked: Any) -> Iterator[tuple[Seen, Tensor]]:
    """Yield what a policy is told of each layer of a prompt of 9 tokens, whole and in batches, with the probabilities of the
    package transformers: [heads, queries, tokens]."""
    model, checkpoint, ids = saved("llama-grouped", folder)  # 5 key/value heads, 2 query heads each
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        attentions = model.double()(torch.tensor([ids[:9]]), output_attentions=True).attentions
    for last_only, batches in ((False, (9,)), (True, (9,)), (True, (2, 1, 6)), (True, (2, 6, 1))):
        policy = Told(queries, **asked)
        plain = PlainModel(checkpoint, torch.float64, policy=policy)
        decoder, at = plain.decoder(), 0
        cache = decoder.new_cache()
        cache.prompt_tokens = 9
        for tokens in batches:
            plain.suite.run(decoder.forward(feed(plain, ids[at : at + tokens]), cache, last_only))
            at += tokens
        assert set(policy.told) == {0, 1}
        for layer, seen in policy.told.items():
            yield seen, attentions[layer][0][:, 9 - queries :]


@pytest.mark.parametrize("heads", [None, (3, 0, 9)])
@pytest.mark.parametrize("squares", [False, True])
@pytest.mark.parametrize("queries", [2, 9])
def test_attention_of_single_heads(heads: tuple[int, ...] | None, squares: bool, queries: int, tmp_path: Path) -> None:
    for seen, p in told_and_true(tmp_path, queries, heads=heads, squares=squares):
        asked = heads if heads is not None else tuple(range(10)) if squares else None
        rows = p.reshape(5, 2 * queries, 9) if asked is None else p[list(asked)]
        assert (seen.queries, seen.heads) == (queries, 2 if asked is None else 1)
        assert seen.mass is not None
        torch.testing.assert_close(tensor_of(seen.mass), rows.sum(1), atol=1e-6, rtol=0)
        assert (seen.squares is not None) == squares
        if seen.squares is not None:
            torch.testing.assert_close(tensor_of(seen.squares), rows.square().sum(1), atol=1e-6, rtol=0)


def test_attention_of_single_queries(tmp_path: Path) -> None:
    """All heads added up."""
    for seen, p in told_and_true(tmp_path, 4, each=True):
        assert (seen.most, seen.each) == (10, True)
        assert seen.mass is not None
        torch.testing.assert_close(tensor_of(seen.mass), p.sum(0), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("queries", "late"), [(9, 3), (4, 4), (9, 1)])
def test_attention_of_late_queries_apart(queries: int, late: int, tmp_path: Path) -> None:
    """A part of the sums over all queries, of whole prompts and of those in batches."""
    for seen, p in told_and_true(tmp_path, queries, late=late):
        rows = p.reshape(5, 2, queries, 9)
        assert (seen.queries, seen.late_queries, seen.most_late) == (queries, late, 2 * late)
        assert seen.mass is not None
        assert seen.late is not None
        torch.testing.assert_close(tensor_of(seen.mass), rows.sum((1, 2)), atol=1e-6, rtol=0)
        torch.testing.assert_close(tensor_of(seen.late), rows[:, :, queries - late :].sum((1, 2)), atol=1e-6, rtol=0)


def test_policy_decides_what_a_token_attends_to(tmp_path: Path) -> None:
    """A mask over the last 5 tokens equals Mistral's window of 5, whose cache is cut instead."""
    _, checkpoint, ids = saved("mistral-window", tmp_path)
    whole = load_checkpoint(tmp_path)
    object.__setattr__(whole, "description", whole.architecture.model_copy(update={"windows": None}))
    results = []
    for one, policy in ((checkpoint, FullCache()), (whole, LastTokens(5, 0))):
        plain = PlainModel(one, policy=policy)
        decoder = plain.decoder()
        cache = decoder.new_cache()
        for token in ids:
            value = plain.suite.run(decoder.forward(feed(plain, [token]), cache))
        results.append(tensor_of(value))
    torch.testing.assert_close(results[0], results[1], atol=1e-5, rtol=0)


def test_shapes_and_positions_are_checked(tmp_path: Path) -> None:
    _, checkpoint, ids = saved("gpt2", tmp_path)
    plain = PlainModel(checkpoint)
    decoder, suite = plain.decoder(), plain.suite
    with pytest.raises(ConfigurationError, match=r"inputs must be \[tokens\] or \[tokens, 97\], got \[2, 96\]"):
        suite.run(decoder.forward(suite.input((2, 96), torch.zeros(2, 96), 0), decoder.new_cache()))
    with pytest.raises(ConfigurationError, match=r"token 65 does not fit the model's 64 positions; shorten"):
        suite.run(decoder.forward(feed(plain, ids[:1] * 65), decoder.new_cache()))
    suite.run(decoder.forward(feed(plain, ids[:1] * 64), decoder.new_cache()))


def test_weights_are_checked(tmp_path: Path) -> None:
    _, checkpoint, _ = saved("gpt2", tmp_path)
    plain = PlainModel(checkpoint)
    short = {k: v for k, v in plain.weights.items() if k != "layers.1.mlp.up.bias"}
    with pytest.raises(ConfigurationError, match=r"weight 'layers\.1\.mlp\.up\.bias' \[240\] is missing"):
        Decoder(plain.suite, plain.architecture, short)
    wrong = plain.weights | {"head.weight": plain.weights["head.weight"][:, :5]}
    with pytest.raises(ConfigurationError, match=r"'head\.weight' has shape \[60, 5\], the architecture needs \[60, 97\]"):
        Decoder(plain.suite, plain.architecture, wrong)
    with pytest.raises(ConfigurationError, match=r"weight 'layers\.0\.mlp\.up\.weight'.*no tensor of shape \[60, 240\]"):
        plain.suite.run(load_weights(plain.suite, plain.architecture, lambda name: None))


def test_an_empty_cache_has_no_keys(tmp_path: Path) -> None:
    _, checkpoint, _ = saved("gpt2", tmp_path)
    cache = KVCache(checkpoint.architecture, FullCache())
    assert cache.layers[0].length == 0
    with pytest.raises(RuntimeError, match="the cache of this layer is empty"):
        cache.layers[0].keys_and_values()
