"""Answers held to a format: every one that ends by itself fits it, and what cannot be kept is refused by name.

Oracles: `json.loads`, records of pydantic, and the package openai's own `parse`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from enum import Enum
from typing import Any, Literal

import openai
import pytest
import torch
from openai.lib._parsing._completions import type_to_response_format_param
from pydantic import BaseModel, ConfigDict, Field
from transformers import GPT2Config, GPT2LMHeadModel

from launch.serve.gateway.errors import ApiError
from launch.serve.gateway.formats import ANY_OBJECT, Format, FormatReader, Held
from models.tokenizer.text import TextTokenizer
from parties.client.sampling import choose, seeded
from tests.launch.serve.gateway_harness import NO_KEY, Running, deployed_bytes, serving
from tests.launch.test_pages import blocks
from tests.models.random_checkpoints import byte_tokenizer

pytest.importorskip("llguidance")

END = 0  # "!" ends texts of the model of bytes


class Colour(Enum):
    """Two of them."""

    RED = "red"
    BLUE = "blue"


class Size(BaseModel):
    """A record inside another."""

    model_config = ConfigDict(extra="forbid")
    width: int = Field(ge=0, le=99)
    unit: Literal["mm", "cm"]


class Thing(BaseModel):
    """What answers are held to."""

    model_config = ConfigDict(extra="forbid")
    colour: Colour
    sizes: list[Size] = Field(max_length=2)
    old: bool
    code: str = Field(pattern=r"^[A-Z]{2}[0-9]$")
    note: str | None = Field(max_length=4)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    """A tokenizer of bytes."""
    folder = tmp_path_factory.mktemp("bytes")
    byte_tokenizer(folder)
    return TextTokenizer.load(folder, (END,))


def answers(words: TextTokenizer, schema: Any, count: int, most: int = 200) -> Iterator[tuple[str, bool]]:
    """Texts that random logits give in this format, and whether each ended by itself."""
    matcher = FormatReader(words, 256).matcher(Format("response_format", schema))
    for seed in range(count):
        held, generator, noise = (
            Held(matcher.deep_copy(), frozenset({END})),
            torch.Generator().manual_seed(seed),
            seeded(seed),
        )
        tokens, whole = [7, 7], False
        while len(tokens) < most and not whole:
            logits = 3 * torch.randn(256, generator=generator, dtype=torch.float64)
            for _ in range(1 + seed % 2):  # asked twice, it answers the same
                adjusted = held(logits, tokens)
            assert torch.equal(adjusted[adjusted > -torch.inf], logits[adjusted > -torch.inf])
            token = choose(adjusted, 1.0, prg=noise)
            whole = token == END or held.complete(token)
            tokens += [token] * (token != END)
        yield words.decode(tokens[2:]), whole


def test_every_whole_answer_fits(words: TextTokenizer) -> None:
    ended = 0
    for text, whole in answers(words, Thing.model_json_schema(), 12):
        ended += whole
        if whole:
            found = Thing.model_validate_json(text)
            assert list(json.loads(text)) == list(Thing.model_fields), found
    assert ended >= 10
    loose = [text for text, whole in answers(words, ANY_OBJECT, 30, 60) if whole]
    assert len(loose) >= 5
    assert all(isinstance(json.loads(text), dict) for text in loose)
    assert {text for text, whole in answers(words, {"type": "integer", "minimum": 1, "maximum": 3}, 30) if whole} == {
        "1",
        "2",
        "3",
    }


def test_an_end_is_allowed_where_the_answer_is_whole_alone(words: TextTokenizer) -> None:
    held = Held(FormatReader(words, 256).matcher(Format("x", {"type": "integer"})), frozenset({END, 300}))
    zeros = torch.zeros(256, dtype=torch.float64)
    assert held(zeros, [])[END] == -torch.inf
    (one,) = words.encode("1")
    assert not held.complete(one)
    assert held(zeros, [one])[END] == 0
    assert held(zeros, [one])[one] == 0


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "array", "uniqueItems": True}, "uniqueItems = true cannot be kept"),
        ({"items": {"not": {"const": "secret"}}}, r'items.not = {"const": "secret"} cannot be kept'),
        ({"properties": {"a": {"type": "text"}}}, r"properties.a.type = text cannot be kept \(Invalid type: text\)"),
        ({"type": "string", "pattern": "(?=secret)"}, r"pattern = \(\?=secret\) cannot be kept \(look-around"),
        ({"$ref": "#/secret"}, r"\$ref = #/secret cannot be kept"),
        ({"enum": []}, "nothing satisfies it"),
        ({"type": "string", "format": "secret"}, "format = secret cannot be kept"),
        ({"not": {}, "x-guidance": {"lenient": True}}, "not = {} cannot be kept"),
    ],
)
def test_schemas_that_cannot_be_kept(
    words: TextTokenizer, schema: Any, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ApiError, match=message) as caught:
        FormatReader(words, 256).matcher(Format("response_format", schema))
    assert (caught.value.status, caught.value.param) == (400, "response_format")
    said = capfd.readouterr()
    assert "secret" not in said.out + said.err


def test_without_the_package(words: TextTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(ApiError, match=r"pip install 'mpcache\[json\]'"):
        FormatReader(words, 256).matcher(Format("response_format", ANY_OBJECT))


# ---- by way of the package openai ---------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A gateway that may see logits, before a toy of bytes."""
    folder = tmp_path_factory.mktemp("formats")
    config = GPT2Config(vocab_size=256, n_positions=200, n_embd=8, n_layer=1, n_head=1, bos_token_id=END, eos_token_id=END)
    GPT2LMHeadModel(config).save_pretrained(folder / "checkpoint")
    with deployed_bytes(folder, folder / "checkpoint") as parts, serving(*parts, allow_logits=True) as running:
        yield running


