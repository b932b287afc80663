"""Requests of /v1/responses: a text or a conversation, answered by a text or by the arguments of a function.

Nothing is stored, so that a conversation comes whole with every request.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from launch.serve.gateway.formats import ANY_OBJECT, Format
from launch.serve.gateway.parameters import Count, Parameters
from launch.serve.gateway.records import Function, FunctionName, JsonSchema, Nothing, Strict, called, undecided

TELL = "message.output_text.logprobs"


class Part(Strict):
    """One text of a message, from either side. What an answer carried beside it comes back empty, or is not read."""

    type: Literal["input_text", "output_text"]
    text: str
    annotations: Nothing = None
    logprobs: Any = None


class Item(Strict):
    """One turn of a conversation; an answer's output may come back as it was."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]
    type: Literal["message"] = "message"
    id: str | None = None
    status: Literal["completed", "incomplete", "in_progress"] | None = None
    phase: str | None = None

    def plain(self) -> dict[str, str]:
        """Return the message as chat templates expect it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class PlainFormat(Strict):
    """Any text, or any JSON object."""

    type: Literal["text", "json_object"]


class SchemaFormat(JsonSchema):
    """JSON of a schema."""

    type: Literal["json_schema"]


class TextConfig(Strict):
    """How the text of an answer looks."""

    format: Annotated[PlainFormat | SchemaFormat, Field(discriminator="type")] | None = None
    verbosity: Literal["medium"] | None = None


class FlatTool(Function):
    """A tool, which is a function."""

    type: Literal["function"]


class FlatName(FunctionName):
    """The tool that is to be called."""

    type: Literal["function"]


class ResponsesParameters(Parameters):
    """Body of /v1/responses."""

    telling: ClassVar[tuple[str, ...]] = ("include", "top_logprobs")
    turns_in: ClassVar[str] = "input"

    input: str | Annotated[list[Item], Field(min_length=1)]
    instructions: str | None = None
    max_output_tokens: Count | None = None
    max_tokens: None = None
    n: Literal[1] | None = None
    text: TextConfig | None = None
    include: list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: list[FlatTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | FlatName | None = None

    @property
    def most_likely(self) -> int | None:
        return (self.top_logprobs or 0) if self.top_logprobs or TELL in (self.include or ()) else None

    @property
    def most_tokens(self) -> int | None:
        return self.max_output_tokens

    @property
    def format(self) -> Format | None:
        call = called(*self._choice())
        wanted = None if self.text is None else self.text.format
        if call is not None or wanted is None or wanted.type == "text":
            return call
        return Format("text", wanted.schema_ if isinstance(wanted, SchemaFormat) else ANY_OBJECT)

    def unmeant(self) -> tuple[list[str], str] | None:
        reason = undecided(*self._choice())
        return None if reason is None else (["tools", "tool_choice"], reason)

    def _choice(self) -> tuple[list[FlatTool], str | None, str | None]:
        """Return the functions, and the choice among them."""
        tools, choice = self.tools or [], self.tool_choice
        return (tools, None, choice.name) if isinstance(choice, FlatName) else (tools, choice, None)

    @property
    def turns(self) -> list[dict[str, str]]:
        """The conversation as chat templates expect it."""
        given = [{"role": "user", "content": self.input}] if isinstance(self.input, str) else [i.plain() for i in self.input]
        return [*([] if self.instructions is None else [{"role": "system", "content": self.instructions}]), *given]

    def said(self) -> dict[str, Any]:
        """Return what an answer repeats of its request."""
        written = self.model_dump(by_alias=True, exclude_none=True)
        return {
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "metadata": written.get("metadata", {}),
            "model": self.model,
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": self.temperature,
            "text": {"format": {"type": "text"}, **written.get("text", {})},
            "tool_choice": written.get("tool_choice", "none"),
            "tools": written.get("tools", []),
            "top_logprobs": self.most_likely or 0,
            "top_p": self.top_p,
            "truncation": "disabled",
        }
