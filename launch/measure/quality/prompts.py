"""Prompts that policies are compared on: the recall tasks, records at a given depth, windows of a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from launch.terminal.texts import read_text_file
from models.architecture import Architecture
from models.checkpoint import Checkpoint
from models.recall import documents as codes
from models.recall import questions as lists
from mpc.errors import ConfigurationError


@dataclass(frozen=True)
class Prompt:
    """ids: tokens. wanted: the tokens that a right answer starts with, None where nothing is right or wrong. names: where a
    prompt asks for a list, the names asked for; wanted are their values then. answer: the right one in full; places: of what
    counts in it, those of each question."""

    ids: list[int]
    wanted: list[int] | None = None
    names: list[int] | None = None
    answer: list[int] | None = None
    places: Sequence[Sequence[int]] = ()

    @property
    def questions(self) -> int:
        """Return how many answers are counted."""
        return 0 if self.wanted is None else 1 if self.names is None else len(self.names)

    def right(self, given: Sequence[int]) -> int:
        """Return how many of the questions a generated answer answers right."""
        if self.wanted is None:
            return 0
        if self.names is None:
            return int(list(given[: len(self.wanted)]) == self.wanted)
        return lists.recalled(self.names, self.wanted, given)


TURNS = 3
"""Lists of different names in a conversation."""


class Codes:
    """Four digits of one record, `models.recall.documents`. A depth counts records, 0 the first, 1 the last."""

    name: ClassVar[str] = "codes"
    shortest = codes.RECORD_TOKENS + 1 + codes.QUESTION_TOKENS
    longest = codes.MAX_DOCUMENT_TOKENS + codes.QUESTION_TOKENS
    vocabulary = codes.VOCABULARY
    token_ids = codes.TOKEN_IDS

    def answer_tokens(self, length: int) -> int:
        """Return the tokens of an answer, the end of text among them."""
        return codes.ANSWER_TOKENS

    def least_tokens(self, length: int) -> int:
        """Return the number of tokens without which no answer is right."""
        return codes.VALUE_TOKENS

    def prompts(self, length: int, count: int, seed: int, depth: float | None = None) -> list[Prompt]:
        """Return held-out documents with a question each, `length` tokens together; with a depth the same documents at
        each."""
        if depth is None:
            return [self._prompt(case.prompt, case.answer) for case in codes.evaluation_cases(length, count, seed)]
        rng = codes.make_rng(seed, codes.HELD_OUT)
        found = []
        for _ in range(count):
            document = codes.make_document(rng, length - codes.QUESTION_TOKENS)
            record = document.records[round(depth * (len(document.records) - 1))]
            found.append(self._prompt(f"{document.text} {codes.QUESTION} {record.name} {codes.COLON}", record.value))
        return found

    def _prompt(self, text: str, answer: str) -> Prompt:
        wanted = codes.encode(answer)
        return Prompt(codes.encode(text), wanted, answer=wanted, places=[range(len(wanted))])


class Lists:
    """Values of a list of names, `models.recall.questions`. A depth counts tokens of the document without asked records."""

    name: ClassVar[str] = "question lists"
    shortest = lists.SHORTEST
    longest = lists.LONGEST
    vocabulary = lists.VOCABULARY
    token_ids = lists.TOKEN_IDS

    def answer_tokens(self, length: int) -> int:
        """Return the tokens of an answer, the end of text among them."""
        return lists.answer_tokens(length)

    def least_tokens(self, length: int) -> int:
        """Return the number of tokens without which no answer is right."""
        return lists.answer_tokens(length) - 1

    def prompts(self, length: int, count: int, seed: int, depth: float | None = None) -> list[Prompt]:
        """Return held-out documents with a list each, `length` tokens together; with a depth all asked records lie there."""
        cases = lists.evaluation_cases(length, count, seed, depth)
        ids = lists.TOKEN_IDS
        found = []
        for case in cases:
            values, names = [ids[v] for v in case.values], [ids[n] for n in case.names]
            places = [[lists.ANSWER_TOKENS_EACH * n + 1] for n in range(len(names))]
            found.append(Prompt(lists.encode(case.prompt), values, names, lists.encode(case.answer), places))
        return found

    def conversations(self, length: int, count: int, seed: int) -> list[list[Prompt]]:
        """Return held-out documents, of each the turns of a conversation: the document with a list of a third of its names,
        two lists of the other names, and the first list again. Only the first turn's ids have the document, so that those of
        all turns and their answers are about `length` tokens."""
        ids = lists.TOKEN_IDS
        found = []
        for prompt in self.prompts(length, count, seed):
            assert prompt.names is not None
            assert prompt.wanted is not None
            each = len(prompt.names) // TURNS
            document = prompt.ids[: -lists.LIST_TOKENS - 2 * len(prompt.names)]
            turns: list[Prompt] = []
            for start in [*range(0, TURNS * each, each), 0]:
                names = prompt.names[start : start + each]
                asking = [ids[lists.LIST], *(x for name in names for x in (name, ids[codes.QUESTION]))]
                asking += [ids[lists.END], names[0]]
                turns.append(Prompt(asking if turns else [*document, *asking], prompt.wanted[start : start + each], names))
            found.append(turns)
        return found


RecallTask = Codes | Lists
TASKS: tuple[RecallTask, ...] = (Codes(), Lists())


def task_of(checkpoint: Checkpoint) -> RecallTask | None:
    """Return the recall task whose tokenizer the checkpoint has; None for any other tokenizer."""
    for task in TASKS:
        if checkpoint.architecture.vocabulary == len(task.vocabulary):
            words = task.vocabulary[2:]
            if checkpoint.tokenizer.encode(" ".join(words)) == [task.token_ids[word] for word in words]:
                return task
    return None


def check_length(architecture: Architecture, length: int, new_tokens: int, task: RecallTask | None) -> None:
    """Raise `ConfigurationError` unless the model has the positions and, for a recall task, a prompt can be as long."""
    needed = length + new_tokens - 1
    if length < 1 or needed > architecture.positions:
        raise ConfigurationError(
            f"--lengths {length}: with {new_tokens} new tokens needs {needed} positions, the model has "
            f"{architecture.positions}; use lengths from 1 to {architecture.positions - new_tokens + 1}"
        )
    if task is not None and not task.shortest <= length <= task.longest:
        raise ConfigurationError(
            f"--lengths {length}: prompts of the recall task have {task.shortest} to {task.longest} tokens"
        )


def read_text(checkpoint: Checkpoint, path: Path) -> list[int]:
    """Return a text file's tokens. Raises `ConfigurationError` when it cannot be read or has none."""
    text = read_text_file(path, "--text")
    ids = checkpoint.tokenizer.encode(text) if text.strip() else []
    if not ids:
        raise ConfigurationError(f"--text {path} is empty; give a file with a text")
    return ids


def text_part(architecture: Architecture, ids: Sequence[int], length: int, most: int) -> list[int]:
    """Return a prompt of `length` tokens and the up to `most` tokens behind it that perplexity is of."""
    room = min(most, architecture.positions - length + 1)
    part = list(ids[: length + room])
    if room < 1 or len(part) <= length:
        raise ConfigurationError(
            f"--text: {len(ids)} tokens do not reach behind a prompt of {length} (--lengths); "
            "use a longer text or smaller lengths"
        )
    return part


def text_prompts(ids: Sequence[int], length: int, count: int) -> list[Prompt]:
    """Return up to `count` windows of the text, spread evenly from its start to its end."""
    last = len(ids) - length
    starts = sorted({round(n * last / max(1, count - 1)) for n in range(count)})
    return [Prompt(list(ids[start : start + length])) for start in starts]
