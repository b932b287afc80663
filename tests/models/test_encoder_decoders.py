"""Encoder-decoders (T5): the plain suite's logits and tokens equal Hugging Face's, on shares too, at the estimated costs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.models.t5.modeling_t5 import T5Attention

from launch.local.in_process import InProcessSuite
from launch.measure import fidelity
from models.architectures import parse_description
from models.calibration.certainty import beyond_flags
from models.calibration.choice import chosen
from models.calibration.extremes import measure
from models.checkpoint import Checkpoint, load_checkpoint, read_architecture
from models.config import Config
from models.costs.estimation import estimate
from models.costs.prediction import Predictor
from models.costs.tracing import Setting, trace_session
from models.drafting import DraftPlan
from models.families.registry import decoder_family
from models.generation import GenerationPlan, PlainModel, generate_plain, token_indices
from models.known_checkpoints import KNOWN
from models.shapes import SHAPES, find_shape, with_layers
from mpc.errors import CheckpointError, ConfigurationError
from protocols.registry import SuiteSpec
from tests.models import random_encoder_decoders as checkpoints
from tests.models.random_checkpoints import prompt
from tests.tools.family_sweep import Cell, sweep

TOLERANCE = 1e-4
LENGTH = 17


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


@pytest.mark.parametrize(
    ("name", "suite", "parties"), [("t5", "masked", 2), ("t5-gated-untied", "masked", 3), ("mt5", "crypten", 2)]
)
def test_on_shares(name: str, suite: str, parties: int) -> None:
    """Transformers' tokens, nothing flagged; `python -m tests.tools.family_sweep` does the same at length."""
    outcome = sweep(Cell(name, suite, parties), prompts=1, tokens=3)
    assert outcome.right
    assert outcome.error < 0.02


def test_every_layer_on_shares(tmp_path: Path) -> None:
    """What `mpcache check` compares: every point of both halves, with transformers' logits."""
    checkpoints.save("t5-gated-untied", tmp_path)
    checkpoint = load_checkpoint(tmp_path, torch.float64)
    ids = [5, 6, 7, 8, 9, 10, 11]
    encoder = checkpoint.architecture.encoder
    reference = fidelity.plaintext(checkpoint, ids)
    theirs = fidelity.hugging_face_logits(tmp_path, ids, encoder)
    torch.testing.assert_close(reference.logits, theirs, atol=TOLERANCE, rtol=0)
    measured = fidelity.on_shares(checkpoint, ids, InProcessSuite(SuiteSpec("masked"), 2))
    errors = fidelity.compare(reference, measured)
    assert {(e.step, e.point, e.shape[0]) for e in errors} >= {
        ("prefill", "layer 1/mlp", 7),
        ("prefill", "start", 1),
        ("prefill", "layer 2/cross", 1),
        ("decode", "layer 4/cross", 1),
        ("decode", "logits", 1),
    }
    assert max(e.relative for e in errors) < 0.005
    assert measured.token == reference.token
    assert measured.flags is not None
    assert not measured.flags.any()


def test_bounds_hold_scores_with_their_bias(tmp_path: Path) -> None:
    """Calibration sees what the softmax takes: a bias of the scores makes their spread, in both halves."""
    checkpoints.save("t5", tmp_path)
    before = measure(load_checkpoint(tmp_path), [[5, 6, 7, 8, 9]])
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    tables = [name for name in tensors if name.endswith("relative_attention_bias.weight")]
    assert len(tables) == 2
    for name in tables:
        tensors[name][0] += 70.0  # of a token with itself
    save_file(tensors, file, metadata={"format": "pt"})
    checkpoint = load_checkpoint(tmp_path)
    after = measure(checkpoint, [[5, 6, 7, 8, 9]])
    assert max(before.kinds["score"]) < 40
    assert all(60 < after.kinds["score"][place] < 110 for place in (0, 1, 2, 3, 4))
    assert chosen("masked", after)["score"] == 8
    assert beyond_flags(checkpoint, chosen("masked", after)) is None


@pytest.mark.parametrize("suite", ["masked", "crypten"])
def test_costs(suite: str) -> None:
    """An estimate of layers that are alike is the session's own costs; a prediction is no lower."""
    a = SHAPES["t5-small"].model_copy(update={"width": 32, "heads": 2, "kv_heads": 2, "feed_forward": 48, "vocabulary": 97})
    quick, setting = estimate(a, Setting(suite), 19, 4), Setting(suite)
    traced = [step.ledger.total("step") for step in trace_session(a, setting, 19, 4)]
    predicted = Predictor(a, setting).predict(19, 4, 60.0)
    for name in ("rounds", "bytes_sent", "offline_bytes"):
        assert quick.first.total(name) == getattr(traced[0], name)
        assert quick.further.total(name) == sum(getattr(step, name) for step in traced[1:])
    assert predicted.dealt >= quick.total.total("offline_bytes")
    assert predicted.sent >= quick.total.total("bytes_sent")


