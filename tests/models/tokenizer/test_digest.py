"""The digest that tells whether a client's tokenizer is the one that a model was shared with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

from models.tokenizer.text import TextTokenizer

WORDS = ["<unk>", "<s>", "the", "The", "capital", "of", "France", "is", "def", "return"]


def made(change: Callable[[Any], None] = lambda tokenizer: None, words: list[str] = WORDS) -> Any:
    out = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    out.pre_tokenizer = pre_tokenizers.Whitespace()
    change(out)
    return out


def digest(folder: Path, tokenizer: Any, **settings: Any) -> str:
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **settings}))
    return TextTokenizer.load(folder, ()).digest


def lower(tokenizer: Any) -> None:
    tokenizer.normalizer = normalizers.Lowercase()


def begins(tokenizer: Any) -> None:
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])


def added(tokenizer: Any) -> None:
    tokenizer.add_tokens([AddedToken("<more>")])


@pytest.mark.parametrize("change", [lower, begins, added])
def test_other_ids_have_another_digest(tmp_path: Path, change: Callable[[Any], None]) -> None:
    assert digest(tmp_path / "a", made()) != digest(tmp_path / "b", made(change))


def test_two_words_that_change_places(tmp_path: Path) -> None:
    turned = [*WORDS[:4], WORDS[5], WORDS[4], *WORDS[6:]]
    unread = [*WORDS[:8], WORDS[9], WORDS[8]]  # words that no text of the digest has
    found = [digest(tmp_path / str(n), made(words=words)) for n, words in enumerate((WORDS, turned, unread))]
    assert len(set(found)) == 3


def test_how_files_are_written_does_not_matter(tmp_path: Path) -> None:
    first = digest(tmp_path / "a", made())
    assert digest(tmp_path / "b", made(), chat_template="{{ messages }}", model_max_length=7) == first
    written = tmp_path / "b" / "tokenizer.json"
    values = json.loads(written.read_text())
    values["padding"] = values["truncation"] = None
    written.write_text(json.dumps(values, indent=4, sort_keys=True))
    assert TextTokenizer.load(tmp_path / "b", ()).digest == first
    assert len(bytes.fromhex(first)) == 32


def test_texts_that_a_vocabulary_cannot_write(tmp_path: Path) -> None:
    """Without a token for unknown words the package refuses them, and there is a digest all the same."""
    bare = Tokenizer(models.WordLevel({"a": 0, "b": 1}))
    other = Tokenizer(models.WordLevel({"b": 0, "a": 1}))
    assert digest(tmp_path / "a", bare) != digest(tmp_path / "b", other)
