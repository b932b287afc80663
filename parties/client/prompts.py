"""Prompts as their user writes them (a text, token ids, a conversation), as token ids that the parties compute on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from models.tokenizer.chat_template import ChatTemplate, TurnEnd
from models.tokenizer.text import TextTokenizer
from mpc.errors import ConfigurationError

Inputs = str | Sequence[int] | Tensor


@dataclass(frozen=True)
class Prompt:
    """A prompt. ids: its tokens. context: what the answer's text continues, nothing in a conversation. end: of its turn."""

    ids: list[int] = field(repr=False)
    context: list[int] = field(repr=False)
    end: TurnEnd = field(default_factory=TurnEnd)


class PromptReader:
    """Reads prompts with a checkpoint's tokenizer and chat template; without a tokenizer, token ids alone.

    folder: of the tokenizer, for the chat template.
    """

    def __init__(self, tokenizer: TextTokenizer | None, folder: Path | None) -> None:
        self._tokenizer = tokenizer
        self._folder = folder
        self._template: ChatTemplate | None = None

    @property
    def tokenizer(self) -> TextTokenizer:
        """The tokenizer. Raises `ConfigurationError` where there is none."""
        if self._tokenizer is None:
            raise ConfigurationError(
                "texts need a tokenizer: PrivateModel.connect(..., tokenizer=FOLDER), or give token ids"
            )
        return self._tokenizer

    def read(self, prompt: Any, begins: bool = True) -> Prompt:
        """Return the prompt of a text, of token ids ([T] or [1, T]) or of messages. begins: a text begins with the tokens
        that mark a beginning. Raises `ConfigurationError`."""
        if isinstance(prompt, str):
            ids = self.tokenizer.encode(prompt, special=begins)
            return Prompt(ids, ids)
        if isinstance(prompt, Tensor):
            if prompt.dim() > 2 or (prompt.dim() == 2 and prompt.shape[0] != 1):
                raise ConfigurationError(f"input_ids has shape {list(prompt.shape)}; give one prompt, [T] or [1, T]")
            ids = [int(token) for token in prompt.flatten().tolist()]
            return Prompt(ids, ids)
        found = list(prompt)
        if found and all(isinstance(message, Mapping) for message in found):
            return self._conversation(found)
        if not all(isinstance(token, int) for token in found):
            raise ConfigurationError("the prompt is no text, no list of token ids and no list of messages")
        return Prompt(found, found)

    def _conversation(self, messages: list[Any]) -> Prompt:
        words = self.tokenizer
        if self._template is None:
            assert self._folder is not None
            self._template = ChatTemplate.load(self._folder, words)
        ids = words.encode(self._template.render(messages), special=False)
        return Prompt(ids, [], self._template.turn_end)
