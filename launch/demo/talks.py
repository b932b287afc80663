"""Whom one talks to on the demo's page: a model, its tokenizer, and what the page's fields hold at first.

The shipped model has a document as the system's message, and is asked about it.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from models.recall.documents import ANSWER_TOKENS, QUESTION, Case
from protocols.registry import SuiteSpec

HINT = (
    "This small model knows nothing but to look codes up. Its document stands in the system's message; ask for the code of "
    "a name in it, such as {name}."
)
TEMPLATE = (
    "{% for m in messages if m.role == 'system' %}{{ m.content.strip() }} {% endfor %}"
    "{% set asked = messages[-1].content.strip() %}"
    "{% if asked.startswith('?') %}{{ asked }}{% else %}? {{ asked }} :{% endif %}"
)
FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Example:
    """What the page's fields hold at first, and a sentence about the model."""

    system: str = ""
    message: str = ""
    max_tokens: int = 32
    hint: str = ""


@dataclass(frozen=True)
class Talk:
    """model: a checkpoint's folder; words: the folder of its tokenizer and chat template; name: of the shared model.
    prompt_tokens: of the example's prompt, about."""

    model: Path
    words: Path
    name: str
    suite: SuiteSpec
    example: Example
    prompt_tokens: int


@contextmanager
def words_of(model: Path) -> Iterator[Path]:
    """Give a temporary folder with the model's tokenizer and a chat template, under which only the system's message and the
    newest question are read."""
    with tempfile.TemporaryDirectory(prefix="mpcache-words-") as folder:
        for name in FILES:
            shutil.copy(model / name, folder)
        (Path(folder) / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
        yield Path(folder)


def example(case: Case) -> Example:
    """Return what the page's fields hold at first: the case's document and question."""
    document, _, question = case.prompt.rpartition(QUESTION)
    name = question.replace(":", "").strip()
    return Example(document.strip(), name, ANSWER_TOKENS, HINT.format(name=name))
