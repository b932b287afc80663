"""Requests of OpenAI's API, checked: what is supported, what changes nothing, and why the rest cannot work privately.

A message goes to whoever asked, and into no log. It repeats numbers and JSON schemas of the request, and no text of a prompt
or a message.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, ClassVar, Literal, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from launch.serve.gateway.errors import ApiError, invalid
from launch.serve.gateway.formats import Format
from launch.serve.gateway.records import Function, Message, ResponseFormat, StreamOptions, Tool, ToolName, called, undecided

Count = Annotated[int, Field(ge=1)]
Words = Annotated[str, Field(min_length=1)]
MOST_ANSWERS = 16  # of one request: each is a session

_LOGITS = "the model's logits stay shared among the parties"
_CHAT = "it is a chat's"

# parameter -> (its values that change nothing, why others are refused)
_REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "best_of": ((1,), f"choosing the best of several answers needs their probabilities: {_LOGITS}"),
    "min_p": ((0,), f"{_LOGITS}; use temperature"),
    "tools": (([],), _CHAT),
    "functions": (([],), "use tools with a tool_choice"),
    "tool_choice": (("none", "auto"), _CHAT),
    "function_call": (("none", "auto"), "use tools with a tool_choice"),
    "response_format": (({"type": "text"},), _CHAT),
    "modalities": ((["text"],), "text is all that the model can do"),
    "audio": ((), "text is all that the model can do"),
    "prediction": ((), "tokens to verify are shared"),
    "suffix": (("",), "text is generated after a prompt only"),
    "web_search_options": ((), "nothing is looked up elsewhere"),
    "reasoning_effort": ((), "the model has no such setting"),
    "verbosity": ((), "the model has no such setting"),
    "store": ((False,), "nothing is stored"),
    "previous_response_id": ((), "nothing is stored: send the whole conversation as input"),
    "conversation": ((), "nothing is stored: send the whole conversation as input"),
    "prompt": ((), "nothing is stored: send the whole conversation as input"),
    "background": ((False,), "nothing is stored: wait for the answer, or stream it"),
    "truncation": (("disabled",), "nothing is left out of a prompt"),
    "reasoning": (({},), "the model has no such setting"),
    "max_tool_calls": ((), "at most one function is called"),
}
_IGNORED = (
    "user",
    "metadata",
    "service_tier",
    "parallel_tool_calls",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "prompt_cache_options",
)


_EXPECTED = {
    "messages": "a message has a role (system, developer, user or assistant) and a text, or parts of type text, as content",
    "prompt": "must be a text, a list of token ids, or a list of either",
    "logit_bias": "must give token ids a number from -100 to 100",
    "stop": "must be a text or a list of at most 4 texts, none of them empty",
    "stop_token_ids": "must be a list of token ids",
    "input": "must be a text, or a list of texts (embeddings) or messages of texts (responses)",
    "text": "has a format of type text, json_object or json_schema",
    "stream_options": "may hold include_usage, true or false",
    "response_format": "has a type: text, json_object, or json_schema with json_schema: {name, schema}",
    "tools": "must be a list of {type: function, function: {name, parameters}}",
    "tool_choice": "must be none, auto, required, or {type: function, function: {name}}",
}

_EMPTY = ("tool_calls", "function_call", "annotations", "audio", "refusal", "reasoning_content")  # of a message

P = TypeVar("P", bound="Parameters")
B = TypeVar("B", bound=BaseModel)


class Parameters(BaseModel):
    """What all kinds of request have in common."""

    model_config = ConfigDict(extra="allow", strict=True, hide_input_in_errors=True)

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    seed: int | None = None
    stop: Words | Annotated[list[Words], Field(max_length=4)] | None = None
    stop_token_ids: list[int] | None = None
    max_tokens: Count | None = None
    n: Annotated[int, Field(ge=1, le=MOST_ANSWERS)] | None = None
    prefix: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    logit_bias: dict[Annotated[str, Field(pattern=r"^\d{1,9}$")], Annotated[float, Field(ge=-100, le=100)]] | None = None
    _dropped: list[str] = PrivateAttr(default_factory=list)
    telling: ClassVar[tuple[str, ...]] = ("logprobs",)
    """Parameters that ask for probabilities."""
    turns_in: ClassVar[str] = "messages"
    """The parameter that a conversation comes in."""

    @property
    def dropped(self) -> list[str]:
        """Names of parameters that were left out, see `GatewaySettings.drop_unsupported`."""
        return self._dropped

    def drop(self, name: str) -> None:
        """Leave a parameter out."""
        self._dropped.append(name if name.isidentifier() and len(name) <= 64 and name.isascii() else "one-with-an-odd-name")
        if name in type(self).model_fields:
            setattr(self, name, None)

    @property
    def most_likely(self) -> int | None:
        """How many of the likeliest tokens are told with each token of the answer; None without probabilities."""
        return None

    @property
    def format(self) -> Format | None:
        """The format that answers are held to."""
        return None

    def unmeant(self) -> tuple[list[str], str] | None:
        """Return parameters that cannot be met together, and why; None where all can."""
        return None

    def of_logits(self) -> list[str]:
        """Return the parameters that whoever chooses tokens needs logits for, whatever the temperature."""
        wanted = {
            "presence_penalty": bool(self.presence_penalty),
            "frequency_penalty": bool(self.frequency_penalty),
            "repetition_penalty": self.repetition_penalty not in (None, 1),
            "logit_bias": bool(self.logit_bias),
        }
        held = [] if self.format is None else [self.format.param]
        asking = [name for name in self.telling if getattr(self, name) is not None]
        told = [] if self.most_likely is None else asking
        return [*held, *(name for name, is_wanted in wanted.items() if is_wanted), *told]

    @property
    def most_tokens(self) -> int | None:
        """The most tokens to generate, None where the request does not say."""
        return self.max_tokens

    @property
    def stops(self) -> list[str]:
        """Texts that end the answer."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the counts of tokens."""
        return bool(self.stream_options and self.stream_options.include_usage)


