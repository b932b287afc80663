"""The page in a real Chromium: a whole private chat by keyboard alone, without network, every number that of the ledgers."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from parties.client.client import GenerationResult
from tests.launch.serve.browser import Browser, browser, chromium
from tests.launch.serve.gateway_harness import Running, deployed, serving
from tests.launch.serve.page_numbers import check_numbers, plain
from tests.parties.conftest import checkpoint  # noqa: F401
from tests.parties.letters import answer

KEY = "correct-horse-battery-staple"
PROGRAM = chromium()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium on this machine")
NEEDED = ("key", "model", "system", "most", "text", "send")


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Iterator[Running]:  # noqa: F811
    """A gateway with a key."""
    with deployed(tmp_path_factory.mktemp("page"), checkpoint) as parts, serving(*parts, keys=(KEY.encode(),)) as running:
        yield running


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A browser."""
    assert PROGRAM is not None
    with browser(PROGRAM, tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture
def results(gateway: Running, monkeypatch: pytest.MonkeyPatch) -> list[GenerationResult]:
    """What the gateway's client gets from now on."""
    found: list[GenerationResult] = []
    generate = gateway.gateway.client.generate

    def kept(*arguments: Any, **options: Any) -> GenerationResult:
        found.append(generate(*arguments, **options))
        return found[-1]

    monkeypatch.setattr(gateway.gateway.client, "generate", kept)
    return found


def ask(page: Browser, most: int) -> None:
    """Give the key and ask "ab" for so many tokens, by keyboard alone."""
    page.tab_to("key")
    page.type(KEY)
    page.press("Tab")
    page.wait("!document.getElementById('send').disabled")
    page.tab_to("most")
    page.value("document.activeElement.select()")
    page.type(str(most))
    page.tab_to("text")
    page.type("ab")
    page.press("Enter")


def test_a_private_chat(gateway: Running, page: Browser, results: list[GenerationResult]) -> None:
    page.size(1280, 900)
    page.open(f"http://{gateway.address}/")
    page.wait("document.getElementById('state').textContent === \"give the gateway's key\"")
    page.problems.clear()  # the refusal without a key is one
    ask(page, 3)
    assert page.value("document.getElementById('model').value") == "tiny"
    page.wait("document.getElementById('state').textContent.startsWith('done')")
    page.wait("!document.getElementById('send').disabled")
    said = answer("<ab>>", 3)
    assert page.value("document.getElementById('log').innerText").split("\n\n") == ["you: ab", f"answer: {said}"]
    check_numbers(page, results[0].costs, results[0].own)
    assert page.value("document.activeElement.id") == "text"
    assert page.value("document.getElementById('tokens').position") == 1
    page.type("b")
    page.press("Enter")
    page.wait("document.getElementById('log').children.length === 4 && !document.getElementById('send').disabled")
    assert results[1].own.bytes_sent != results[0].own.bytes_sent
    check_numbers(page, results[1].costs, results[1].own)
    assert page.problems == []
    assert {address.split("/")[2] for address in page.requests} == {gateway.address}


@pytest.mark.parametrize("width", [1280, 390])
def test_it_fits(gateway: Running, page: Browser, width: int) -> None:
    """Nothing lies beyond the window, and all that is needed is large enough to be hit and named for who does not see."""
    page.size(width, 844)
    page.open(f"http://{gateway.address}/")
    assert page.value("document.documentElement.scrollWidth") <= width
    for id in NEEDED:
        left, right, height = page.value(
            f"(box => [box.left, box.right, box.height])(document.getElementById('{id}').getBoundingClientRect())"
        )
        assert 0 <= left < right <= width, id
        assert height >= 20, id
    tree = page.call("Accessibility.getFullAXTree")["nodes"]
    fields = [node for node in tree if node.get("role", {}).get("value") in ("textbox", "combobox", "spinbutton", "button")]
    assert len(fields) >= len(NEEDED)
    assert all(node["name"]["value"] for node in fields if not node.get("ignored"))


def test_numbers_grow_before_the_answer_is_there(
    gateway: Running, page: Browser, results: list[GenerationResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shown while parties work: less than in the end, never less than before."""
    monkeypatch.setattr("parties.party.client_endpoint.SPENT_SECONDS", 0.02)
    page.size(1280, 900)
    page.open(f"http://{gateway.address}/")
    gateway.toy.before_round = lambda party, step, number: time.sleep(0.12)
    seen: list[int] = []

    def note() -> None:
        shown = page.value("document.querySelector('[data-role=party0] [data-what=rounds]')?.textContent")
        if shown:
            seen.append(int(shown.replace(",", "")))

    try:
        ask(page, 6)
        page.wait("document.getElementById('state').textContent.startsWith('running')")
        page.wait("document.getElementById('state').textContent.startsWith('done')", step=note)
    finally:
        gateway.toy.before_round = lambda party, step, number: None
    whole = results[0].costs["party0"]["total"]["rounds"]
    assert seen == sorted(seen)
    assert len({*seen} - {whole}) >= 3
    page.wait(f"document.querySelector('[data-role=party0] [data-what=rounds]').textContent === '{plain(whole)}'")


def test_what_it_shows_is_no_secret(gateway: Running, page: Browser) -> None:
    """A wrong key shows nothing."""
    page.open(f"http://{gateway.address}/")
    page.tab_to("key")
    page.type("not-the-key-of-this-gateway")
    page.press("Tab")
    page.wait("document.getElementById('state').textContent === \"give the gateway's key\"")
    assert page.value("document.getElementById('send').disabled")
    assert json.loads(page.value("fetch('/live').then(r => r.text())"))["error"]["code"] == "invalid_api_key"
