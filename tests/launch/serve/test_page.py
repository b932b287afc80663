"""The page: it has nothing from elsewhere, its policy lets its own script run alone, and its numbers are the ledgers'."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from parties.client.client import GenerationResult
from tests.launch.serve.gateway_harness import Running, deployed, serving
from tests.parties.conftest import checkpoint  # noqa: F401
from tests.parties.toy import Toy

KEY = "correct-horse-battery-staple"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Iterator[Running]:  # noqa: F811
    """A gateway with a key."""
    with deployed(tmp_path_factory.mktemp("page"), checkpoint) as parts, serving(*parts, keys=(KEY.encode(),)) as running:
        yield running


def get(gateway: Running, path: str, key: str = "") -> tuple[dict[str, str], str]:
    """Headers, with lower-case names, and text."""
    asked = urllib.request.Request(f"http://{gateway.address}{path}", headers={"Authorization": f"Bearer {key}"})
    with urllib.request.urlopen(asked, timeout=30) as found:
        return {name.lower(): value for name, value in found.headers.items()}, found.read().decode()


class Parts(HTMLParser):
    """Tags, ids, and what labels are for."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_structure(gateway: Running) -> None:
    headers, text = get(gateway, "/")
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    for tag in ("script", "style"):
        (inline,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        assert base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode() in policy
    assert not re.search(r"https?://|src=|url\(|@import|innerHTML|eval|localStorage|sessionStorage", text)
    parts = Parts()
    parts.feed(text)
    ids = [found["id"] for _, found in parts.tags if "id" in found]
    assert len(ids) == len(set(ids))
    labelled = {found["for"] for tag, found in parts.tags if tag == "label"}
    for tag, found in parts.tags:
        assert "style" not in found
        assert not any(name.startswith("on") for name in found)
        if tag in ("input", "select", "textarea", "progress"):
            assert found["id"] in labelled
    assert set(re.findall(r'at\("(\w+)"\)', text)) <= set(ids)


def test_its_numbers_are_the_ledgers(gateway: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    results: list[GenerationResult] = []
    generate = gateway.gateway.client.generate

    def kept(*arguments: Any, **options: Any) -> GenerationResult:
        results.append(generate(*arguments, **options))
        return results[-1]

    monkeypatch.setattr(gateway.gateway.client, "generate", kept)
    with pytest.raises(urllib.error.HTTPError, match="401"):
        get(gateway, "/live")
    assert json.loads(get(gateway, "/live", KEY)[1])["state"] in ("idle", "done")  # of what an earlier test has asked
    messages: Any = [{"role": "user", "content": "ab"}]
    gateway.openai(api_key=KEY).chat.completions.create(model="tiny", messages=messages, max_tokens=3)
    now = json.loads(get(gateway, "/live", KEY)[1])
    assert (now["state"], now["tokens"], now["prompt_tokens"]) == ("done", 3, len("<ab>>"))
    assert now["costs"] == json.loads(json.dumps(results[0].costs))
    assert now["progress"]["tokens"] == [3, 3]
    assert "cde" not in json.dumps({**now, "session": "", "id": ""})


def test_requests_at_once_are_not_mixed(gateway: Running) -> None:
    """Each by the id that its client gave it, and by its answer's."""
    met, seen = threading.Barrier(3), dict[str, Any]()

    def meet(party: int, step: int, round: int) -> None:
        if party == 0 and (step, round) == (1, 0):
            met.wait(30)
            met.wait(30)

    def ask(name: str, prompt: str, most: int) -> str:
        chat = gateway.openai(api_key=KEY, default_headers={"X-Client-Request-Id": name}).chat.completions
        return chat.create(model="tiny", messages=[{"role": "user", "content": prompt}], max_tokens=most).id

    gateway.toy.before_round = meet
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(ask, "one", "ab", 3), pool.submit(ask, "two", "a", 4)]
        met.wait(30)
        for name in ("one", "two"):
            seen[name] = json.loads(get(gateway, f"/live?request={name}", KEY)[1])
        gateway.toy.before_round = Toy().before_round
        met.wait(30)
        ids = [one.result() for one in asked]
    wanted = {"one": (len("<ab>>"), 3), "two": (len("<a>>"), 4)}
    assert {name: (one["prompt_tokens"], one["max_tokens"]) for name, one in seen.items()} == wanted
    assert {one["state"] for one in seen.values()} == {"running"}
    assert [seen[name]["id"] for name in ("one", "two")] == ids
    ended = [json.loads(get(gateway, f"/live?request={id}", KEY)[1]) for id in ids]
    assert [(one["state"], one["tokens"], one["progress"]["tokens"]) for one in ended] == [
        ("done", 3, [3, 3]),
        ("done", 4, [4, 4]),
    ]
    assert ended[0]["session"] != ended[1]["session"]
    assert json.loads(get(gateway, "/live?request=three", KEY)[1]) == {"state": "idle"}