def test_a_bias_costs_no_byte() -> None:
    """Relative positions: biases of all pairs are rows of a table at public places, which joins scores locally."""
    a = SHAPES["t5-small"].model_copy(update={"width": 32, "heads": 2, "kv_heads": 2, "feed_forward": 48, "vocabulary": 97})
    assert a.encoder is not None
    few = a.model_copy(update={"encoder": a.encoder.model_copy(update={"both_ways": (0,), "back": (0,)})})
    for name in ("rounds", "bytes_sent", "offline_bytes"):
        totals = [estimate(model, Setting("masked"), 9, 3).total.total(name) for model in (a, few)]
        assert totals[0] == totals[1]


def test_drafted_tokens(tmp_path: Path) -> None:
    """Those of greedy decoding, whether guesses are right or wrong."""
    checkpoints.save("t5-gated-untied", tmp_path)
    model, ids = PlainModel(load_checkpoint(tmp_path)), [5, 6, 7, 8, 9, 10, 11]
    wanted = model.generate(ids, GenerationPlan(7, 12))
    drafted = GenerationPlan(7, 12, draft=DraftPlan(3))
    for guess in (lambda text, count: wanted[len(text) - 7 :][:count], lambda text, count: [1] * count):
        assert model.generate(ids, drafted, guess=guess) == wanted


def test_descriptions() -> None:
    """Public numbers alone, which come back from their text; layers of both halves are kept apart."""
    a = SHAPES["flan-t5-small"]
    assert a.encoder is not None
    assert parse_description(a.to_json()) == a
    assert (a.layers, a.encoder.layers, a.encoder.start, a.gated, a.activation) == (16, 8, 0, True, "gelu_tanh")
    assert a.encoder.both_ways[:9] == (*range(8), 8)
    kept = a.reduced([0, 8, 9, 15])
    assert kept.encoder is not None
    assert kept.encoder.layers == 1
    assert a.parameters() == 76_940_160
    for values, message in (
        ({"norms": "after"}, r"'norms' = 'after' does not go with an 'encoder'"),
        ({"layers": 8}, r"'encoder' has 8 of 8 layers"),
        ({"vocabulary": 0}, r"'vocabulary' = 0"),
    ):
        fields = {name: getattr(a, name) for name in type(a).model_fields} | values
        with pytest.raises(ConfigurationError, match=message):
            type(a)(**fields)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"feed_forward_proj": "gated-tanh"}, r"'feed_forward_proj' = 'gated-tanh': this feed-forward layer"),
        ({"feed_forward_proj": "other-gelu"}, r"'feed_forward_proj' = 'other-gelu'"),
        ({"relative_attention_num_buckets": 3}, r"'relative_attention_num_buckets' = 3: 4 to 4096 buckets"),
        ({"relative_attention_max_distance": 16}, r"'relative_attention_max_distance' = 16: more than half of the 32"),
        ({"is_encoder_decoder": False}, r"'is_encoder_decoder' = False: the encoder alone"),
        ({"is_decoder": True}, r"'is_decoder' = True: the decoder alone"),
        ({"decoder_start_token_id": None}, r"'decoder_start_token_id' = None: the token that every answer begins"),
    ],
)
def test_options_that_are_refused(changes: dict[str, Any], message: str) -> None:
    decoder_family(Config(KNOWN["t5-base"], Path("config.json")))
    with pytest.raises(CheckpointError, match=message):
        decoder_family(Config(KNOWN["t5-base"] | changes, Path("config.json")))


def test_what_does_not_go_with_an_encoder() -> None:
    """Each by its name, before any work."""
    a = SHAPES["t5-base"]
    GenerationPlan(20, 30).check(a)
    GenerationPlan(32768, 32768).check(a)
    for plan, message in (
        (GenerationPlan(20, 30, policy="snapkv:budget=0.5"), r"policy snapkv.*: 't5' reads its prompt with an encoder"),
        (GenerationPlan(20, 32769), r"prompt_tokens = 20 and new_tokens = 32769: the model has 32768 positions for each"),
        (GenerationPlan(32769, 1), r"prompt_tokens = 32769 and new_tokens = 1"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            plan.check(a)
    with pytest.raises(ConfigurationError, match=r"shape 't5-base': 't5' reads its prompt with an encoder"):
        find_shape("t5-base")
    with pytest.raises(ConfigurationError, match=r"layers = 3: 't5' has an encoder in front of its decoder"):
        with_layers(a, 3)


def test_tables_of_their_own_are_refused(tmp_path: Path) -> None:
    """Encoder and decoder share the token table; copies of it are read, others are not."""
    checkpoints.save("t5", tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    copy = tensors["shared.weight"].clone()
    save_file(tensors | {"encoder.embed_tokens.weight": copy}, file, metadata={"format": "pt"})
    assert load_checkpoint(tmp_path).weights["embedding.tokens"].shape == copy.shape
    copy[0] += 1.0
    save_file(tensors | {"encoder.embed_tokens.weight": copy}, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"tensor 'encoder.embed_tokens.weight' differs from 'shared.weight'"):
        load_checkpoint(tmp_path).weights["embedding.tokens"]


def test_generation_config_says_where_answers_begin(tmp_path: Path) -> None:
    checkpoints.save("t5", tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"decoder_start_token_id": 7, "eos_token_id": 9}))
    a = read_architecture(tmp_path)
    assert a.encoder is not None
    assert (a.encoder.start, a.eos) == (7, (9,))
