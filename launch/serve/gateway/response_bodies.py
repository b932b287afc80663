"""Answers of /v1/responses, whole or as the events of a stream, numbered from 0."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from launch.serve.gateway.bodies import cached_tokens, findings, usage
from launch.serve.gateway.errors import ApiError
from launch.serve.gateway.formats import Call
from launch.serve.gateway.generation import Answer, Done, Text
from launch.serve.gateway.logits import TokenProbability


class ResponseShape:
    """How the answer to one request looks: one message of one text, or one call of a function. said: what it repeats of the
    request. call: the function that it is arguments of."""

    def __init__(self, said: dict[str, Any], call: Call | None) -> None:
        self._said = said
        self._call = call
        self._id = uuid4().hex
        self._created = int(time.time())
        self._events = 0

    @property
    def name(self) -> str:
        """The answer's id."""
        return f"resp_{self._id}"

    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """Return the body of an answer without a stream."""
        (answer,) = answers
        assert answer.done is not None
        counts = usage(answers)
        details: dict[str, Any] = {
            "input_tokens": counts["prompt_tokens"],
            "input_tokens_details": {"cached_tokens": cached_tokens(answers), "cache_write_tokens": 0},
            "output_tokens": counts["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": counts["total_tokens"],
        }
        ended = {"length": "max_output_tokens", "stop": None}.get(answer.done.reason, answer.done.reason)
        body = self._body(_status(answer), [self._item(answer)])
        why = None if ended is None else {"reason": ended}
        return {**body, "incomplete_details": why, "usage": details, **findings(answers)}

    def opening(self, answers: Sequence[Answer]) -> bytes:
        """Return what a stream begins with."""
        body, place = self._body("in_progress", []), {"output_index": 0}
        out = self._event("response.created", response=body) + self._event("response.in_progress", response=body)
        out += self._event("response.output_item.added", **place, item=self._item(None))
        if self._call is None:
            out += self._event("response.content_part.added", **self._place(), content_index=0, part=_part("", ()))
        return out

    def piece(self, event: Text, answer: Answer) -> bytes:
        """Return the event of a piece of the answer."""
        if self._call is not None:
            return self._event("response.function_call_arguments.delta", **self._place(), delta=event.text)
        told = [] if event.probability is None else [event.probability.chat()]
        more = {"content_index": 0, "delta": event.text, "logprobs": told}
        return self._event("response.output_text.delta", **self._place(), **more)

    def ended(self, done: Done, answer: Answer) -> bytes:
        """Return nothing: `closing` says why the one answer ended."""
        return b""

    def closing(self, answers: Sequence[Answer]) -> bytes:
        """Return the last events: the whole text, part, item and answer."""
        (answer,) = answers
        item, place = self._item(answer), self._place()
        if self._call is not None:
            out = self._event("response.function_call_arguments.done", **place, name=item["name"], arguments=answer.text)
        else:
            part = item["content"][0]
            told = {"content_index": 0, "text": answer.text, "logprobs": part["logprobs"]}
            out = self._event("response.output_text.done", **place, **told)
            out += self._event("response.content_part.done", **place, content_index=0, part=part)
        out += self._event("response.output_item.done", output_index=0, item=item)
        return out + self._event(f"response.{_status(answer)}", response=self.whole(answers))

    def error(self, problem: ApiError) -> bytes:
        """Return the event of an error that comes after the stream has begun."""
        said = problem.body()
        return self._event("error", **said["error"] | {"type": "error"}, **said)

    def _body(self, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
        head = {"id": self.name, "object": "response", "created_at": self._created, "status": status, "error": None}
        return {**head, "incomplete_details": None, **self._said, "output": output, "usage": None}

    @property
    def _item_id(self) -> str:
        return f"{'msg' if self._call is None else 'fc'}_{self._id}"

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._item_id, "output_index": 0}

    def _item(self, answer: Answer | None) -> dict[str, Any]:
        """Return the one item of the output; answer: None where it has yet to come."""
        status = "in_progress" if answer is None else _status(answer)
        text = "" if answer is None else answer.text
        if self._call is not None:
            call = {"type": "function_call", "call_id": f"call_{self._id}", "name": self._call.name, "arguments": text}
            return {"id": self._item_id, "status": status, **call}
        content = [] if answer is None else [_part(text, answer.probabilities or ())]
        return {"id": self._item_id, "type": "message", "status": status, "role": "assistant", "content": content}

    def _event(self, kind: str, **values: Any) -> bytes:
        value = {"type": kind, "sequence_number": self._events, **values}
        self._events += 1
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        return f"event: {kind}\ndata: {text}\n\n".encode()


def _status(answer: Answer) -> str:
    assert answer.done is not None
    return "completed" if answer.done.reason == "stop" else "incomplete"


def _part(text: str, told: Sequence[TokenProbability]) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": [one.chat() for one in told]}
