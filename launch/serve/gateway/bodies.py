"""Answers in OpenAI's formats: completions and chat completions, whole or in chunks of a stream."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any
from uuid import uuid4

from launch.serve.gateway.catalogue import Served
from launch.serve.gateway.generation import Done, usage
from launch.serve.gateway.logits import chat_record, completion_record

DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Shape:
    """How answers to one request look. chat: they are messages. usage: chunks say null, and the last one says the counts."""

    chat: bool
    model: str
    usage: bool = False
    id: str = field(default_factory=lambda: uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def name(self) -> str:
        """The answer's id."""
        return f"{'chatcmpl' if self.chat else 'cmpl'}-{self.id}"

    def whole(self, texts: Sequence[str], all_of_them: Sequence[Done]) -> dict[str, Any]:
        """Return the answers to a request without a stream."""
        choices = [self._choice(text, done) for text, done in zip(texts, all_of_them, strict=True)]
        return {**self._head(False), "choices": choices, "usage": usage(all_of_them), **_findings(all_of_them)}

    def _choice(self, text: str, done: Done) -> dict[str, Any]:
        content = {"message": {"role": "assistant", "content": text, "refusal": None}} if self.chat else {"text": text}
        told: dict[str, Any] | None = None
        if done.probabilities is not None and self.chat:
            told = chat_record(done.probabilities)
        elif done.probabilities is not None:
            told = completion_record(done.probabilities, len(done.echo))
        return {"index": done.index, **content, "logprobs": told, "finish_reason": done.reason}

    def opening(self, answers: int) -> bytes:
        """Return what a stream of so many answers begins with."""
        if not self.chat:
            return b""
        return b"".join(self._chunk(index, {"role": "assistant", "content": ""}) for index in range(answers))

    def piece(self, index: int, text: str) -> bytes:
        """Return the event of a piece of an answer's text."""
        return self._chunk(index, {"content": text} if self.chat else text)

    def ended(self, done: Done) -> bytes:
        """Return the event that says why an answer ended."""
        return self._chunk(done.index, {} if self.chat else "", done.reason, _findings([done]))

    def closing(self, texts: Sequence[str], all_of_them: Sequence[Done]) -> bytes:
        """Return the last events: the counts if they are wanted, and the end."""
        out = b""
        if self.usage:
            out = _event({**self._head(True), "choices": [], "usage": usage(all_of_them)})
        return out + DONE

    def error(self, body: dict[str, Any]) -> bytes:
        """Return the event of an error that comes after a stream has begun."""
        return _event(body)

    def _head(self, chunk: bool) -> dict[str, Any]:
        kind = ("chat.completion" + ".chunk" * chunk) if self.chat else "text_completion"
        return {"id": self.name, "object": kind, "created": self.created, "model": self.model}

    def _chunk(
        self, index: int, content: Any, reason: str | None = None, more: Mapping[str, Any] = MappingProxyType({})
    ) -> bytes:
        choice = {"index": index, ("delta" if self.chat else "text"): content, "logprobs": None, "finish_reason": reason}
        return _event({**self._head(True), "choices": [choice], **({"usage": None} if self.usage else {}), **more})


def _findings(all_of_them: Sequence[Done]) -> dict[str, Any]:
    """Return what stands beside OpenAI's fields: what left its range, if the answer ends because of that, and how many
    choices of an expert found no place, if any."""
    found = [finding.to_json() for done in all_of_them for finding in done.result.findings]
    said = {"range": found, "dropped_choices": sum(done.result.dropped_choices or 0 for done in all_of_them)}
    told = {key: value for key, value in said.items() if value}
    return {"mpcache": told} if told else {}


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def model_body(served: Served) -> dict[str, Any]:
    """Return a model in OpenAI's format."""
    return {"id": served.name, "object": "model", "created": served.created, "owned_by": served.reference.owner}
