"""Texts for an encoder, and what its outputs mean: embeddings, classes, labels of tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor

from models.config import read_json
from models.encoder_architecture import EncoderArchitecture
from models.encoding import EncoderInput, padded_length
from models.labels import Labels, read_labels
from models.outputs import Output
from models.tokenizer.text import EncodedText, TextTokenizer
from mpc.errors import ConfigurationError

Texts = str | Sequence[str | tuple[str, str]]
"""A text or several; a pair of texts is read as two parts of one."""
Pooling = Literal["mean", "cls", "pooled"]

POOLING = Path("1_Pooling") / "config.json"
MODULES = "modules.json"


@dataclass(frozen=True)
class Classification:
    """label: the likeliest one. score: its score; scores: of all labels. Secret."""

    label: str
    score: float
    scores: dict[str, float] = field(repr=False)


@dataclass(frozen=True)
class LabelledToken(Classification):
    """A token's label, or a word's. start, end: where it stands in its text."""

    start: int
    end: int


def as_texts(texts: Texts) -> list[tuple[str, str | None]]:
    """Return texts as (text, second part or None). Raises `ConfigurationError` for what is none."""
    if not isinstance(texts, Iterable):
        raise ConfigurationError(f"texts: a text or several are needed, got {type(texts).__name__}")
    found: list[tuple[str, str | None]] = []
    for number, one in enumerate([texts] if isinstance(texts, str) else texts, 1):
        parts = (one, None) if isinstance(one, str) else tuple(one) if isinstance(one, Sequence) else ()
        if len(parts) != 2 or not isinstance(parts[0], str) or not isinstance(parts[1], str | None):
            raise ConfigurationError(f"text {number} is neither a text nor a pair of texts")
        if not parts[0]:
            raise ConfigurationError(f"text {number} is empty")
        found.append(cast("tuple[str, str | None]", parts))
    if not found:
        raise ConfigurationError("no text was given")
    return found


class TextReader:
    """Reads texts with a checkpoint's tokenizer for an encoder, and says what its outputs mean.

    folder: of config.json and the tokenizer, for names of labels and how a sentence encoder pools.
    """

    def __init__(self, architecture: EncoderArchitecture, tokenizer: TextTokenizer, folder: Path) -> None:
        self.architecture = architecture
        self._tokenizer = tokenizer
        self._folder = folder

    def read(self, texts: Texts) -> list[EncodedText]:
        """Return the tokens of each text. Raises `ConfigurationError` naming the number of one that is too long
        or holds a padding token that the model does not count."""
        found = []
        for number, (text, second) in enumerate(as_texts(texts), 1):
            encoded = self._tokenizer.encode_pair(text, second)
            try:
                padded_length(len(encoded.ids), self.architecture.positions)
                self.architecture.check_text(encoded.ids)
            except ConfigurationError as error:
                raise ConfigurationError(f"text {number}: {error}") from None
            found.append(encoded)
        return found

    def input(self, encoded: EncodedText) -> EncoderInput:
        """Return what a session takes of a text."""
        return EncoderInput(encoded.ids, encoded.types if self.architecture.types > 1 else ())

    # ---- embeddings --------------------------------------------------------------------------------------------------
    def pooling(self, asked: str | None) -> Output:
        """Return the output that is a text's embedding: the one asked for, else the one that the folder of a sentence
        encoder names, else the mean. Raises `ConfigurationError`, `CheckpointError`."""
        if asked is None and (self._folder / POOLING).exists():
            values = read_json(self._folder / POOLING)
            chosen = [key for key, value in values.items() if key.startswith("pooling_mode_") and value is True]
            known: dict[str, Output] = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
            if len(chosen) != 1 or chosen[0] not in known:
                raise ConfigurationError(
                    f"{self._folder / POOLING}: {', '.join(chosen) or 'no mode'} is not supported; give pooling='mean' or "
                    "'cls'"
                )
            return known[chosen[0]]
        output = asked or "mean"
        if output not in ("mean", "cls", "pooled"):
            raise ConfigurationError(f"pooling = {output!r}; known: mean, cls, pooled")
        self.architecture.check_output(output)
        return cast(Output, output)

    def normalises(self, asked: bool | None) -> bool:
        """Return whether embeddings have the length 1: as asked, else as the folder of a sentence encoder says; without one
        they have."""
        modules = self._folder / MODULES
        if asked is not None or not modules.exists():
            return asked is not False
        return "Normalize" in modules.read_text(encoding="utf-8")

    # ---- labels ------------------------------------------------------------------------------------------------------
    def labels(self, names: Sequence[str] | None = None, words: bool = False) -> Labels:
        """Return what the head's outputs are called. words: labels of words are asked for. Raises `ConfigurationError` for a
        model without classes or labels, for words of one without labels of tokens, and for a tokenizer that does not say
        where tokens stand; `CheckpointError` where config.json does not name them."""
        a = self.architecture
        if a.labels is None:
            raise ConfigurationError(
                f"{self._folder}: labels are missing: this '{a.family}' checkpoint has the head '{a.head}', no classes and "
                "no labels of tokens; use a checkpoint for sequence or token classification, or embed"
            )
        if words and a.head != "labels":
            raise ConfigurationError(f"words: this checkpoint has the head '{a.head}', no labels of tokens; leave it out")
        if a.head == "labels" and not self._tokenizer.is_fast:
            raise ConfigurationError(
                f"{self._folder}: the tokenizer does not say where in a text its tokens stand, so their labels have no "
                "place; give a folder with tokenizer.json"
            )
        return read_labels(self._folder, a.labels, names)


def unit(rows: Tensor) -> Tensor:
    """Return rows [n, D] of length 1."""
    return torch.nn.functional.normalize(rows, dim=-1)


def classified(logits: Tensor, labels: Labels) -> Classification:
    """Return the class of logits [labels]."""
    scores = labels.score(logits)
    best = int(scores.argmax())
    named = {name: float(score) for name, score in zip(labels.names, scores, strict=True)}
    return Classification(labels.names[best], float(scores[best]), named)


def labelled(logits: Tensor, encoded: EncodedText, labels: Labels, words: bool = False) -> list[LabelledToken]:
    """Return the labels of a text's tokens but the special ones, of logits [T, labels]; with `words` those of its words,
    each its first token's, which is the one that such a head is trained on."""
    found: list[LabelledToken] = []
    before: int | None = None
    for row, (start, end), word in zip(logits, encoded.places, encoded.words, strict=True):
        if word is None:
            continue
        if words and word == before:
            found[-1] = replace(found[-1], end=end)
        else:
            one = classified(row, labels)
            found.append(LabelledToken(one.label, one.score, one.scores, start, end))
        before = word
    return found


def as_record(found: Classification | list[LabelledToken]) -> dict[str, Any]:
    """Return an answer as plain numbers and texts, for JSON."""
    if isinstance(found, Classification):
        return {"label": found.label, "score": found.score, "scores": found.scores}
    tokens = [{"label": t.label, "score": t.score, "start": t.start, "end": t.end} for t in found]
    return {"tokens": tokens}


def stacked(rows: Sequence[Tensor], normalised: bool) -> Tensor:
    """Return embeddings [n, D] as float32."""
    found = torch.cat(list(rows))
    return (unit(found) if normalised else found).to(torch.float32)
