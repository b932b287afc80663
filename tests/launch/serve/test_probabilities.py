"""Probabilities of tokens in OpenAI's formats, where several tokens look alike: parts of characters, special tokens, spaces.

Oracles: UTF-8, and the softmax of the logits.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models

from launch.serve.gateway.errors import ApiError
from launch.serve.gateway.logits import Likelihood, TokenProbability, chat_record, completion_record, probability
from launch.serve.gateway.parameters import CompletionParameters, parse
from models.tokenizer.text import TextTokenizer
from tests.models.random_checkpoints import byte_tokenizer

TEXT = "a\u20ac\U0001f600\ufffdz"  # of 1, 3, 4, 3 and 1 bytes


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    """A tokenizer of bytes."""
    folder = tmp_path_factory.mktemp("bytes")
    byte_tokenizer(folder)
    return TextTokenizer.load(folder, (0,))


def likely(*tokens: int) -> torch.Tensor:
    """Logits of which these tokens are the likeliest, in this order."""
    logits = torch.zeros(256, dtype=torch.float64)
    for place, token in enumerate(tokens):
        logits[token] = 10.0 - place
    return logits


def test_parts_of_characters(words: TextTokenizer) -> None:
    """Every byte has a key and bytes of its own, and a character's place is that of its first byte."""
    ids = words.encode(TEXT)
    found = [probability(words, token, likely(*ids[1:6]), 5) for token in ids]
    said, chat = completion_record(found, 3), chat_record(found)["content"]
    parts = [f"bytes:\\x{byte:02x}" for byte in "\u20ac\U0001f600".encode()]
    assert said["tokens"] == ["a", *parts, *(f"bytes:\\x{byte:02x}" for byte in "\ufffd".encode()), "z"]
    assert said["text_offset"] == [3, 4, 4, 4, 5, 5, 5, 5, 6, 6, 6, 7]
    row = torch.log_softmax(likely(*ids[1:6]), 0)
    assert all(
        top == {part: float(row[token]) for part, token in zip(parts[:5], ids[1:6], strict=True)}
        for top in said["top_logprobs"]
    )
    assert bytes(byte for one in chat for byte in one["bytes"]).decode() == TEXT
    assert [one["bytes"] for one in chat[0]["top_logprobs"]] == [[byte] for byte in TEXT.encode()[1:6]]


def test_names_that_still_collide() -> None:
    """The likeliest stays, but for the chosen token's own."""

    def alike(token: int, logprob: float) -> Likelihood:
        return Likelihood(token, "x", b"x", logprob)

    top = [alike(1, -1.0), alike(2, -2.0), alike(3, -3.0)]
    for chosen, wanted in ((1, -1.0), (2, -2.0), (3, -3.0), (4, -1.0)):
        found = TokenProbability(alike(chosen, -float(chosen)), top)
        assert completion_record([found], 0)["top_logprobs"] == [{"x": wanted}]


def test_special_tokens_and_spaces(tmp_path: Path) -> None:
    """Pieces of sentencepiece: a word with a space and one without, a byte, a special token, which adds nothing."""
    vocabulary = {"<unk>": 0, "</s>": 1, "\u2581the": 2, "the": 3, "<0xE2>": 4}
    made = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    made.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.add_special_tokens(["</s>"])
    made.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    words = TextTokenizer.load(tmp_path, (1,))
    found = probability(words, 2, torch.tensor([0.0, 4.0, 3.0, 2.0, 1.0]), 4)
    assert list(found.top_by_name()) == ["</s>", " the", "the", "bytes:\\xe2"]
    assert [one.data for one in found.top] == [b"", b" the", b"the", b"\xe2"]


def test_echo_with_probabilities() -> None:
    """The prompt's own are not computed, so that they cannot be told: refused, or the prompt is left out."""

    def asked(drop: bool = False, **more: Any) -> CompletionParameters:
        return parse(CompletionParameters, json.dumps({"model": "m", "prompt": "a", **more}).encode(), drop)

    with pytest.raises(ApiError, match=r"echo is not supported: with logprobs .*; leave out echo, or logprobs") as caught:
        asked(echo=True, logprobs=0)
    assert (caught.value.status, caught.value.param, caught.value.code) == (400, "echo", "unsupported_parameter")
    dropped = asked(True, echo=True, logprobs=1)
    assert (dropped.echo, dropped.logprobs, dropped.dropped) == (None, 1, ["echo"])
    assert asked(echo=True, logprobs=False).echo
    assert asked(echo=False, logprobs=1).logprobs == 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ('"stop": [""]', "stop: must be a text or a list of at most 4 texts, none of them empty"),
        ('"stop": ""', "stop: must be a text or a list of at most 4 texts, none of them empty"),
        ('"temperature": NaN', "not valid JSON: it holds NaN, which is no number there"),
        ('"temperature": -Infinity', "not valid JSON: it holds -Infinity"),
        ('"temperature": -0.5', "temperature: -0.5 was given; input should be greater than or equal to 0"),
        ('"logprobs": 99', "logprobs: 99 was given; input should be less than or equal to 5"),
        ('"presence_penalty": 3', "presence_penalty: 3 was given; "),
        ('"n": true', "n: true was given; input should be a valid integer"),
        ('"logit_bias": {"7": 101}', "logit_bias: 101 was given; must give token ids a number from -100 to 100"),
        ('"max_tokens": "secret"', "'max_tokens: input should be a valid integer"),
    ],
)
def test_values_out_of_range_are_named(more: str, message: str) -> None:
    with pytest.raises(ApiError, match=message) as caught:
        parse(CompletionParameters, f'{{"model": "m", "prompt": "a", {more}}}'.encode())
    assert caught.value.status == 400
