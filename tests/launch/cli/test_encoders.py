"""`mpcache classify` and `embed`: one run each with processes of its own, and what is refused before any starts."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from launch.cli.commands.encoder_texts import read_texts
from models.checkpoint import load_checkpoint
from models.encoding import EncoderInput, PlainEncoder
from mpc.errors import ConfigurationError
from tests.launch.conftest import Command
from tests.models import random_encoders as encoders


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random encoder with three named classes and a tokenizer of letters."""
    made = tmp_path_factory.mktemp("classes")
    encoders.save("distilbert-classes", made)
    encoders.letters(made)
    file = made / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "id2label": {"0": "bad", "1": "fair", "2": "good"}}))
    return made


def test_classify(command: Command, folder: Path, tmp_path: Path) -> None:
    """One line a text of a file, with plaintext's class."""
    texts = tmp_path / "texts"
    texts.write_text("ab\n\ncd\tef\n")
    found = command("classify", "--model", folder, "--file", texts)
    assert found.code == 0, found.err
    lines = [json.loads(line) for line in found.out.splitlines()]
    checkpoint = load_checkpoint(folder)
    for line, text in zip(lines, (("ab", None), ("cd", "ef")), strict=True):
        ids = checkpoint.tokenizer.encode_pair(*text).ids
        scores = torch.softmax(PlainEncoder(checkpoint).output(EncoderInput(ids), "classes")[0], -1)
        assert line["label"] == ["bad", "fair", "good"][int(scores.argmax())]
        assert list(line["scores"].values()) == pytest.approx(scores.tolist(), abs=2e-3)
    assert lines[1]["text"] == ["cd", "ef"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["classify"], r"give texts as arguments, or --file FILE"),
        (["classify", "a", "--labels", "x,y"], r"2 different names were given, the model has 3 outputs"),
        (["classify", "a" * 40], r"text 1: the text has 42 tokens with its special ones, the model has 33 positions"),
        (["classify", "a", "--policy", "h2o"], r"--policy h2o: an encoder reads a text in one pass and has no cache"),
        (["classify", "a", "--name", "x"], r"--name needs --config"),
        (["embed", "a", "--pooling", "max"], r"pooling = 'max'; known: mean, cls, pooled"),
        (["generate", "--prompt", "a"], r"'distilbert' is an encoder, which writes no text"),
        (["estimate", "--prompt", "34"], r""),
        (["estimate", "--prompt", "16", "--policy", "h2o"], r"policy = 'h2o' does not go with decoding 'classes'"),
    ],
)
def test_refusals(command: Command, folder: Path, arguments: list[str], message: str) -> None:
    found = command(arguments[0], "--model", folder, *arguments[1:])
    assert found.code == (2 if message else 0)
    assert re.search(message, found.err)


def test_lines_of_a_file(tmp_path: Path) -> None:
    """A text a line, a tab between the two of a pair; other separators of Unicode are part of a text."""
    file = tmp_path / "texts"
    file.write_text("one\u2028text\r\n\na\tb\n", encoding="utf-8", newline="")
    assert read_texts(None, file) == ["one\u2028text", ("a", "b")]
    file.write_text("a\nb\tc\t1\n", encoding="utf-8")
    with pytest.raises(ConfigurationError, match=r"texts: line 2 has 2 tabs; a text has none, a pair of texts one"):
        read_texts(None, file)


def test_a_decoder_has_no_classes(command: Command, text_model: Path) -> None:
    found = command("classify", "--model", text_model, "a")
    assert found.code == 2
    assert "is a decoder, which has neither classes nor embeddings" in found.err
