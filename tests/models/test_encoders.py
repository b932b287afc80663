"""The plain suite's outputs of encoders equal Hugging Face's, for random models of odd shapes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file, save_file

from launch.local.in_process import InProcessSuite
from launch.measure.encoding import encode_on_shares
from models.calibration.encoders import measure_encoder
from models.calibration.sequences import sequences
from models.checkpoint import load_checkpoint
from models.costs.estimation import estimate
from models.costs.tracing import Setting
from models.encoding import EncoderInput, EncodingPlan, PlainEncoder, padded_length, shared_rows
from models.outputs import Output
from mpc.errors import CheckpointError, ConfigurationError
from protocols.registry import SuiteSpec
from tests.models import random_encoders as encoders

TOLERANCE = 1e-4
LENGTH = 13


@pytest.mark.parametrize("name", sorted(encoders.VARIANTS))
def test_outputs(name: str, tmp_path: Path) -> None:
    """Every output that the model has, with and without padding."""
    model = encoders.save(name, tmp_path)
    ids, types = encoders.text(model, LENGTH)
    wanted = encoders.outputs(model, ids, types)
    plain = PlainEncoder(load_checkpoint(tmp_path))
    seen = 0
    for output in get_args(Output):
        if output not in plain.architecture.outputs or (output == "pooled" and output not in wanted):
            continue
        seen += 1
        assert wanted[output].std() > 0.1  # the comparison below must be able to fail
        for padded in (LENGTH, LENGTH + 9):
            found = plain.output(EncoderInput(ids, types, place=2), output, padded)
            torch.testing.assert_close(found, wanted[output], atol=TOLERANCE, rtol=0)
    assert seen == len(wanted)


@pytest.mark.parametrize(
    ("name", "suite", "parties", "outputs"),
    [
        ("bert", "masked", 2, ("mean", "pooled")),
        ("roberta-classes", "masked", 3, ("cls", "classes")),
        ("distilbert-words", "masked", 2, ("words",)),
        ("distilbert-labels", "crypten", 2, ("labels",)),
    ],
)
def test_on_shares(name: str, suite: str, parties: int, outputs: tuple[Output, ...], tmp_path: Path) -> None:
    """As in plaintext, nothing flagged, at the estimated costs; the sweep is tests/tools/encoders_on_shares.py."""
    model = encoders.save(name, tmp_path)
    checkpoint = load_checkpoint(tmp_path)
    ids, types = encoders.text(model, 11)
    wanted = encoders.outputs(model, ids, types)
    texts = [([EncoderInput(ids, types, place=2)], EncodingPlan((16,), output)) for output in outputs]
    found = encode_on_shares(checkpoint, texts, InProcessSuite(SuiteSpec(suite), parties))
    for output, one in zip(outputs, found, strict=True):
        assert not one.findings
        apart = 1 - torch.cosine_similarity(one.values, wanted[output].double(), dim=-1)
        assert apart.max() < 1e-5, output
        torch.testing.assert_close(one.values.argmax(-1), wanted[output].argmax(-1))
        costs = estimate(checkpoint.encoder, Setting(suite, parties, decoding=output), 16, 1).total
        counted = costs.total("rounds"), costs.total("bytes_sent"), costs.total("offline_bytes")
        if suite == "masked":  # `crypten` agrees on seeds in the first session
            assert (one.rounds, one.sent, one.dealt) == counted


def test_what_padding_holds_changes_nothing(tmp_path: Path) -> None:
    """The mask is what hides the length: other padding tokens leave the output, a broken mask does not."""
    model = encoders.save("bert", tmp_path)
    ids, _ = encoders.text(model, LENGTH)
    plain = PlainEncoder(load_checkpoint(tmp_path))
    plan = EncodingPlan((LENGTH + 9,), "cls")
    rows = shared_rows(plain.architecture, plan, [EncoderInput(ids)])
    wanted = encoders.outputs(model, ids, [0] * LENGTH)["cls"]
    other = rows.clone()
    other[0, LENGTH:] = 7
    torch.testing.assert_close(plain.run(other, plan)[0], wanted, atol=TOLERANCE, rtol=0)
    other[1] = 1
    assert (plain.run(other, plan)[0] - wanted).abs().max() > 10 * TOLERANCE


def test_earlier_names_of_norms(tmp_path: Path) -> None:
    """The first published files, `bert-base-uncased` among them, call gain and offset gamma and beta."""
    model = encoders.save("bert-words", tmp_path)
    ids, types = encoders.text(model, LENGTH)
    wanted = encoders.outputs(model, ids, types)["words"]
    file = tmp_path / "model.safetensors"
    new, old = ("LayerNorm.weight", "LayerNorm.bias"), ("LayerNorm.gamma", "LayerNorm.beta")
    renamed = {name.replace(new[0], old[0]).replace(new[1], old[1]): x for name, x in load_file(file).items()}
    assert any(name.endswith("gamma") for name in renamed)
    save_file(renamed, file)
    found = PlainEncoder(load_checkpoint(tmp_path)).output(EncoderInput(ids, types, place=2), "words")
    torch.testing.assert_close(found, wanted, atol=TOLERANCE, rtol=0)


def test_padding_tokens_within_a_text(tmp_path: Path) -> None:
    """BERT reads them as any token; RoBERTa gives them no position, so its texts are refused that hold one."""
    model = encoders.save("bert", tmp_path)
    ids = [5, model.config.pad_token_id, 7, 8]
    found = PlainEncoder(load_checkpoint(tmp_path)).output(EncoderInput(ids), "hidden")
    torch.testing.assert_close(found, encoders.outputs(model, ids, [])["hidden"], atol=TOLERANCE, rtol=0)
    model = encoders.save("roberta", tmp_path)
    ids[1] = model.config.pad_token_id
    with pytest.raises(ConfigurationError, match=r"the text holds the padding token \(id 1\), to which a 'roberta' model"):
        PlainEncoder(load_checkpoint(tmp_path)).output(EncoderInput(ids), "hidden")


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_the_bias_of_padding_has_a_bound_of_its_own(name: str, tmp_path: Path) -> None:
    """Calibration measures scores without it, over tokens and padding, and no random text has a padding token."""
    model = encoders.save(name, tmp_path)
    checkpoint = load_checkpoint(tmp_path)
    texts = sequences(checkpoint, None)
    assert not any(checkpoint.encoder.pad in ids for ids in texts)
    spread = max(measure_encoder(checkpoint, [ids[:13] for ids in texts]).kinds["score"])
    rows = [torch.tensor([[*ids[:13], *[checkpoint.encoder.pad] * 3]]) for ids in texts]
    mask = torch.tensor([[1] * 13 + [0] * 3])
    places = [torch.arange(16)[None] + (model.config.pad_token_id + 1 if name == "roberta" else 0)] * len(rows)
    seen: list[float] = []
    for layer in model.encoder.layer:
        layer.attention.self.register_forward_hook(lambda block, given, out: seen.append(scores_of(block, given[0])))
    with torch.inference_mode():
        for ids, where in zip(rows, places, strict=True):
            model(ids, attention_mask=mask, position_ids=where)
    assert spread == pytest.approx(max(seen), rel=1e-4)


def scores_of(block: Any, rows: torch.Tensor) -> float:
    """The largest spread of a row of attention scores of rows [1, T, D], as Hugging Face's projections make them."""
    heads = (rows.shape[1], block.num_attention_heads, block.attention_head_size)
    q, k = (part(rows)[0].reshape(heads).transpose(0, 1) for part in (block.query, block.key))
    scores = q @ k.transpose(1, 2) / heads[2] ** 0.5
    return float((scores.amax(-1) - scores.amin(-1)).max())


