"""/v1/responses as the package openai reads it: texts and conversations, whole and as events; what is refused, and why."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.responses import Response, ResponseOutputMessage, ResponseOutputText, ResponseStreamEvent
from pydantic import TypeAdapter

from tests.launch.serve.gateway_harness import Running, deployed, serving
from tests.parties.conftest import checkpoint  # noqa: F401
from tests.parties.toy import Flags, Toy

EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
ASKED: dict[str, Any] = {"model": "tiny", "input": "ab", "max_output_tokens": 3}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Iterator[Running]:  # noqa: F811
    """A gateway that may see logits."""
    with deployed(tmp_path_factory.mktemp("responses"), checkpoint) as parts, serving(*parts, allow_logits=True) as running:
        yield running


def message(response: Response) -> ResponseOutputMessage:
    """The one message of an answer, which must be as strict as the package's own records are."""
    Response.model_validate(response.model_dump(), strict=True)
    (found,) = response.output
    assert isinstance(found, ResponseOutputMessage)
    return found


def test_whole_answers(gateway: Running) -> None:
    client = gateway.openai()
    found = client.responses.create(**ASKED)
    assert (found.output_text, found.status, found.id) == ("cde", "incomplete", found._request_id)
    assert found.incomplete_details is not None
    assert found.incomplete_details.reason == "max_output_tokens"
    assert found.usage is not None
    assert (found.usage.input_tokens, found.usage.output_tokens, found.usage.total_tokens) == (len("<ab>>"), 3, 8)
    assert message(found).status == "incomplete"
    ended = client.responses.create(model="tiny", input="zj", max_output_tokens=20)  # token 39 ends texts of this model
    assert (ended.output_text, ended.status, ended.incomplete_details) == ("JKL", "completed", None)
    assert message(ended).status == "completed"
    assert (ended.store, ended.previous_response_id, ended.tools, ended.truncation) == (False, None, [], "disabled")


def test_conversations(gateway: Running) -> None:
    """An answer's output comes back as it was; instructions stand before everything."""
    client = gateway.openai()
    said = message(client.responses.create(**ASKED))
    history: Any = [{"role": "user", "content": "a"}, said.model_dump(), {"role": "user", "content": "b"}]
    found = client.responses.create(model="tiny", input=history, instructions="1", max_output_tokens=1)
    assert found.usage is not None
    assert found.usage.input_tokens == len("<1><a><cde><b>>")
    assert (found.output_text, found.instructions) == ("o", "1")  # 1 + 3 + 4 + 5 + 2
    parts: Any = [
        {"role": "developer", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]}
    ]
    assert client.responses.create(model="tiny", input=parts, max_output_tokens=1).output_text == "c"


def test_events(gateway: Running) -> None:
    """Every one is of the package's own records, numbered, and together they are the whole answer."""
    asked = {
        **ASKED,
        "top_logprobs": 2,
        "include": ["message.output_text.logprobs"],
        "extra_body": {"logit_bias": {"1": 100}},
    }
    asked["input"] = "a"
    whole = gateway.openai().responses.create(**asked)
    events = list(gateway.openai().responses.create(**asked, stream=True))
    for event in events:
        EVENTS.validate_python(event.model_dump(by_alias=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type.removeprefix("response.") for event in events] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        *["output_text.delta"] * 3,
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "incomplete",
    ]
    last = events[-1]
    assert last.type == "response.incomplete"
    (part,) = message(last.response).content
    assert isinstance(part, ResponseOutputText)
    assert part.model_dump() == message(whole).content[0].model_dump()
    assert part.text == "aaa"
    assert part.logprobs is not None
    assert [(one.token, len(one.top_logprobs)) for one in part.logprobs] == [("a", 2)] * 3
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    assert [one.logprob for event in deltas for one in event.logprobs] == [one.logprob for one in part.logprobs]
    with gateway.openai().responses.stream(model="tiny", input="zj", max_output_tokens=20) as stream:
        assert "".join(event.delta for event in stream if event.type == "response.output_text.delta") == "JKL"
        assert stream.get_final_response().output_text == "JKL"


def test_a_value_that_left_its_range(gateway: Running) -> None:
    gateway.toy.flags = Flags(1, [("score", 0)])
    try:
        found = gateway.openai().responses.create(**ASKED)
    finally:
        gateway.toy.flags = Toy().flags
    assert (found.output_text, found.status) == ("c", "incomplete")
    assert found.incomplete_details is not None
    assert found.incomplete_details.reason == "range"
    assert found.model_extra is not None
    assert found.model_extra["mpcache"]["range"][0]["kind"] == "score"


def test_an_error_in_mid_stream(gateway: Running) -> None:
    def lose(party: int, step: int, round: int) -> None:
        if (party, step, round) == (0, 2, 0):
            raise RuntimeError("lost")

    gateway.toy.before_round = lose
    try:
        stream = gateway.openai().responses.create(model="tiny", input="a", max_output_tokens=20, stream=True)
        said = []
        with pytest.raises(openai.APIError) as caught:
            said.extend(event.type for event in stream)
    finally:
        gateway.toy.before_round = Toy().before_round
    assert said[0] == "response.created"
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["type"] == "server_error"


@pytest.mark.parametrize(
    ("options", "param", "message"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", "send the whole conversation as input"),
        ({"store": True}, "store", "nothing is stored"),
        ({"background": True}, "background", "nothing is stored"),
        ({"truncation": "auto"}, "truncation", "nothing is left out of a prompt"),
        ({"tools": [{"type": "web_search"}]}, "tools", "must be a list of"),
        ({"input": []}, "input", "messages of texts"),
        ({"input": [{"type": "function_call_output", "call_id": "1", "output": "x"}]}, "input", "messages of texts"),
        ({"text": {"format": {"type": "grammar"}}}, "text", "has a format of type"),
        ({"max_output_tokens": 40}, "input", "maximum context length is 33 tokens"),
        ({"extra_body": {"max_tokens": 3}}, "max_tokens", "none"),
        ({"extra_body": {"mirostat": 3}}, None, "Unrecognized request argument"),
    ],
)
def test_refusals(gateway: Running, options: dict[str, Any], param: str | None, message: str) -> None:
    with pytest.raises(openai.BadRequestError, match=message) as caught:
        gateway.openai().responses.create(**{**ASKED, **options})
    assert caught.value.param == param


def test_without_logits(gateway: Running) -> None:
    unmet: dict[str, Any] = {"top_logprobs": 1, "text": {"format": {"type": "json_object"}}, "top_p": 0.5}
    parts = (gateway.deployment, gateway.toy, gateway.letters)
    with serving(*parts) as running:
        for name, value in unmet.items():
            with pytest.raises(openai.BadRequestError, match="needs the model's logits") as caught:
                running.openai().responses.create(**ASKED, **{name: value})
            assert caught.value.param == name
    with serving(*parts, drop_unsupported=True) as running:
        found = running.openai().responses.with_raw_response.create(**ASKED, **unmet)
        assert found.headers["x-dropped-parameters"] == "text, top_logprobs, top_p"
        assert found.parse().output_text == "cde"