class CompletionParameters(Parameters):
    """Body of /v1/completions."""

    prompt: str | list[str] | list[int] | list[list[int]]
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=5)] | Literal[False] | None = None

    def unmeant(self) -> tuple[list[str], str] | None:
        reason = "with logprobs nobody computes the probabilities of the prompt's own tokens; leave out echo, or logprobs"
        return (["echo"], reason) if self.echo and self.most_likely is not None else None

    @property
    def most_likely(self) -> int | None:
        return None if self.logprobs is None or self.logprobs is False else self.logprobs

    def prompts(self) -> list[str | list[int]]:
        """Return the prompts, one or more."""
        prompt = self.prompt
        if isinstance(prompt, str) or not prompt or isinstance(prompt[0], int):
            return [prompt]  # type: ignore[list-item]
        return list(prompt)


class ChatParameters(Parameters):
    """Body of /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolName | None = None

    @property
    def format(self) -> Format | None:
        call = called(*self._choice())
        schema = None if self.response_format is None else self.response_format.schema_of()
        return call or (None if schema is None else Format("response_format", schema))

    def unmeant(self) -> tuple[list[str], str] | None:
        reason = undecided(*self._choice())
        return None if reason is None else (["tools", "tool_choice"], reason)

    def _choice(self) -> tuple[list[Function], str | None, str | None]:
        """Return the functions, and the choice among them."""
        functions, choice = [tool.function for tool in self.tools or []], self.tool_choice
        return (functions, None, choice.function.name) if isinstance(choice, ToolName) else (functions, choice, None)

    @property
    def turns(self) -> list[dict[str, str]]:
        """The conversation as chat templates expect it."""
        return [message.plain() for message in self.messages]

    @property
    def most_likely(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def most_tokens(self) -> int | None:
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens


def parse(kind: type[P], body: bytes, drop: bool = False) -> P:
    """Read the parameters of a request's body. drop: leave out what is not supported, see `Parameters.dropped`.

    Raises `ApiError` naming the parameter.
    """
    found = parse_body(kind, body)
    for name, value in (found.model_extra or {}).items():
        try:
            check_extra(name, value)
        except ApiError:
            if not drop:
                raise
            found.drop(name)
    if (unmeant := found.unmeant()) is not None:
        names, reason = unmeant
        if not drop:
            raise invalid(f"{names[0]} is not supported: {reason}", names[0], "unsupported_parameter")
        for name in names:
            found.drop(name)
    if found.stream_options is not None and not found.stream:
        raise invalid("stream_options needs stream: true", "stream_options")
    if isinstance(found, ChatParameters) and found.top_logprobs and not found.logprobs:
        raise invalid("top_logprobs needs logprobs: true", "top_logprobs")
    return found


def parse_body(kind: type[B], body: bytes) -> B:
    """Read a request's body as a record. Raises `ApiError` naming the parameter that does not fit it."""
    try:
        values = json.loads(body, parse_constant=_refuse_constant)
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


def _refuse_constant(name: str) -> NoReturn:
    """Raise `ApiError` for NaN and the infinities, which Python writes and JSON has not."""
    raise invalid(f"the body is not valid JSON: it holds {name}, which is no number there; write one, or leave it out")


def _check_text(name: str, value: Any) -> None:
    """Raise `ApiError` for half of a surrogate pair ("\\ud83d"), which JSON can write and which is no text."""
    shown = name if name.isidentifier() and len(name) <= 64 else None
    try:
        json.dumps([name, value], ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        where = shown or "a parameter"
        raise invalid(f"{where} holds half of a surrogate pair, which is no text", shown, "invalid_value") from None


def check_extra(name: str, value: Any) -> None:
    """Raise `ApiError` for a parameter that no field has, unless it is ignored or its value changes nothing."""
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
    parameter's value, and of values numbers alone."""
    first = error.errors(include_url=False, include_context=False)[0]
    param = str(first["loc"][0])
    if first["type"] == "extra_forbidden":
        shown = param if param.isidentifier() and len(param) <= 64 else "one with an odd name"
        return invalid(f"Unrecognized request argument supplied: {shown}", code="unknown_parameter")
    if first["type"] == "missing" and len(first["loc"]) == 1:
        return invalid(f"you must provide a '{param}' parameter", param, "missing_required_parameter")
    if param in ("messages", "input") and first["loc"][-1] in _EMPTY:
        number = f" number {first['loc'][1] + 1}" if isinstance(first["loc"][1], int) else ""
        message = f"{param}{number}: {first['loc'][-1]} must be empty"
        return invalid(message, param, "invalid_value")
    number = next((f" number {place + 1}" for place in first["loc"][1:2] if isinstance(place, int)), "")
    expected = _EXPECTED.get(param) or first["msg"].lower()
    given = first["input"]
    said = f"{json.dumps(given)} was given; " if isinstance(given, int | float) else ""
    return invalid(f"{param}{number if param == 'messages' else ''}: {said}{expected}", param, "invalid_value")
