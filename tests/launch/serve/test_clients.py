"""The requests of the package openai, of LangChain's chat model and of curl, as they came over the wire, sent again."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.tools.clients.__main__ import PAGE, table
from tests.tools.clients.cases import CASES, Outcome
from tests.tools.clients.raw import outcome
from tests.tools.clients.toy_gateway import RECORDED, toy_gateway

pytest.importorskip("llguidance")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A gateway's "host:port"."""
    with toy_gateway(tmp_path_factory.mktemp("clients")) as url:
        yield url.removeprefix("http://")


def recorded() -> dict[str, list[dict[str, Any]]]:
    """Requests by client, in the order of the cases."""
    found: dict[str, list[dict[str, Any]]] = {}
    for line in RECORDED.read_text().splitlines():
        one = json.loads(line)
        found.setdefault(one.pop("client"), []).append(one)
    return found


def test_every_client_gets_what_it_must(address: str) -> None:
    answers: dict[str, Outcome] = {}
    asked = recorded()
    assert {client: len(requests) for client, requests in asked.items()} == dict.fromkeys(
        ("openai", "langchain", "curl"), 30
    )
    head = {"Content-Type": "application/json"}
    connection = http.client.HTTPConnection(address, timeout=30)
    for client, requests in asked.items():
        for case, request in zip(CASES, requests, strict=True):
            key = json.dumps(request, sort_keys=True)
            if key not in answers:
                connection.request("POST", request["path"], json.dumps(request["body"]), head)
                answered = connection.getresponse()
                answers[key] = outcome(answered.status, answered.read())
            assert case.fits(answers[key]), (client, case.name, answers[key])
    assert len(answers) > len(CASES)  # LangChain writes some of them in its own way


def test_that_outcomes_are_told_apart() -> None:
    """An empty answer and a refusal pass nowhere, and the page's table has a row for each case."""
    for other in (Outcome(["x"], ["length"]), Outcome(error=(500, None))):
        assert table({"openai": [other] * len(CASES)}).count("**fails**") == len(CASES)
    page = PAGE.read_text()
    for case in CASES:
        assert f"| {case.name} | passes | passes | passes |" in page
