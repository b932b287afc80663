"""Outcomes of bodies as they come over the wire: for curl, and for requests that are sent again."""

from __future__ import annotations

import json
from typing import Any

from tests.tools.clients.cases import Outcome


def outcome(status: int, body: bytes) -> Outcome:
    """Return what an answer says, of either path, whole or as events."""
    if body.startswith((b"data:", b"event:", b":")):
        return _events([json.loads(line[6:]) for line in body.decode().splitlines() if line.startswith("data: {")])
    found = json.loads(body)
    if status != 200:
        return Outcome(error=(status, found["error"]["param"]))
    return _response(found) if found["object"] == "response" else _chat(found)


def _response(found: dict[str, Any]) -> Outcome:
    (item,) = found["output"]
    usage = found["usage"]["total_tokens"]
    finish: list[str | None] = ["stop" if found["status"] == "completed" else "length"]
    if item["type"] == "function_call":
        return Outcome([item["arguments"]], finish, call=item["name"], usage=usage)
    (part,) = item["content"]
    return Outcome([part["text"]], finish, len(part["logprobs"]), usage=usage)


def _chat(found: dict[str, Any]) -> Outcome:
    choices = found["choices"]
    calls = [call["function"] for choice in choices for call in choice["message"].get("tool_calls") or []]
    return Outcome(
        [call["arguments"] for call in calls] or [choice["message"]["content"] for choice in choices],
        [choice["finish_reason"] for choice in choices],
        sum(len((choice["logprobs"] or {}).get("content") or []) for choice in choices),
        calls[0]["name"] if calls else None,
        found["usage"]["total_tokens"],
    )


def _events(events: list[dict[str, Any]]) -> Outcome:
    if "type" in events[0]:
        text = "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
        found = _response(events[-1]["response"])
        assert found.texts == [text]
        return found
    choices = [choice for event in events for choice in event["choices"]]
    return Outcome(
        ["".join(choice["delta"].get("content") or "" for choice in choices)],
        [next(choice["finish_reason"] for choice in choices if choice["finish_reason"])],
        sum(len((choice["logprobs"] or {}).get("content") or []) for choice in choices),
        usage=next((event["usage"]["total_tokens"] for event in events if event.get("usage")), None),
    )