ASKED: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "ab"}], "max_tokens": 150}
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "put", "parameters": Size.model_json_schema()}}


def test_records_by_the_package(gateway: Running) -> None:
    client = gateway.openai()
    parsed = client.chat.completions.parse(**ASKED, response_format=Size)
    assert parsed.choices[0].message.parsed == Size.model_validate_json(parsed.choices[0].message.content or "")
    assert parsed.choices[0].finish_reason == "stop"
    whole = client.chat.completions.create(**ASKED, response_format={"type": "json_object"}, n=2)
    assert [json.loads(choice.message.content or "") for choice in whole.choices] == [{}, {}]
    with client.chat.completions.stream(**ASKED, response_format=Size) as stream:
        kinds = [event.type for event in stream]
        assert stream.get_final_completion().choices[0].message.parsed == parsed.choices[0].message.parsed
    assert "content.delta" in kinds
    cut = client.chat.completions.create(**{**ASKED, "max_tokens": 3}, response_format=type_to_response_format_param(Size))
    assert (cut.choices[0].finish_reason, len(cut.choices[0].message.content or "")) == ("length", 3)
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(**{**ASKED, "max_tokens": 3}, response_format=Size)


def test_arguments_of_a_function(gateway: Running) -> None:
    client = gateway.openai().chat.completions
    by_name: Any = {"type": "function", "function": {"name": "put"}}
    for choice, reason in ((by_name, "stop"), ("required", "tool_calls")):
        found = client.create(**ASKED, tools=[TOOL], tool_choice=choice).choices[0]
        assert (found.finish_reason, found.message.content) == (reason, None)
        assert found.message.tool_calls is not None
        (call,) = found.message.tool_calls
        assert call.type == "function"
        assert call.function.name == "put"
        Size.model_validate_json(call.function.arguments)
        chunks = list(client.create(**ASKED, tools=[TOOL], tool_choice=choice, stream=True))
        parts = [part for chunk in chunks for part in chunk.choices[0].delta.tool_calls or []]
        assert [part.id for part in parts if part.id] == [chunks[0].id.replace("chatcmpl-", "call_")]
        assert "".join((part.function and part.function.arguments) or "" for part in parts) == call.function.arguments
        assert chunks[-1].choices[0].finish_reason == reason
    none = client.create(**{**ASKED, "max_tokens": 1}, tools=[TOOL], tool_choice="none")
    assert none.choices[0].message.tool_calls is None


def test_responses(gateway: Running) -> None:
    client = gateway.openai()
    asked: dict[str, Any] = {"model": "tiny", "input": "ab", "max_output_tokens": 150}
    parsed = client.responses.parse(**asked, text_format=Size)
    assert parsed.output_parsed == Size.model_validate_json(parsed.output_text)
    assert parsed.status == "completed"
    tool: Any = {"type": "function", **TOOL["function"]}
    calling = {**asked, "tools": [tool], "tool_choice": {"type": "function", "name": "put"}}
    (call,) = client.responses.create(**calling).output
    assert call.type == "function_call"
    assert call.name == "put"
    Size.model_validate_json(call.arguments)
    events = list(client.responses.create(**calling, stream=True))
    deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert "".join(deltas) == call.arguments
    assert [event.type for event in events[-3:]] == [
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.completed",
    ]


def test_the_example_of_the_page(
    gateway: Running, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", NO_KEY)
    _, block = blocks("gateway.md", "python")
    here = block.replace("127.0.0.1:8000", gateway.address).replace('"assistant"', '"tiny"')
    exec(compile(here, "docs/gateway.md", "exec", dont_inherit=True), {"__name__": "page"})
    assert re.fullmatch(r"film='(good|bad|unclear)' spoils_the_end=(True|False)\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("options", "param", "message"),
    [
        ({"tools": [TOOL]}, "tools", "name one in tool_choice"),
        ({"tools": [TOOL, TOOL], "tool_choice": "required"}, "tools", "which of several functions"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "get"}}}, "tool_choice", "none of the"),
        ({"tools": [{"type": "web_search"}]}, "tools", "must be a list of"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "json_schema is missing"),
        ({"response_format": {"type": "xml"}}, "response_format", "has a type: text, json_object"),
    ],
)
def test_what_cannot_be_meant(gateway: Running, options: dict[str, Any], param: str, message: str) -> None:
    with pytest.raises(openai.BadRequestError, match=message) as caught:
        gateway.openai().chat.completions.create(**ASKED, **options)
    assert caught.value.param == param
    extra = {"response_format": {"type": "json_object"}}
    with pytest.raises(openai.BadRequestError, match="response_format is not supported: it is a chat's"):
        gateway.openai().completions.create(model="tiny", prompt="a", extra_body=extra)


def test_without_logits(gateway: Running) -> None:
    parts = (gateway.deployment, gateway.toy, gateway.letters)
    json_object: Any = {"type": "json_object"}
    needed = pytest.raises(openai.BadRequestError, match="response_format needs the model's logits at this gateway")
    with serving(*parts) as running, needed:
        running.openai().chat.completions.create(**ASKED, response_format=json_object)
    with serving(*parts, drop_unsupported=True) as running:
        asked = {**ASKED, "max_tokens": 1, "response_format": json_object, "tools": [TOOL]}
        found = running.openai().chat.completions.with_raw_response.create(**asked)
        assert found.headers["x-dropped-parameters"] == "tools, tool_choice, response_format"
