"""Answers in OpenAI's formats: completions and chat completions, whole or in chunks of a stream."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any
from uuid import uuid4

from launch.serve.gateway.catalogue import Served
from launch.serve.gateway.errors import ApiError
from launch.serve.gateway.formats import Call
from launch.serve.gateway.generation import Answer, Done, Text
from launch.serve.gateway.logits import TokenProbability, characters, chat_record, completion_record

DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Choices:
    """How answers to one request look. chat: they are messages. usage: chunks say null, and the last one says the counts.
    call: the function that answers are arguments of."""

    chat: bool
    model: str
    usage: bool = False
    call: Call | None = None
    id: str = field(default_factory=lambda: uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def name(self) -> str:
        """The answer's id."""
        return f"{'chatcmpl' if self.chat else 'cmpl'}-{self.id}"

    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """Return the answers to a request without a stream."""
        choices = [self._choice(index, answer) for index, answer in enumerate(answers)]
        return {**self._head(False), "choices": choices, "usage": usage(answers), **findings(answers)}

    def _choice(self, index: int, answer: Answer) -> dict[str, Any]:
        assert answer.done is not None
        told: dict[str, Any] | None = None
        if answer.probabilities is not None:
            told = self._probabilities(answer.probabilities)
        content = {"message": self._message(answer.text)} if self.chat else {"text": answer.text}
        return {"index": index, **content, "logprobs": told, "finish_reason": self._reason(answer.done)}

    def _message(self, text: str) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        if self.call is None:
            return message
        return {**message, "content": None, "tool_calls": [{**self._called(), "function": self._function(text)}]}

    def _called(self) -> dict[str, Any]:
        return {"id": f"call_{self.id}", "type": "function"}

    def _function(self, arguments: str) -> dict[str, str]:
        assert self.call is not None
        return {"name": self.call.name, "arguments": arguments}

    def _reason(self, done: Done) -> str:
        """Return why it ended; a call that was not chosen by name ends in "tool_calls", as OpenAI's do."""
        return "tool_calls" if done.reason == "stop" and self.call is not None and not self.call.by_name else done.reason

    def _probabilities(self, told: Sequence[TokenProbability], start: int = 0) -> dict[str, Any]:
        return chat_record(told) if self.chat else completion_record(told, start)

    def opening(self, answers: Sequence[Answer]) -> bytes:
        """Return what a stream of answers begins with."""
        if not self.chat:
            return b""
        first: dict[str, Any] = {"role": "assistant", "content": ""}
        if self.call is not None:
            first |= {"content": None, "tool_calls": [{"index": 0, **self._called(), "function": self._function("")}]}
        return b"".join(self._chunk(index, first) for index in range(len(answers)))

    def piece(self, event: Text, answer: Answer) -> bytes:
        """Return the event of a piece of an answer's text."""
        content: Any = event.text
        if self.call is not None:
            content = {"tool_calls": [{"index": 0, "function": {"arguments": event.text}}]}
        elif self.chat:
            content = {"content": event.text}
        told = None
        if event.probability is not None:
            said = characters(answer.probabilities or ())
            told = self._probabilities([event.probability], said)
        return self._chunk(event.index, content, logprobs=told)

    def ended(self, done: Done, answer: Answer) -> bytes:
        """Return the event that says why an answer ended."""
        over = replace(answer, done=done)
        return self._chunk(done.index, {} if self.chat else "", self._reason(done), findings([over]))

    def closing(self, answers: Sequence[Answer]) -> bytes:
        """Return the last events: the counts if they are wanted, and the end."""
        out = b""
        if self.usage:
            out = event_bytes({**self._head(True), "choices": [], "usage": usage(answers)})
        return out + DONE

    def error(self, problem: ApiError) -> bytes:
        """Return the event of an error that comes after a stream has begun."""
        return event_bytes(problem.body())

    def _head(self, chunk: bool) -> dict[str, Any]:
        kind = ("chat.completion" + ".chunk" * chunk) if self.chat else "text_completion"
        return {"id": self.name, "object": kind, "created": self.created, "model": self.model}

    def _chunk(
        self,
        index: int,
        content: Any,
        reason: str | None = None,
        more: Mapping[str, Any] = MappingProxyType({}),
        logprobs: dict[str, Any] | None = None,
    ) -> bytes:
        choice = {"index": index, ("delta" if self.chat else "text"): content, "logprobs": logprobs, "finish_reason": reason}
        return event_bytes({**self._head(True), "choices": [choice], **({"usage": None} if self.usage else {}), **more})


def cached_tokens(answers: Sequence[Answer]) -> int:
    """Return how many tokens of prompts were those of registered prefixes."""
    return sum(answer.done.cached_tokens for answer in answers if answer.done)


def usage(answers: Sequence[Answer]) -> dict[str, Any]:
    """Return OpenAI's counts of tokens; an end-of-text token counts."""
    prompt = sum(answer.done.prompt_tokens for answer in answers if answer.done)
    new = sum(len(answer.done.result.tokens) for answer in answers if answer.done)
    counts = {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}
    cached = cached_tokens(answers)
    return {**counts, "prompt_tokens_details": {"cached_tokens": cached}} if cached else counts


def findings(answers: Sequence[Answer]) -> dict[str, Any]:
    """Return what stands beside OpenAI's fields: what left its range, if the answer ends because of that, and how many
    choices of an expert found no place, if any."""
    results = [answer.done.result for answer in answers if answer.done is not None]
    found = [finding.to_json() for result in results for finding in result.findings]
    said = {"range": found, "dropped_choices": sum(result.dropped_choices or 0 for result in results)}
    told = {key: value for key, value in said.items() if value}
    return {"mpcache": told} if told else {}


def event_bytes(value: dict[str, Any]) -> bytes:
    """Return a server-sent event."""
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def model_body(served: Served) -> dict[str, Any]:
    """Return a model in OpenAI's format."""
    return {"id": served.name, "object": "model", "created": served.created, "owned_by": served.reference.owner}