def test_lengths() -> None:
    assert [padded_length(n, 40) for n in (1, 16, 17, 33, 40)] == [16, 16, 24, 40, 40]
    with pytest.raises(ConfigurationError, match=r"the text has 41 tokens .* 40 positions"):
        padded_length(41, 40)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"position_embedding_type": "relative_key"}, "relative positions are not supported"),
        ({"architectures": ["BertForQuestionAnswering"]}, "the class of the checkpoint is needed"),
        ({"is_decoder": True}, "reads from left to right is not supported"),
        ({"num_attention_heads": 7}, "the width 60 must be a multiple"),
    ],
)
def test_options_that_are_refused(change: dict[str, object], message: str, tmp_path: Path) -> None:
    encoders.save("bert", tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(("suite", "parties"), [("masked", 2), ("masked", 3), ("crypten", 2)])
def test_padding_that_would_be_attended_to_is_flagged(suite: str, parties: int, tmp_path: Path) -> None:
    """The padding token's scores lie 60 above all others: 40 less is not enough for it then, and no bound is exceeded."""
    model = encoders.build("bert")
    ids, types = encoders.text(model, LENGTH)
    pad = model.config.pad_token_id
    with torch.no_grad():
        attention = model.encoder.layer[0].attention.self
        attention.query.weight.zero_()
        attention.query.bias.fill_(1.0)
        attention.key.weight.zero_()
        attention.key.weight[:, 0] = 1.0
        model.embeddings.word_embeddings.weight[pad] = 0.0
        model.embeddings.word_embeddings.weight[pad, 0] = 30.0
        rows = model.embeddings(torch.tensor([[*ids, pad]]), torch.tensor([[*types, 0]]))
        scores = attention.key(rows)[0].sum(-1) / attention.num_attention_heads / attention.attention_head_size**0.5
        attention.query.bias.fill_(float(60.0 / (scores[-1] - scores[:-1].max())))
    model.save_pretrained(tmp_path)
    checkpoint = load_checkpoint(tmp_path)
    text = EncoderInput(ids, types)
    wanted = encoders.outputs(model, ids, types)["cls"]
    assert (PlainEncoder(checkpoint).output(text, "cls", 16) - wanted).abs().max() > 0.1
    (found,) = encode_on_shares(
        checkpoint, [([text], EncodingPlan((16,), "cls"))], InProcessSuite(SuiteSpec(suite), parties)
    )
    assert ("score", 0) in {(finding.kind, finding.layer) for finding in found.findings}


@pytest.mark.parametrize(
    ("name", "suite", "parties", "output"),
    [("bert-labels-one-head", "masked", 2, "labels"), ("distilbert", "masked", 3, "mean"), ("bert", "crypten", 2, "pooled")],
)
def test_texts_of_one_session(name: str, suite: str, parties: int, output: Output, tmp_path: Path) -> None:
    """Texts of two padded lengths, two of them read together: each as alone in transformers, the rounds of two batches and
    not of three, and all costs as estimated."""
    model = encoders.save(name, tmp_path)
    checkpoint = load_checkpoint(tmp_path)
    given = [encoders.text(model, length, seed) for seed, length in enumerate((11, 5, 20))]
    plan = EncodingPlan((16, 16, 24), output)
    assert plan.batches == ((2, 16), (1, 24))
    session = [EncoderInput(ids, types) for ids, types in given], plan
    (found,) = encode_on_shares(checkpoint, [session], InProcessSuite(SuiteSpec(suite), parties))
    assert not found.findings
    for one, (ids, types) in zip(found.each, given, strict=True):
        wanted = encoders.outputs(model, ids, types)[output]
        assert (1 - torch.cosine_similarity(one, wanted.double(), dim=-1)).max() < 1e-5
        torch.testing.assert_close(one, wanted.double(), atol=0.01, rtol=0)
    setting = Setting(suite, parties, decoding=output, texts=plan.texts)
    costs = estimate(checkpoint.encoder, setting, plan.prompt_tokens, 1).total
    if suite == "masked":  # `crypten` agrees on seeds in the first session
        counted = costs.total("rounds"), costs.total("bytes_sent"), costs.total("offline_bytes")
        assert (found.rounds, found.sent, found.dealt) == counted
        alone = [estimate(checkpoint.encoder, Setting(suite, parties, decoding=output), n, 1).total for n in (16, 24)]
        assert found.rounds == sum(one.total("rounds") for one in alone)


def test_batches() -> None:
    """Neighbours of one length, at most 512 tokens together unless one text has more."""
    assert EncodingPlan((16,) * 40 + (400, 400, 1000), "mean").batches == ((32, 16), (8, 16), (1, 400), (1, 400), (1, 1000))
    with pytest.raises(ConfigurationError, match="a session reads 1 to 2048 of them, got 2049"):
        EncodingPlan((16,) * 2049, "mean")
    with pytest.raises(ConfigurationError, match="a length must be a positive integer, got 0"):
        EncodingPlan((16, 0), "mean")
