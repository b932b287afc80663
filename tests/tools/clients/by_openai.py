"""The requests by the package openai: `python -m tests.tools.clients.by_openai URL` prints an outcome a line."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any

import openai

from tests.tools.clients.cases import CASES, Case, Outcome


def ask(client: openai.OpenAI, case: Case) -> Outcome:
    """Send a request and read its answer by the package's own records."""
    try:
        if case.responses:
            return _response(client, case)
        found: Any = client.chat.completions.create(**case.body)
        return _stream(found) if case.body.get("stream") else _whole(found)
    except openai.APIStatusError as error:
        return Outcome(error=(error.status_code, error.param))


def _whole(found: Any) -> Outcome:
    calls = [call.function for choice in found.choices for call in choice.message.tool_calls or []]
    told = [choice.logprobs.content for choice in found.choices if choice.logprobs]
    return Outcome(
        [call.arguments for call in calls] or [choice.message.content for choice in found.choices],
        [choice.finish_reason for choice in found.choices],
        sum(map(len, told)),
        calls[0].name if calls else None,
        found.usage.total_tokens,
    )


def _stream(chunks: Any) -> Outcome:
    text, finish, told, usage = "", None, 0, None
    for chunk in chunks:
        usage = chunk.usage.total_tokens if chunk.usage else usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            finish = choice.finish_reason or finish
            told += len(choice.logprobs.content) if choice.logprobs else 0
    return Outcome([text], [finish], told, None, usage)


def _response(client: openai.OpenAI, case: Case) -> Outcome:
    found: Any = client.responses.create(**case.body)
    if case.body.get("stream"):
        events = list(found)
        text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        found = events[-1].response
        assert text == found.output_text
    return Outcome(
        [found.output_text], ["stop" if found.status == "completed" else "length"], usage=found.usage.total_tokens
    )


if __name__ == "__main__":
    asking = openai.OpenAI(base_url=f"{sys.argv[1]}/v1", api_key="none", max_retries=0)
    for one in CASES:
        print(json.dumps(dataclasses.asdict(ask(asking, one))), flush=True)
