"""Text to token ids and back, from a checkpoint's own tokenizer files; nothing is downloaded and no remote code is run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from tokenizers import Tokenizer

from mpc.errors import CheckpointError

_UNFINISHED = "\ufffd"
_OTHER_FILES = ("vocab.json", "merges.txt", "tokenizer.model", "spiece.model", "tokenizer_config.json")


class _Backend(Protocol):
    def encode(self, text: str, special: bool) -> list[int]: ...

    def decode(self, ids: list[int]) -> str: ...

    def size(self) -> int: ...


class _Fast:
    """tokenizer.json, read by the package tokenizers."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def encode(self, text: str, special: bool) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=special).ids)

    def decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def size(self) -> int:
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))


class _Other:
    """Any other local tokenizer, read by transformers."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def encode(self, text: str, special: bool) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=special))

    def decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def size(self) -> int:
        return len(self._tokenizer)


class TextTokenizer:
    """Encodes prompts and decodes answers. eos: ids that end an answer; size: number of tokens it knows."""

    def __init__(self, backend: _Backend, eos: Sequence[int]) -> None:
        self._backend = backend
        self.eos = tuple(eos)
        self.size = backend.size()

    @classmethod
    def load(cls, directory: Path, eos: Sequence[int]) -> TextTokenizer:
        """From tokenizer.json, else from what transformers reads. Raises `CheckpointError` naming the file."""
        file = directory / "tokenizer.json"
        if file.exists():
            try:
                tokenizer = Tokenizer.from_file(str(file))
            except Exception as error:  # the package raises bare Exception
                raise CheckpointError(f"{file}: is not a tokenizer ({error}); download the file again") from None
            tokenizer.no_truncation()
            tokenizer.no_padding()
            return cls(_Fast(tokenizer), eos)
        if not any((directory / name).exists() for name in _OTHER_FILES):
            raise CheckpointError(
                f"{directory}: no tokenizer.json there; copy the model's tokenizer files into the directory"
            )
        try:
            from transformers import AutoTokenizer

            other = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, KeyError, ImportError, json.JSONDecodeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CheckpointError(f"{directory}: its tokenizer cannot be read ({reason}); add tokenizer.json") from None
        return cls(_Other(other), eos)

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Token ids of a text, with the special tokens that the checkpoint puts around a prompt."""
        return self._backend.encode(text, special)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens left out."""
        return self._backend.decode(list(ids))

    def stream(self, before: Sequence[int] = ()) -> TextStream:
        """A decoder that turns one token after the other into text; `before`: the last tokens of the prompt."""
        return TextStream(self, before)


class TextStream:
    """Incremental decoding: the pieces that `push` and `flush` return add up to the text.

    A token may hold a part of a character, and the space before a word may depend on the word before it. So each piece is
    the difference of two decodings of the last few tokens, and tokens that end inside a character wait for the next one.
    """

    def __init__(self, tokenizer: TextTokenizer, before: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._ids = list(before)[-8:]
        self._shown = len(self._ids)  # tokens whose text has been returned
        self._context = 0  # where decoding starts

    def push(self, token: int) -> str:
        """The text that this token completes; empty when it ends inside a character."""
        self._ids.append(token)
        text = self._tail()
        if text.endswith(_UNFINISHED):
            return ""
        return self._advance(text)

    def flush(self) -> str:
        """The text of tokens that still waited."""
        return self._advance(self._tail())

    def _tail(self) -> str:
        whole = self._tokenizer.decode(self._ids[self._context :])
        return whole[len(self._tokenizer.decode(self._ids[self._context : self._shown])) :]

    def _advance(self, text: str) -> str:
        if text:
            self._context, self._shown = self._shown, len(self._ids)
        return text
