"""Records inside OpenAI's requests: messages, formats, tools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from launch.serve.gateway.errors import invalid
from launch.serve.gateway.formats import ANY_OBJECT, Call, Format


class Strict(BaseModel):
    """A record that has no other keys, of exactly these types."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)


Nothing = Annotated[list[Any], Field(max_length=0)] | None  # what answers carry and histories give back


class StreamOptions(Strict):
    """What a stream carries besides text."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # accepted, and not needed: lengths are public anyway


class TextPart(Strict):
    """One text of a message."""

    type: Literal["text"]
    text: str


class Message(Strict):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None
    refusal: None = None
    reasoning_content: None = None
    audio: None = None
    function_call: None = None
    tool_calls: Nothing = None
    annotations: Nothing = None

    def plain(self) -> dict[str, str]:
        """Return the message as chat templates expect it; "developer" is OpenAI's newer word for "system"."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class JsonSchema(Strict):
    """A JSON schema with a name."""

    name: str
    schema_: dict[str, Any] = Field(default_factory=dict, alias="schema")
    strict: bool | None = None
    description: str | None = None


class ResponseFormat(Strict):
    """What a chat's answer is held to."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    def schema_of(self) -> Mapping[str, Any] | None:
        """Return the schema, None for any text. Raises `ApiError` where there is none."""
        if self.type == "json_schema" and self.json_schema is None:
            raise invalid("response_format: json_schema is missing", "response_format", "invalid_value")
        schema = self.json_schema.schema_ if self.json_schema is not None else ANY_OBJECT
        return None if self.type == "text" else schema


class Function(Strict):
    """A function that an answer may call. parameters: a JSON schema."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Strict):
    """A tool, which is a function."""

    type: Literal["function"]
    function: Function


class FunctionName(Strict):
    """A function's name."""

    name: str


class ToolName(Strict):
    """The tool that is to be called."""

    type: Literal["function"]
    function: FunctionName


def called(functions: Sequence[Function], choice: str | None, name: str | None) -> Format | None:
    """Return the format of a call's arguments, None for no call. choice: "none", "auto" or "required", None where `name` is
    the function to call or nothing is said. Raises `ApiError` for another function's name."""
    if not functions or choice == "none":
        return None
    if name is not None:
        named = next((function for function in functions if function.name == name), None)
        if named is None:
            raise invalid("tool_choice names none of the tools", "tool_choice", "invalid_value")
        return Format("tools", named.parameters or ANY_OBJECT, Call(name, by_name=True))
    only = functions[0]
    return Format("tools", only.parameters or ANY_OBJECT, Call(only.name, by_name=False)) if choice == "required" else None


def undecided(functions: Sequence[Function], choice: str | None, name: str | None) -> str | None:
    """Return why a choice among functions cannot be met, None where it can."""
    if not functions or name is not None or choice == "none":
        return None
    if choice == "required":
        which = "which of several functions to call is not told to the model: name one in tool_choice"
        return which if len(functions) > 1 else None
    return "whether to call a function is not told to the model: name one in tool_choice, or say none"
