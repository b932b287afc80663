"""Encoders at running parties, by the Python interface: plaintext is the oracle, and what cannot work is refused by name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from models.architectures import encoder_of
from models.checkpoint import load_checkpoint, read_description
from models.encoding import EncoderInput, EncodingPlan, PlainEncoder
from models.shapes import find_description
from models.tokenizer.text import TextTokenizer
from mpc.generators import AES
from mpcache import ConfigurationError, PermissionRefused, PrivateModel, SuiteSpec, TapeError
from parties.client.client import Client
from parties.client.encoding import EncodingRequest
from parties.client.texts import Classification, TextReader, labelled
from parties.server.permissions import Permissions
from parties.tapes.deal import DealOrder, DealSpec, deal
from parties.wire.manifest import Manifest
from tests.models import random_encoders as encoders
from tests.parties.deployment import Deployment

TEXT = "ab dc"
PAIR = ("ab", "cd")


def write(name: str, folder: Path) -> Path:
    """A random encoder with a tokenizer of single letters, and names of its classes."""
    model = encoders.save(name, folder)
    encoders.letters(folder)
    file = folder / "config.json"
    values = json.loads(file.read_text())
    names = {str(n): f"class {n}" for n in range(model.config.num_labels)}
    file.write_text(json.dumps({**values, "id2label": names}))
    return folder


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    limits = {"max_sessions": 2, "max_in_step": 2}
    with Deployment(tmp_path_factory.mktemp("encoders"), 2, deadline_seconds=30, limits=limits) as running:
        yield running


@pytest.fixture(scope="module")
def classes(deployment: Deployment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write("bert-classes", tmp_path_factory.mktemp("classes"))
    deployment.share(folder, "classes")
    return folder


@pytest.fixture(scope="module")
def model(deployment: Deployment, classes: Path) -> Iterator[PrivateModel]:
    config = deployment.config("client", "client")
    with PrivateModel.connect(config, tokenizer=classes, model="classes") as connected:
        yield connected


def test_classes_and_embeddings_are_those_of_plaintext(
    model: PrivateModel, classes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several texts in one session, in the order in which they were given."""
    plain = PlainEncoder(load_checkpoint(classes))
    words = model.tokenizer
    assert words is not None
    sessions, encode = [], model.client.encode

    def counted(*arguments: Any, **options: Any) -> Any:
        sessions.append(encode(*arguments, **options))
        return sessions[-1]

    monkeypatch.setattr(model.client, "encode", counted)
    texts = ("a" * 18, TEXT, PAIR)  # the first one is longer, so the session reads it last
    found = model.classify(texts)
    assert [one.plan.batches for one in sessions] == [((2, 16), (1, 24))]
    for one, text in zip(found, texts, strict=True):
        assert isinstance(one, Classification)
        encoded = words.encode_pair(*((text,) if isinstance(text, str) else text))
        logits = plain.output(EncoderInput(encoded.ids, encoded.types), "classes")[0]
        wanted = torch.softmax(logits, -1)
        assert one.label == f"class {int(wanted.argmax())}"
        assert list(one.scores.values()) == pytest.approx(wanted.tolist(), abs=2e-3)
    ids = words.encode_pair(TEXT).ids
    wanted = plain.output(EncoderInput(ids), "mean").double()
    (row,) = model.embed(TEXT, normalize=False)
    assert torch.cosine_similarity(row.double(), wanted[0], dim=0) > 1 - 1e-5
    torch.testing.assert_close(row.double(), wanted[0], atol=5e-3, rtol=0)
    assert model.embed([TEXT], pooling="cls").norm() == pytest.approx(1, abs=1e-6)


