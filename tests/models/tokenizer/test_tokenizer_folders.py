"""Ids and texts equal AutoTokenizer's for every kind of folder, and streams lose nothing."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from models.tokenizer.stop_strings import TextUntil
from models.tokenizer.text import TextTokenizer
from mpc.errors import CheckpointError, ConfigurationError
from tests.models.tokenizer.tokenizer_folders import FOLDERS, TEXTS, describe, sentencepiece_bpe

Pair = tuple[TextTokenizer, Any]


@pytest.fixture(scope="module", params=sorted(FOLDERS))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A folder's tokenizer, and AutoTokenizer's."""
    folder = tmp_path_factory.mktemp(request.param)
    FOLDERS[request.param](folder)
    oracle = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    words = TextTokenizer.load(folder, ())
    assert type(words.transformers) is type(oracle)
    return words, oracle


def decoded(oracle: Any, ids: list[int]) -> str:
    return str(oracle.decode(ids, skip_special_tokens=True))


def test_ids_and_texts(pair: Pair) -> None:
    words, oracle = pair
    assert words.size == len(oracle)
    seen = set()
    for text in TEXTS:
        for special in (True, False):
            ids = oracle.encode(text, add_special_tokens=special)
            assert words.encode(text, special) == ids
            assert words.decode(ids) == decoded(oracle, ids)
            seen.update(ids)
    assert len(seen) >= 2


def random_ids(oracle: Any, numbers: random.Random) -> list[int]:
    """Ids of all kinds: anywhere in the vocabulary, bytes, special tokens, and pieces of real text."""
    vocabulary = oracle.get_vocab()
    some_bytes = [token for name, token in vocabulary.items() if name.startswith("<0x") or len(name) == 1]
    added = list(oracle.added_tokens_decoder) or [0]
    real = oracle.encode(numbers.choice(TEXTS), add_special_tokens=False)
    kinds = [list(vocabulary.values()), some_bytes or [0], added, real or [0]]
    weights = [numbers.random() for _ in kinds]
    return [numbers.choice(numbers.choices(kinds, weights)[0]) for _ in range(numbers.randint(0, 30))] + real


def test_pieces_add_up_to_the_whole_text(pair: Pair) -> None:
    words, oracle = pair
    numbers = random.Random(7)
    early = 0
    for _ in range(50):
        ids = random_ids(oracle, numbers)
        stream = words.stream()
        pieces = [stream.push(token) for token in ids]
        assert "".join([*pieces, stream.flush()]) == decoded(oracle, ids)
        assert stream.flush() == ""
        early += sum(bool(piece) for piece in pieces)
    assert early > 120  # most text comes before the end


def test_pieces_after_a_prompt(pair: Pair) -> None:
    """The answer's text is what the whole text has beyond the prompt's."""
    words, oracle = pair
    numbers = random.Random(8)
    for _ in range(25):
        before, ids = random_ids(oracle, numbers), random_ids(oracle, numbers)
        stream = words.stream(before)
        found = "".join([*map(stream.push, ids), stream.flush()])
        prompt, whole = decoded(oracle, before), decoded(oracle, before + ids)
        shared = next((n for n, pair in enumerate(zip(prompt, whole, strict=False)) if len(set(pair)) > 1), len(prompt))
        assert found == whole[shared:]


def test_special_tokens_as_stop_strings(pair: Pair) -> None:
    words, oracle = pair
    special = [token for token in oracle.added_tokens_decoder if words.hidden(token)]
    if not special:
        assert type(oracle).__name__ in ("GPT2Tokenizer", "CTRLTokenizer")
        return
    numbers = random.Random(9)
    for _ in range(25):
        stop = numbers.choice(special)
        ids = [token for token in random_ids(oracle, numbers) if not words.hidden(token)]
        after = random_ids(oracle, numbers)
        text = TextUntil(words.stream(), [words.hidden(stop), "no such text"])
        pieces = []
        for token in [*ids, stop, *after]:
            pieces.append(text.push(token))
            if text.stopped:
                break
        assert text.stopped
        assert len(pieces) <= len(ids) + 1
        said = "".join([*pieces, text.flush()])
        if len(pieces) == len(ids) + 1:
            assert said == decoded(oracle, ids)


def test_half_of_a_surrogate_pair(pair: Pair) -> None:
    with pytest.raises(ConfigurationError, match="character 3 of the text is half of a surrogate pair"):
        pair[0].encode("ab\ud83d!")


@pytest.mark.parametrize("damage", ["cut", "not a model"])
def test_broken_sentencepiece_files(tmp_path: Path, damage: str) -> None:
    sentencepiece_bpe(tmp_path)
    file = tmp_path / "tokenizer.model"
    file.write_bytes(file.read_bytes()[:-7] if damage == "cut" else b"hello")
    with pytest.raises(CheckpointError, match=r"tokenizer\.model: is not a sentencepiece model; download the file again"):
        TextTokenizer.load(tmp_path, ())


def test_packages_that_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    describe(tmp_path, tokenizer_class="LlamaTokenizer")
    (tmp_path / "tokenizer.model").write_text("IQ== 0\nIg== 1\n")
    monkeypatch.setattr("models.tokenizer.files.find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match=r"tokenizer\.model: needs the package tiktoken; run: pip install tiktoken"):
        TextTokenizer.load(tmp_path, ())
    sentencepiece_bpe(tmp_path)
    with pytest.raises(CheckpointError, match=r"needs the package sentencepiece; run: pip install sentencepiece"):
        TextTokenizer.load(tmp_path, ())


def test_code_of_the_folder_is_not_run(tmp_path: Path) -> None:
    FOLDERS["byte_level"](tmp_path)
    describe(tmp_path, auto_map={"AutoTokenizer": ["code.Tokenizer", None]})
    with pytest.raises(CheckpointError, match=r"'auto_map' names code that would have to be run"):
        TextTokenizer.load(tmp_path, ())


def test_a_folder_with_settings_alone(tmp_path: Path) -> None:
    """transformers makes a tokenizer of three tokens of it."""
    describe(tmp_path, tokenizer_class="LlamaTokenizer")
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json there"):
        TextTokenizer.load(tmp_path, ())
