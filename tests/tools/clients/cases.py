"""The requests, what each must lead to, and outcomes that all clients can be compared by.

Model "letters" answers a prompt with the sum of its letters and those that follow ("ab": 1 + 2, so "cde"); with a bias for
letter 1 its answers are "aaa". Model "bytes" writes whatever its format allows.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

SIZE: dict[str, Any] = {
    "title": "Size",
    "description": "A size.",
    "type": "object",
    "properties": {"width": {"type": "integer", "minimum": 0, "maximum": 99}, "unit": {"enum": ["mm", "cm"]}},
    "required": ["width", "unit"],
    "additionalProperties": False,
}
BIAS = {"logit_bias": {"1": 100}}
TOOL = {"name": "Size", "description": "A size.", "parameters": SIZE}
Texts = Callable[[list[str]], bool]


@dataclass(frozen=True)
class Outcome:
    """What a request led to. finish: of each answer, in the words of chats. logprobs: how many tokens have one. call: the
    function whose arguments the text is. error: status and parameter."""

    texts: list[str] = field(default_factory=list)
    finish: list[str | None] = field(default_factory=list)
    logprobs: int = 0
    call: str | None = None
    usage: int | None = None
    error: tuple[int, str | None] | None = None


@dataclass(frozen=True)
class Case:
    """A request. body: of chats (`responses`: of /v1/responses). structured: LangChain's method for it."""

    name: str
    body: dict[str, Any]
    fits: Callable[[Outcome], bool]
    responses: bool = False
    structured: str | None = None

    @property
    def path(self) -> str:
        """Where it is sent to."""
        return "/v1/responses" if self.responses else "/v1/chat/completions"


def _says(*texts: str, finish: str = "length", **more: Any) -> Callable[[Outcome], bool]:
    wanted = {"texts": list(texts), "finish": [finish] * len(texts), **more}
    return lambda found: found.error is None and all(getattr(found, name) == value for name, value in wanted.items())


def _refused(status: int, param: str | None) -> Callable[[Outcome], bool]:
    return lambda found: found.error == (status, param)


def _is_json(text: str) -> bool:
    return isinstance(json.loads(text), dict)


def _is_size(text: str) -> bool:
    found = json.loads(text)
    return set(found) == {"width", "unit"} and found["width"] in range(100) and found["unit"] in ("mm", "cm")


def _holds(what: Callable[[str], bool], call: str | None = None, finish: str = "stop") -> Callable[[Outcome], bool]:
    def fits(found: Outcome) -> bool:
        return (found.error, found.call, found.finish) == (None, call, [finish]) and all(map(what, found.texts))

    return fits


def _chat(name: str, fits: Callable[[Outcome], bool], text: str = "ab", **options: Any) -> Case:
    structured = options.pop("structured", None)
    body = {"model": "letters", "messages": [{"role": "user", "content": text}], **options}
    return Case(name, body, fits, structured=structured)


def _held(name: str, fits: Callable[[Outcome], bool], **options: Any) -> Case:
    return _chat(name, fits, model="bytes", max_tokens=90, temperature=0, **options)


def _response(name: str, fits: Callable[[Outcome], bool], **options: Any) -> Case:
    return Case(name, {"model": "letters", "input": [{"role": "user", "content": "ab"}], **options}, fits, responses=True)


def _turns(*turns: tuple[str, Any]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in turns]


def _schema(**more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "Size", "schema": SIZE, **more}}


_AAA, _PART = _says("aaa"), {"type": "text", "text": "a"}
_NAMED = {"type": "function", "function": {"name": "Size"}}
_TOOLS = [{"type": "function", "function": TOOL}]
CASES = [
    _chat("a question", _says("cde"), max_tokens=3),
    _chat("a system's text first", _says("cde"), messages=_turns(("system", "1"), ("user", "ab")), max_tokens=3),
    _chat("a history", _says("fg"), messages=_turns(("user", "a"), ("assistant", "b"), ("user", "c")), max_tokens=2),
    _chat("parts of a text", _says("bc"), messages=_turns(("user", [_PART, _PART])), max_tokens=2),
    _chat("max_completion_tokens", _says("cde"), max_completion_tokens=3),
    _chat("no length: to the end of the context", lambda found: found.finish == ["length"] and len(found.texts[0]) > 20),
    _chat("stop", _says("cd", finish="stop"), max_tokens=9, stop="ef"),
    _chat("several stops", _says("cde", finish="stop"), max_tokens=9, stop=["zz", "fg"]),
    _chat("a stream", _says("cdef"), max_tokens=4, stream=True),
    _chat(
        "a stream with counts",
        _says("cde", usage=8),
        max_tokens=3,
        stream=True,
        stream_options={"include_usage": True},
    ),
    _chat("a stream with stop", _says("cd", finish="stop"), max_tokens=9, stop=["ef"], stream=True),
    _chat("temperature 0", _says("cde"), max_tokens=3, temperature=0),
    _chat("temperature 1: a sample on shares", _says("cde"), max_tokens=3, temperature=1),
    _chat("top_p", _AAA, "a", max_tokens=3, temperature=1, top_p=0.5, **BIAS),
    _chat("seed", _AAA, "a", max_tokens=3, temperature=1, seed=7, **BIAS),
    _chat("penalties", _AAA, "a", max_tokens=3, presence_penalty=0.5, frequency_penalty=0.5, **BIAS),
    _chat("logprobs", _says("aaa", logprobs=3), "a", max_tokens=3, logprobs=True, top_logprobs=2, **BIAS),
    _chat("logprobs of a stream", _says("aaa", logprobs=3), "a", max_tokens=3, logprobs=True, stream=True, **BIAS),
    _chat("several answers", _says("cde", "cde"), max_tokens=3, n=2),
    _chat("user and metadata", _says("cde"), max_tokens=3, user="me", metadata={"a": "b"}),
    _held("any JSON", _holds(_is_json), response_format={"type": "json_object"}, structured="json_mode"),
    _held("JSON of a schema", _holds(_is_size), response_format=_schema(strict=True), structured="json_schema"),
    _held("a stream of JSON", _holds(_is_size), response_format=_schema(), stream=True),
    _held("a function by name", _holds(_is_size, "Size"), tools=_TOOLS, tool_choice=_NAMED, structured="function_calling"),
    _held("a function that is required", _holds(_is_size, "Size", "tool_calls"), tools=_TOOLS, tool_choice="required"),
    _response("a response", _says("cde"), max_output_tokens=3),
    _response("a response as events", _says("cdef"), max_output_tokens=4, stream=True),
    _response(
        "a response of a schema",
        _holds(_is_size),
        model="bytes",
        max_output_tokens=90,
        text={"format": {"type": "json_schema", "name": "Size", "schema": SIZE}},
    ),
    _chat("too long for the context", _refused(400, "messages"), max_tokens=400),
    _chat("tools without a choice", _refused(400, "tools"), max_tokens=4, tools=_TOOLS),
]