def test_refusals(model: PrivateModel, deployment: Deployment, checkpoint: Path) -> None:
    """All are named, and none reaches the parties."""
    with pytest.raises(ConfigurationError, match="'bert' is an encoder, which writes no text"):
        model.generate([3, 4], max_new_tokens=2)
    with pytest.raises(ConfigurationError, match=r"text 2: the text has \d+ tokens .* 40 positions"):
        model.embed([TEXT, "a" * 60])
    with pytest.raises(ConfigurationError, match="text 1 is empty"):
        model.classify("")
    for wrong, message in (([3], "text 1 is neither a text nor a pair"), (None, "texts: .* are needed, got NoneType")):
        with pytest.raises(ConfigurationError, match=message):
            model.embed(wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="2 different names were given, the model has 5 outputs"):
        model.classify(TEXT, labels=["a", "b"])
    granted = [{"name": "client", "outputs": ["classes"]}]
    permissions = Permissions(deployment.config("party", "party0", clients=granted))
    plan = EncodingPlan((16,), "mean")
    manifest = Manifest.of(
        "0" * 32, model.reference.encoder, SuiteSpec("masked"), plan, dict.fromkeys(["party0", "party1"], AES)
    )
    with pytest.raises(PermissionRefused, match=r"may not use output 'mean' .* outputs: \[classes, mean\]"):
        permissions.check_decoding(manifest, "client")
    deployment.share(checkpoint, "decoder")
    client = Client(deployment.config("client", "client"))
    with pytest.raises(ConfigurationError, match="'gpt2' is a decoder, which has neither classes nor embeddings"):
        _ = client.find_model("decoder").encoder


def test_sessions_of_many_texts() -> None:
    """As few as hold them: 8 192 tokens with padding each, the shortest texts first."""
    architecture = find_description("bert-base")
    texts = [EncoderInput([1] * (500 if n % 2 else 5)) for n in range(40)]
    found = list(EncodingRequest(texts).sessions(encoder_of(architecture, "bert-base"), 8192))
    assert [len(one) for one in found] == [20 + 15, 5]
    assert sorted(place for one in found for place in one) == list(range(40))
    assert all(len(texts[place].ids) == 5 for place in found[0][:20])


def test_labels_of_words(tmp_path: Path) -> None:
    """Each is its first token's and stands where all its tokens do."""
    vocabulary = {word: n for n, word in enumerate(["[PAD]", "[CLS]", "[SEP]", "[UNK]", "ad", "##a", "in", "par", "##is"])}
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    model = encoders.save("bert-labels-one-head", tmp_path)
    names = [f"label {n}" for n in range(7)]
    architecture = encoder_of(read_description(tmp_path), "it")
    reader = TextReader(architecture, TextTokenizer.load(tmp_path, ()), tmp_path)
    (encoded,) = reader.read([("ada in", "paris")])
    assert encoded.words == [None, 0, 0, 1, None, 2, 2, None]
    logits = encoders.outputs(model, encoded.ids, encoded.types)["labels"]
    found = labelled(logits, encoded, reader.labels(names, words=True), words=True)
    assert [(one.start, one.end) for one in found] == [(0, 3), (4, 6), (0, 5)]
    assert [one.label for one in found] == [names[int(logits[n].argmax())] for n in (1, 3, 5)]
    tokens = labelled(logits, encoded, reader.labels(names))
    assert [(one.start, one.end) for one in tokens] == [(0, 2), (2, 3), (4, 6), (0, 3), (3, 5)]
    encoders.save("bert-classes", tmp_path)
    other = TextReader(encoder_of(read_description(tmp_path), "it"), TextTokenizer.load(tmp_path, ()), tmp_path)
    with pytest.raises(ConfigurationError, match="words: this checkpoint has the head 'classes'"):
        other.labels(names[:5], words=True)


def test_tapes_of_several_texts(tmp_path: Path) -> None:
    """Dealt ahead for so many texts of a length, and for no other number; no dealer runs."""
    folder = write("distilbert-classes", tmp_path / "model")
    deployment = Deployment(tmp_path / "deployment", 2, deadline_seconds=30)
    spec = DealSpec([16], 1, suite=SuiteSpec("masked"), decoding="classes", texts=3)
    deal(DealOrder(deployment.config("dealer", "dealer"), read_description(folder), spec), tmp_path / "tapes")
    plain = PlainEncoder(load_checkpoint(folder))
    texts = [EncoderInput([1, *range(4, 4 + n), 2]) for n in (2, 5, 3)]
    try:
        for name in deployment.names:
            deployment.start_one(name, tapes=tmp_path / "tapes" / name)
        deployment.share(folder, "classes")
        client = Client(deployment.config("client", "client"))
        with pytest.raises(TapeError, match="1 for another text tokens"):
            client.encode(EncodingRequest(texts[:2], suite=SuiteSpec("masked")))
        found = client.encode(EncodingRequest(texts, suite=SuiteSpec("masked")))
        for one, text in zip(found.checked(), texts, strict=True):
            torch.testing.assert_close(one, plain.output(text, "classes").double(), atol=0.01, rtol=0)
    finally:
        deployment.stop()
