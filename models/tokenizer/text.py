"""Text to token ids and back, from a checkpoint's own tokenizer files, as transformers does both."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from models.tokenizer.files import read_tokenizer
from mpc.errors import ConfigurationError

_UNFINISHED = "\ufffd"
_UNFINISHED_MOST = 3  # bytes of a character that can be there while one is missing
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_SPACE = "\u2581"  # sentencepiece's, in front of a word
_CLEANED = frozenset(" .?!,'ntmsver")  # characters of what `clean_up_tokenization` replaces
_CONTEXT = 64  # tokens of a prompt that can change how the answer's first one is written
_PROBES = (  # capitals, accents in both normal forms, spaces, digits, code, other scripts
    "The capital of France is",
    "  Two spaces,\ttabs\n\nand lines; it's 1234567890.5% of HELLO worlds' e-mail: a_b@c.de",
    "Stra\u00dfe caf\u00e9 cafe\u0301 na\u00efve \ufb01n \u0130stanbul",
    "def f(x):\n    return {'k': [x**2, 0x1F]}  # done",
    "\u4f60\u597d\u4e16\u754c \u041f\u0440\u0438\u0432\u0435\u0442 \u0645\u0631\u062d\u0628\u0627",
    "\u0928\u092e\u0938\u094d\u0924\u0947 \U0001f600",
)


@dataclass(frozen=True)
class EncodedText:
    """ids: tokens, special ones included. types: of each. places: where in its text each begins and ends; (0, 0) of special
    tokens, and of all where the tokenizer does not say. words: the number of the word of each, over both texts of a pair;
    None of special tokens, and of all where the tokenizer does not say."""

    ids: list[int]
    types: list[int]
    places: list[tuple[int, int]]
    words: list[int | None]


class TextTokenizer:
    """Encodes prompts and decodes answers. eos: ids that end an answer; size: number of tokens it knows. continues: whether
    an answer's text continues its prompt's; behind an encoder it is a text of its own.

    Threads may share one: the package tokenizers refuses some calls while others run, so they take turns.
    """

    def __init__(self, tokenizer: Any, eos: Sequence[int], continues: bool = True) -> None:
        self._tokenizer = tokenizer
        self.continues = continues
        self._lock = threading.Lock()
        self._hidden: dict[int, str] = {}
        self.eos = tuple(eos)
        self.size = len(tokenizer)
        self.cleans = _cleans(tokenizer)
        self.is_fast = bool(tokenizer.is_fast)
        tokenizer.clean_up_tokenization_spaces = self.cleans

    @classmethod
    def load(cls, directory: Path, eos: Sequence[int], continues: bool = True) -> TextTokenizer:
        """Read a tokenizer from a folder. Raises `CheckpointError` naming the file."""
        return cls(read_tokenizer(directory), eos, continues)

    @property
    def transformers(self) -> Any:
        """Return the tokenizer of transformers."""
        return self._tokenizer

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Return token ids of a text; special: with the special tokens that the checkpoint puts around a prompt.

        Raises `ConfigurationError` for a text that is none: half of a surrogate pair cannot be written in UTF-8.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ConfigurationError(
                f"character {error.start + 1} of the text is half of a surrogate pair, which no file or terminal in UTF-8 "
                "holds; leave it out, or decode the text with errors='replace'"
            ) from None
        with self._lock:
            return list(self._tokenizer.encode(text, add_special_tokens=special, verbose=False))

    def encode_pair(self, text: str, second: str | None = None) -> EncodedText:
        """Return what an encoder reads of a text, or of two: with special tokens and the types that the tokenizer gives.

        Raises `ConfigurationError` as `encode` does.
        """
        for part in (text, second or ""):
            self.encode(part, special=False)
        with self._lock:
            found = self._tokenizer(
                text, second, return_offsets_mapping=self.is_fast, return_token_type_ids=True, verbose=False
            )
        ids = list(found["input_ids"])
        places = found["offset_mapping"] if self.is_fast else [(0, 0)] * len(ids)
        parts = list(zip(found.sequence_ids(), found.word_ids(), strict=True)) if self.is_fast else [(None, None)] * len(ids)
        numbers = {part: n for n, part in enumerate(dict.fromkeys(part for part in parts if None not in part))}
        words = [numbers.get(part) for part in parts]
        return EncodedText(ids, list(found["token_type_ids"]), [(int(a), int(b)) for a, b in places], words)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, special tokens left out."""
        with self._lock:
            return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def data(self, token: int) -> bytes:
        """Return the bytes that a token adds to a text, which need not be whole characters; none of a special token."""
        text = self.decode([token])
        with self._lock:
            name = str(self._tokenizer.convert_ids_to_tokens(token))
        if name.startswith(_SPACE) and not text.startswith(" "):
            return b" " + text.encode()  # which decoding takes away at a text's beginning
        if _UNFINISHED not in text:
            return text.encode()
        if _BYTE.fullmatch(name):
            return bytes([int(name[3:5], 16)])
        letters = _byte_letters()
        return bytes(letters[c] for c in name) if all(c in letters for c in name) else text.encode()

    def hidden(self, token: int) -> str:
        """Return what `decode` leaves out: the text of a special token, "" for any other."""
        if token not in self._hidden:
            with self._lock:
                name = self._tokenizer.convert_ids_to_tokens(token)
                left_out = not self._tokenizer.decode([token], skip_special_tokens=True)
                known = bool(self._tokenizer.decode([token], skip_special_tokens=False))
            self._hidden[token] = str(name) if left_out and known else ""
        return self._hidden[token]

    def added(self) -> list[tuple[int, str]]:
        """Return tokens that stand for a text as a whole, beside the vocabulary that texts are split into, the longest
        first."""
        found = [(int(token), str(text)) for token, text in self._tokenizer.added_tokens_decoder.items()]
        return sorted(found, key=lambda entry: -len(entry[1]))

    @cached_property
    def digest(self) -> str:
        """Return a SHA-256, hexadecimal, of the vocabulary (each id with its token, added ones too) and of the ids that a
        few texts get, special tokens included.

        Equal for two folders whose tokenizers give the same ids, however their files write them down. It travels with a
        shared model, in public: whoever sees it may test a guess at the tokenizer.
        """
        vocabulary = sorted((int(token), str(text)) for text, token in self._tokenizer.get_vocab().items())
        found = json.dumps([vocabulary, [self._ids(text) for text in _PROBES]], separators=(",", ":"))
        return hashlib.sha256(found.encode()).hexdigest()

    def _ids(self, text: str) -> list[int] | None:
        """Return `encode`'s ids, None where the vocabulary has none for a part of the text."""
        try:
            return self.encode(text)
        except Exception:  # the package tokenizers raises bare Exception
            return None

    def same_tokens(self, other: TextTokenizer) -> bool:
        """Whether every number stands for the same token in both."""
        return bool(self._tokenizer.get_vocab() == other._tokenizer.get_vocab())

    def is_byte(self, token: int) -> bool:
        """Whether it stands for one byte (byte fallback of sentencepiece)."""
        with self._lock:
            name = str(self._tokenizer.convert_ids_to_tokens(token))
        return _BYTE.fullmatch(name) is not None

    def stream(self, before: Sequence[int] = ()) -> TextStream:
        """Return a decoder that turns one token after the other into text; before: the prompt that the answer continues."""
        return TextStream(self, before if self.continues else ())


