"""Answers in OpenAI's formats: completions and chat completions, whole or in chunks of a stream."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any
from uuid import uuid4

from launch.serve.gateway.catalogue import Served
from launch.serve.gateway.generation import Done

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

    def whole(self, text: str, done: Done) -> dict[str, Any]:
        """Return the answer to a request without a stream."""
        content = {"message": {"role": "assistant", "content": text, "refusal": None}} if self.chat else {"text": text}
        choice = {"index": 0, **content, "logprobs": None, "finish_reason": done.reason}
        return {**self._head(False), "choices": [choice], "usage": done.usage(), **_findings(done)}

    def opening(self) -> bytes:
        """Return what a stream begins with."""
        return self._chunk({"role": "assistant", "content": ""}) if self.chat else b""

    def piece(self, text: str) -> bytes:
        """Return the event of a piece of text."""
        return self._chunk({"content": text} if self.chat else text)

    def closing(self, done: Done) -> bytes:
        """Return the last events: why the answer ended, the counts if they are wanted, and the end."""
        out = self._chunk({} if self.chat else "", done.reason, _findings(done))
        if self.usage:
            out += _event({**self._head(True), "choices": [], "usage": done.usage()})
        return out + DONE

    def _head(self, chunk: bool) -> dict[str, Any]:
        kind = ("chat.completion" + ".chunk" * chunk) if self.chat else "text_completion"
        return {"id": self.name, "object": kind, "created": self.created, "model": self.model}

    def _chunk(self, content: Any, reason: str | None = None, more: Mapping[str, Any] = MappingProxyType({})) -> bytes:
        choice = {"index": 0, ("delta" if self.chat else "text"): content, "logprobs": None, "finish_reason": reason}
        return _event({**self._head(True), "choices": [choice], **({"usage": None} if self.usage else {}), **more})


def _findings(done: Done) -> dict[str, Any]:
    """Return what stands beside OpenAI's fields: what left its range, if the answer ends because of that, and how many
    choices of an expert found no place, if any."""
    found = [finding.to_json() for finding in done.result.findings]
    said = {"range": found, "dropped_choices": done.result.dropped_choices}
    told = {key: value for key, value in said.items() if value}
    return {"mpcache": told} if told else {}


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def error_event(body: dict[str, Any]) -> bytes:
    """Return the event of an error that comes after a stream has begun."""
    return _event(body)


def model_body(served: Served) -> dict[str, Any]:
    """Return a model in OpenAI's format."""
    return {"id": served.name, "object": "model", "created": served.created, "owned_by": served.reference.owner}
