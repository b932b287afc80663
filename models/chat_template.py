"""A conversation as one prompt, by the checkpoint's own chat template (Jinja in a sandbox, rendered by transformers)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mpc.errors import CheckpointError, ConfigurationError


class ChatTemplate:
    """Renders messages. The text's special tokens are written out, so encode it with `special=False`."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    @classmethod
    def load(cls, directory: Path) -> ChatTemplate:
        """The template of a tokenizer's folder. Raises `CheckpointError` when there is none."""
        from transformers import AutoTokenizer, PreTrainedTokenizerFast

        kind = PreTrainedTokenizerFast if (directory / "tokenizer.json").exists() else AutoTokenizer
        try:
            tokenizer = kind.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, KeyError, ImportError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CheckpointError(f"{directory}: its tokenizer cannot be read ({reason}); add tokenizer.json") from None
        if not tokenizer.chat_template:
            raise CheckpointError(
                f"{directory}: no chat template in tokenizer_config.json or chat_template.jinja; the model was not made "
                "for conversations: ask for a completion of a prompt, or add the template it was trained with"
            )
        return cls(tokenizer)

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt whose continuation is the assistant's answer. messages: "role" and "content" each; secret.

        Raises `ConfigurationError` when the template refuses them (an unknown role or order, say).
        """
        from jinja2 import TemplateError

        if not messages:
            raise ConfigurationError("the conversation is empty; give at least one message")
        try:
            text = self._tokenizer.apply_chat_template(
                [dict(m) for m in messages], tokenize=False, add_generation_prompt=True
            )
        except TemplateError as error:
            raise ConfigurationError(f"the model's chat template refuses these messages: {error.message}") from None
        return str(text)
