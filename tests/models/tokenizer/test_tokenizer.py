"""Text to ids and back, whole and token by token."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import GPT2TokenizerFast

from models.checkpoint import load_checkpoint
from models.tokenizer.text import TextTokenizer
from mpc.errors import CheckpointError
from tests.models import random_checkpoints as checkpoints

TEXTS = ["", "plain text", "  two  spaces ", "Zürich, 漢字 and 🤖🤖\n\ttabs", "e\u0301"]


@pytest.mark.parametrize("text", TEXTS)
def test_bytes_round_trip_and_stream(tmp_path: Path, text: str) -> None:
    checkpoints.byte_tokenizer(tmp_path)
    tokenizer = TextTokenizer.load(tmp_path, (5,))
    ids = tokenizer.encode(text)
    assert tokenizer.size == 256
    assert tokenizer.eos == (5,)
    assert len(ids) == len(text.encode())
    assert tokenizer.decode(ids) == text
    stream = tokenizer.stream()
    pieces = [stream.push(i) for i in ids]
    assert "".join(pieces) == text  # every character leaves with its last byte
    assert "\ufffd" not in "".join(pieces)
    assert stream.flush() == ""


def test_stream_that_ends_inside_a_character(tmp_path: Path) -> None:
    checkpoints.byte_tokenizer(tmp_path)
    tokenizer = TextTokenizer.load(tmp_path, ())
    stream = tokenizer.stream()
    assert [stream.push(i) for i in tokenizer.encode("a漢")[:-1]] == ["a", "", ""]
    assert stream.flush() == "\ufffd"
    assert stream.flush() == ""


def test_spaces_between_words_survive_streaming(tmp_path: Path) -> None:
    words = {w: i for i, w in enumerate(["[UNK]", "[BOS]", "the", "code", "of", "Ada", "is"])}
    made = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    made.add_special_tokens(["[BOS]"])
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.decoder = decoders.WordPiece(prefix="##")
    made.post_processor = processors.TemplateProcessing(single="[BOS] $A", special_tokens=[("[BOS]", 1)])
    made.save(str(tmp_path / "tokenizer.json"))
    tokenizer = TextTokenizer.load(tmp_path, ())
    ids = tokenizer.encode("the code of Ada is")
    assert ids == [1, 2, 3, 4, 5, 6]
    assert tokenizer.encode("the code", special=False) == [2, 3]
    stream = tokenizer.stream()
    assert [stream.push(i) for i in ids] == ["", "the", " code", " of", " Ada", " is"]
    continued = tokenizer.stream(before=ids[:3])
    assert [continued.push(i) for i in ids[3:]] == [" of", " Ada", " is"]


def test_truncation_and_padding_settings_are_ignored(tmp_path: Path) -> None:
    made = checkpoints.byte_tokenizer(tmp_path)
    made.enable_truncation(4)
    made.enable_padding(length=50)
    made.save(str(tmp_path / "tokenizer.json"))
    assert len(TextTokenizer.load(tmp_path, ()).encode("a prompt of 21 bytes.")) == 21


def test_tokenizer_that_transformers_reads(tmp_path: Path) -> None:
    checkpoints.save("gpt2", tmp_path)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {c: i for i, c in enumerate([*alphabet, "<|endoftext|>"])}
    GPT2TokenizerFast(vocab=vocabulary, merges=[]).save_pretrained(tmp_path)
    fast = TextTokenizer.load(tmp_path, ())
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "tokenizer.json").unlink()
    other = TextTokenizer.load(tmp_path, ())
    ids = other.encode("Zürich 🤖")
    assert ids == fast.encode("Zürich 🤖")
    stream = other.stream()
    assert "".join(stream.push(i) for i in ids) == "Zürich 🤖"


def test_missing_and_broken_files(tmp_path: Path) -> None:
    checkpoints.save("gpt2", tmp_path)
    checkpoint = load_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=rf"{tmp_path}: no tokenizer\.json there; copy the model's tokenizer files"):
        _ = checkpoint.tokenizer
    (tmp_path / "tokenizer.json").write_text('{"version": ')
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: is not a tokenizer .*download the file again"):
        _ = checkpoint.tokenizer
    checkpoints.byte_tokenizer(tmp_path)
    assert checkpoint.tokenizer.encode("ab") == checkpoint.tokenizer.encode("ab", special=False)
