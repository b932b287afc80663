"""Requests of OpenAI's API, checked: what is supported, what changes nothing, and why the rest cannot work privately.

A message never repeats a value of the request, which may be secret.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from launch.serve.gateway.errors import ApiError, invalid

Count = Annotated[int, Field(ge=1)]

_LOGITS = "the model's logits stay shared among the parties"
_TOOLS = "tools need an output format that the model cannot be held to on shares"

# parameter -> (its values that change nothing, why others are refused)
_REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "n": ((1,), "one answer a request; send several requests at once"),
    "best_of": ((1,), f"choosing the best of several answers needs their probabilities: {_LOGITS}"),
    "logprobs": ((False,), f"probabilities are not known here: {_LOGITS}"),
    "top_logprobs": ((0,), f"probabilities are not known here: {_LOGITS}"),
    "logit_bias": (({},), f"{_LOGITS}, so nothing can be added to them here"),
    "presence_penalty": ((0,), f"{_LOGITS}, so they cannot be changed here"),
    "frequency_penalty": ((0,), f"{_LOGITS}, so they cannot be changed here"),
    "repetition_penalty": ((1,), f"{_LOGITS}, so they cannot be changed here"),
    "min_p": ((0,), f"{_LOGITS}; use temperature"),
    "tools": (([],), _TOOLS),
    "functions": (([],), _TOOLS),
    "tool_choice": (("none", "auto"), _TOOLS),
    "function_call": (("none", "auto"), _TOOLS),
    "response_format": (({"type": "text"},), "the output cannot be held to a format on shares"),
    "modalities": ((["text"],), "text is all that the model can do"),
    "audio": ((), "text is all that the model can do"),
    "prediction": ((), "tokens to verify are shared"),
    "suffix": (("",), "text is generated after a prompt only"),
    "web_search_options": ((), "nothing is looked up elsewhere"),
    "reasoning_effort": ((), "the model has no such setting"),
    "verbosity": ((), "the model has no such setting"),
    "store": ((False,), "nothing is stored"),
}
_IGNORED = (
    "user",
    "metadata",
    "service_tier",
    "parallel_tool_calls",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
)


_EXPECTED = {
    "messages": "a message has a role (system, developer, user or assistant) and a text, or parts of type text, as content",
    "prompt": "must be a text or a list of token ids",
    "stop": "must be a text or a list of at most 4 texts",
    "stop_token_ids": "must be a list of token ids",
    "input": "must be a text or a list of texts",
    "stream_options": "may hold include_usage, true or false",
}

P = TypeVar("P", bound="Parameters")
B = TypeVar("B", bound=BaseModel)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)


class StreamOptions(_Strict):
    """What a stream carries besides text."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # accepted, and not needed: lengths are public anyway


class TextPart(_Strict):
    """One text of a message."""

    type: Literal["text"]
    text: str


class Message(_Strict):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None
    refusal: None = None

    def plain(self) -> dict[str, str]:
        """Return the message as chat templates expect it; "developer" is OpenAI's newer word for "system"."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class Parameters(BaseModel):
    """What both kinds of request have in common."""

    model_config = ConfigDict(extra="allow", strict=True, hide_input_in_errors=True)

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    seed: int | None = None
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    stop_token_ids: list[int] | None = None
    max_tokens: Count | None = None

    @property
    def most_tokens(self) -> int | None:
        """The most tokens to generate, None where the request does not say."""
        return self.max_tokens

    @property
    def stops(self) -> list[str]:
        """Texts that end the answer."""
        found = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [text for text in found if text]

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the counts of tokens."""
        return bool(self.stream_options and self.stream_options.include_usage)


class CompletionParameters(Parameters):
    """Body of /v1/completions."""

    prompt: str | list[str] | list[int] | list[list[int]]
    echo: bool | None = None

    def one_prompt(self) -> str | list[int]:
        """Return the prompt. Raises `ApiError` for several."""
        prompt = self.prompt
        if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
            return prompt
        if len(prompt) != 1:
            raise invalid("one prompt a request; send several requests at once", "prompt", "unsupported_value")
        return prompt[0]  # type: ignore[return-value]


class ChatParameters(Parameters):
    """Body of /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Count | None = None

    @property
    def most_tokens(self) -> int | None:
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens


def parse(kind: type[P], body: bytes) -> P:
    """Read the parameters of a request's body. Raises `ApiError` naming the parameter."""
    found = parse_body(kind, body)
    for name, value in (found.model_extra or {}).items():
        _check_extra(name, value)
    if found.stream_options is not None and not found.stream:
        raise invalid("stream_options needs stream: true", "stream_options")
    return found


def parse_body(kind: type[B], body: bytes) -> B:
    """Read a request's body as a record. Raises `ApiError` naming the parameter that does not fit it."""
    try:
        values = json.loads(body)
    except (ValueError, RecursionError):
        raise invalid("the body is not valid JSON") from None
    if not isinstance(values, dict):
        raise invalid("the body must be a JSON object")
    for name, value in values.items():
        _check_text(name, value)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise _explain(error) from None


def _check_text(name: str, value: Any) -> None:
    """Raise `ApiError` for half of a surrogate pair ("\\ud83d"), which JSON can write and which is no text."""
    shown = name if name.isidentifier() and len(name) <= 64 else None
    try:
        json.dumps([name, value], ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        where = shown or "a parameter"
        raise invalid(f"{where} holds half of a surrogate pair, which is no text", shown, "invalid_value") from None


def _check_extra(name: str, value: Any) -> None:
    if name in _IGNORED:
        return
    if name not in _REFUSED:
        shown = name if name.isidentifier() and len(name) <= 64 else "one with an odd name"
        raise invalid(f"Unrecognized request argument supplied: {shown}", code="unknown_parameter")
    neutral, reason = _REFUSED[name]
    if value is not None and not any(_same(value, other) for other in neutral):
        raise invalid(f"{name} is not supported: {reason}", name, "unsupported_parameter")


def _same(value: Any, neutral: Any) -> bool:
    """Return whether two values are equal, where false is not 0 and true is not 1."""
    return value == neutral and isinstance(value, bool) == isinstance(neutral, bool)


def _explain(error: ValidationError) -> ApiError:
    """Return the error of the first problem: where it is, and what is expected there. It repeats no name from inside a
    parameter's value."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    param = str(first["loc"][0])
    if first["type"] == "extra_forbidden":
        shown = param if param.isidentifier() and len(param) <= 64 else "one with an odd name"
        return invalid(f"Unrecognized request argument supplied: {shown}", code="unknown_parameter")
    if first["type"] == "missing" and len(first["loc"]) == 1:
        return invalid(f"you must provide a '{param}' parameter", param, "missing_required_parameter")
    number = next((f" number {place + 1}" for place in first["loc"][1:2] if isinstance(place, int)), "")
    expected = _EXPECTED.get(param) or first["msg"].lower()
    return invalid(f"{param}{number if param == 'messages' else ''}: {expected}", param, "invalid_value")