@cache
def _byte_letters() -> dict[str, int]:
    """Return the byte of each letter in which byte-level tokenizers (GPT-2's) write tokens."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return {letter: byte for byte, letter in bytes_to_unicode().items()}


def _cleans(tokenizer: Any) -> bool:
    """Whether decoding ends with `clean_up_tokenization`; transformers ignores the folder's wish for it with BPE."""
    forced = getattr(tokenizer, "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output", False)
    model = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    return bool(tokenizer.clean_up_tokenization_spaces) and (forced or type(model).__name__ != "BPE")


def _shared(a: str, b: str) -> int:
    """Return the length of what both begin with."""
    return next((n for n, (one, other) in enumerate(zip(a, b, strict=False)) if one != other), min(len(a), len(b)))


class TextStream:
    """Incremental decoding: the pieces that `push` and `flush` return add up to the text of the whole answer.

    That is what `decode` makes of prompt and answer, without the part that it makes of the prompt alone. Each piece is what
    `decode` says of all tokens so far, less what was returned before, and less an end that tokens to come may still change:
    a character whose last byte is missing, a run of byte tokens (decoded as a whole, and all of it to U+FFFD when one byte
    does not fit), a space that cleaning up may take away, and with tokenizers written in Python whatever the last token has
    changed or added.
    """

    def __init__(self, tokenizer: TextTokenizer, before: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._ids = list(before)[-_CONTEXT:]
        self._given = self._last = self._before = tokenizer.decode(self._ids) if self._ids else ""

    def push(self, token: int) -> str:
        """Return the text that is sure after this token."""
        self._ids.append(token)
        text = self._tokenizer.decode(self._ids)
        if text != self._last:
            self._before, self._last = self._last, text
        sure = self._sure(text)
        return self._advance(text[: sure if self._tokenizer.is_fast else min(sure, _shared(text, self._before))])

    def flush(self) -> str:
        """Return the text that still waited."""
        return self._advance(self._tokenizer.decode(self._ids))

    def pending(self) -> str:
        """Return the text that still waits."""
        given = self._given
        text = self.flush()
        self._given = given
        return text

    def hidden(self, token: int) -> str:
        """See `TextTokenizer.hidden`."""
        return self._tokenizer.hidden(token)

    def _sure(self, text: str) -> int:
        """Return the length of the beginning of the decoded text that no further token changes."""
        end = len(text)
        run = self._run()
        if run is not None:
            end = _shared(text, self._tokenizer.decode(self._ids[:run]))
        least = max(0, end - _UNFINISHED_MOST)
        while end > least and text[end - 1] == _UNFINISHED:
            end -= 1
        while self._tokenizer.cleans and end and text[end - 1] in _CLEANED:
            end -= 1
        return end

    def _run(self) -> int | None:
        """Return where the byte tokens begin that the tokens end with, special ones aside."""
        first = None
        for place in range(len(self._ids) - 1, -1, -1):
            if self._tokenizer.is_byte(self._ids[place]):
                first = place
            elif not self._tokenizer.hidden(self._ids[place]):
                break
        return first

    def _advance(self, text: str) -> str:
        if self._given.startswith(text):
            return ""
        piece = text[_shared(self._given, text) :]
        self._given = text
        return piece
