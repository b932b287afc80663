"""A conversation as one prompt, by the checkpoint's own chat template (Jinja in a sandbox, rendered by transformers)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from models.tokenizer.text import TextTokenizer
from mpc.errors import CheckpointError, ConfigurationError

_FIRST, _ANSWER, _SECOND = "first question", "one answer", "second question"


@dataclass(frozen=True)
class TurnEnd:
    """What ends the assistant's turn: token ids, and texts where the template marks it with ordinary text."""

    ids: tuple[int, ...] = ()
    texts: list[str] = field(default_factory=list)


class ChatTemplate:
    """Renders messages. The text's special tokens are written out, so encode it with `special=False`."""

    def __init__(self, words: TextTokenizer) -> None:
        self._words = words

    @classmethod
    def load(cls, directory: Path, words: TextTokenizer | None = None) -> ChatTemplate:
        """Return the template of a tokenizer's folder; words: its tokenizer, if that was read before.

        Raises `CheckpointError` when there is none.
        """
        words = TextTokenizer.load(directory, ()) if words is None else words
        if not words.transformers.chat_template:
            raise CheckpointError(
                f"{directory}: no chat template in tokenizer_config.json or chat_template.jinja; the model was not made "
                "for conversations: ask for a completion of a prompt, or add the template it was trained with"
            )
        return cls(words)

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Return the prompt whose continuation is the assistant's answer. messages: "role" and "content" each; secret.

        Raises `ConfigurationError` when the template refuses them (an unknown role or order, say).
        """
        if not messages:
            raise ConfigurationError("the conversation is empty; give at least one message")
        return self._render([dict(m) for m in messages], True)

    def _render(self, messages: list[dict[str, Any]], answer: bool) -> str:
        from jinja2 import TemplateError

        try:
            text = self._words.transformers.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer)
        except TemplateError as error:
            raise ConfigurationError(f"the model's chat template refuses these messages: {error.message}") from None
        return str(text)

    @cached_property
    def turn_end(self) -> TurnEnd:
        """Return what the template writes after an answer, which need not be the model's end-of-text token.

        Found in a conversation that goes on after an answer: the first added token behind the answer, or the ordinary text
        that stands before it or before the next question ("\\nUser:", say). Nothing where the answer is not in the rendered
        text or the template refuses the conversation.
        """
        roles = (("user", _FIRST), ("assistant", _ANSWER), ("user", _SECOND))
        try:
            text = self._render([{"role": role, "content": content} for role, content in roles], False)
        except ConfigurationError:
            return TurnEnd()
        _, found, rest = text.rpartition(_ANSWER)
        between, more, _ = rest.partition(_SECOND)
        if not found or not more:
            return TurnEnd()
        plain = between
        for token, added in self._words.added():
            place = between.find(added) if added.strip() else -1
            if place >= 0 and not between[:place].strip():
                return TurnEnd((token,))
            plain = plain[:place] if 0 <= place < len(plain) else plain
        names_a_turn = any(c.isalnum() for c in plain)  # a line break or a bracket alone may well be part of an answer
        return TurnEnd((), [plain.rstrip()]) if names_a_turn else TurnEnd()
