"""The requests by LangChain's chat model: `python -m tests.tools.clients.by_langchain URL` prints an outcome a line."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any

import openai
from langchain_core.messages.utils import convert_to_messages
from langchain_openai import ChatOpenAI

from tests.tools.clients.cases import CASES, SIZE, Case, Outcome

ARGUMENTS = ("messages", "input", "stream", "stream_options", "response_format", "tools", "tool_choice", "text")


def ask(url: str, case: Case) -> Outcome:
    """Send a request and read its answer as LangChain gives it."""
    options = {name: value for name, value in case.body.items() if name not in ARGUMENTS}
    extra = {name: options.pop(name) for name in ("user",) if name in options}
    if "max_output_tokens" in options:
        options["max_tokens"] = options.pop("max_output_tokens")
    model = ChatOpenAI(
        base_url=f"{url}/v1",
        api_key="none",
        max_retries=0,
        use_responses_api=case.responses,
        model_kwargs=extra,
        stream_usage=bool(case.body.get("stream_options")),
        **options,
    )
    messages = convert_to_messages(case.body.get("messages", case.body.get("input")))
    try:
        return _structured(model, messages, case) if case.structured else _plain(model, messages, case)
    except openai.APIStatusError as error:
        return Outcome(error=(error.status_code, error.param))


def _plain(model: Any, messages: Any, case: Case) -> Outcome:
    if "tools" in case.body:
        model = model.bind_tools(case.body["tools"], **{k: v for k, v in case.body.items() if k == "tool_choice"})
    if "response_format" in case.body:
        model = model.bind(response_format=case.body["response_format"])
    if "text" in case.body:
        model = model.bind(text=case.body["text"])
    if case.body.get("stream"):
        whole: Any = None
        for piece in model.stream(messages):
            whole = piece if whole is None else whole + piece
        return _of([whole])
    if case.body.get("n", 1) > 1:
        return _of([one.message for one in model.generate([messages]).generations[0]])
    return _of([model.invoke(messages)])


def _structured(model: Any, messages: Any, case: Case) -> Outcome:
    """By `with_structured_output`: what it parsed counts as the text."""
    schema = {} if case.structured == "json_mode" else {"schema": SIZE}
    held = model.with_structured_output(**schema, method=case.structured, include_raw=True)
    found = held.invoke(messages)
    assert found["parsing_error"] is None, found
    said = _of([found["raw"]])
    return dataclasses.replace(said, texts=[json.dumps(found["parsed"])])


def _of(messages: list[Any]) -> Outcome:
    calls = [call for message in messages for call in message.tool_calls]
    about = [message.response_metadata for message in messages]
    told = [one.get("logprobs") or {} for one in about]
    usage = messages[0].usage_metadata
    return Outcome(
        [json.dumps(call["args"]) for call in calls] or [message.text for message in messages],
        [one.get("finish_reason") or ("stop" if one.get("status") == "completed" else "length") for one in about],
        sum(len(one.get("content") or []) for one in told),
        calls[0]["name"] if calls else None,
        usage and usage["total_tokens"],
    )


if __name__ == "__main__":
    for one in CASES:
        print(json.dumps(dataclasses.asdict(ask(sys.argv[1], one))), flush=True)
