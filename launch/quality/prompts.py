"""Prompts that policies are compared on: the recall task, records at a given depth, windows of a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from models.architecture import Architecture
from models.checkpoint import Checkpoint
from models.recall import documents as docs
from mpc.errors import ConfigurationError

SHORTEST = docs.RECORD_TOKENS + 1 + docs.QUESTION_TOKENS
LONGEST = docs.MAX_DOCUMENT_TOKENS + docs.QUESTION_TOKENS


@dataclass(frozen=True)
class Prompt:
    """ids: tokens. wanted: the tokens that a right answer starts with; None where nothing is right or wrong."""

    ids: list[int]
    wanted: list[int] | None = None


def knows_recall(checkpoint: Checkpoint) -> bool:
    """Whether the checkpoint's tokenizer is the one of the recall task."""
    sample = " ".join(docs.VOCABULARY[2:])
    return checkpoint.architecture.vocabulary == len(docs.VOCABULARY) and checkpoint.tokenizer.encode(sample) == docs.encode(
        sample
    )


def check_length(architecture: Architecture, length: int, new_tokens: int, recall: bool) -> None:
    """Raise `ConfigurationError` unless the model has the positions and, for the recall task, a document can be as long."""
    needed = length + new_tokens - 1
    if length < 1 or needed > architecture.positions:
        raise ConfigurationError(
            f"--lengths {length}: with {new_tokens} new tokens needs {needed} positions, the model has "
            f"{architecture.positions}; use lengths from 1 to {architecture.positions - new_tokens + 1}"
        )
    if recall and not SHORTEST <= length <= LONGEST:
        raise ConfigurationError(f"--lengths {length}: prompts of the recall task have {SHORTEST} to {LONGEST} tokens")


def recall_prompts(length: int, count: int, seed: int) -> list[Prompt]:
    """Held-out documents with a question each, `length` tokens together."""
    return [_prompt(case.prompt, case.answer) for case in docs.evaluation_cases(length, count, seed)]


def needle_prompts(length: int, depth: float, count: int, seed: int) -> list[Prompt]:
    """As `recall_prompts`, the asked record at `depth`: 0 is the document's first, 1 its last. The documents are the same
    at every depth."""
    rng = docs.make_rng(seed, docs.HELD_OUT)
    found = []
    for _ in range(count):
        document = docs.make_document(rng, length - docs.QUESTION_TOKENS)
        record = document.records[round(depth * (len(document.records) - 1))]
        found.append(_prompt(f"{document.text} {docs.QUESTION} {record.name} {docs.COLON}", record.value))
    return found


def _prompt(text: str, answer: str) -> Prompt:
    return Prompt(docs.encode(text), docs.encode(answer))


def read_text(checkpoint: Checkpoint, path: Path) -> list[int]:
    """A text file's tokens. Raises `ConfigurationError` when it cannot be read or has none."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"--text {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"--text {path} is not a UTF-8 text file") from None
    ids = checkpoint.tokenizer.encode(text) if text.strip() else []
    if not ids:
        raise ConfigurationError(f"--text {path} is empty; give a file with a text")
    return ids


def text_part(architecture: Architecture, ids: Sequence[int], length: int, most: int) -> list[int]:
    """A prompt of `length` tokens and the up to `most` tokens behind it that perplexity is of."""
    room = min(most, architecture.positions - length + 1)
    part = list(ids[: length + room])
    if room < 1 or len(part) <= length:
        raise ConfigurationError(
            f"--text: {len(ids)} tokens do not reach behind a prompt of {length} (--lengths); "
            "use a longer text or smaller lengths"
        )
    return part


def text_prompts(ids: Sequence[int], length: int, count: int) -> list[Prompt]:
    """Up to `count` windows of the text, spread evenly from its start to its end."""
    last = len(ids) - length
    starts = sorted({round(n * last / max(1, count - 1)) for n in range(count)})
    return [Prompt(list(ids[start : start + length])) for start in starts]
