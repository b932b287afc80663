"""The gateway as the package openai sees it: answers, streams, two at a time, and clients that leave."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from transformers import AutoTokenizer

from tests.launch.serve.gateway_harness import Running, deployed, serving, wait_until
from tests.parties.conftest import checkpoint  # noqa: F401
from tests.parties.letters import answer, write_letters
from tests.parties.toy import Toy, slow


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Iterator[Running]:  # noqa: F811
    """A gateway with its default settings."""
    with deployed(tmp_path_factory.mktemp("gateway"), checkpoint) as parts, serving(*parts) as running:
        yield running


@pytest.fixture(autouse=True)
def _plain_toy(gateway: Running) -> Iterator[None]:
    yield
    gateway.toy.before_round = Toy().before_round


def test_models(gateway: Running) -> None:
    client = gateway.openai()
    (model,) = client.models.list().data
    assert (model.id, model.object, model.owned_by) == ("tiny", "model", "owner")
    assert client.models.retrieve("tiny") == model
    with pytest.raises(openai.NotFoundError, match="no such model is served here; served: tiny") as caught:
        client.models.retrieve("other")
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError, match="no model is named: GET /v1/models lists them"):
        client.get("/models/", cast_to=object)
    with pytest.raises(openai.BadRequestError, match="is a decoder, which has neither") as refused:
        client.embeddings.create(model="tiny", input="ab")
    assert refused.value.param == "model"


def test_completions(gateway: Running) -> None:
    client = gateway.openai()
    found = client.completions.create(model="tiny", prompt="ab", max_tokens=5)
    assert (found.object, found.model, len(found.choices)) == ("text_completion", "tiny", 1)
    assert found.choices[0].text == answer("ab", 5) == "cdefg"
    assert found.choices[0].finish_reason == "length"
    assert found.usage is not None
    assert (found.usage.prompt_tokens, found.usage.completion_tokens, found.usage.total_tokens) == (2, 5, 7)
    assert found.id == found._request_id
    assert client.completions.create(model="tiny", prompt=[1, 2], max_tokens=2).choices[0].text == "cd"
    assert client.completions.create(model="tiny", prompt=["ab"], max_tokens=2, echo=True).choices[0].text == "abcd"
    assert client.completions.create(model="tiny", prompt="ab").choices[0].text == answer("ab", 16)
    neutral: dict[str, Any] = {"n": 1, "best_of": 1, "presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}}
    ignored = {"user": "me", "seed": 7, "temperature": 0, "top_p": 1, "logprobs": None, **neutral}
    assert client.completions.create(model="tiny", prompt="ab", max_tokens=1, **ignored).choices[0].text == "c"


def test_ends_of_an_answer(gateway: Running) -> None:
    client = gateway.openai()
    stopped = client.completions.create(model="tiny", prompt="ab", max_tokens=20, stop=["zz", "fg"])
    assert (stopped.choices[0].text, stopped.choices[0].finish_reason) == ("cde", "stop")
    assert stopped.usage is not None
    assert stopped.usage.completion_tokens == 5
    ended = client.completions.create(model="tiny", prompt="zj", max_tokens=20)  # token 39 ends texts of this model
    assert (ended.choices[0].text, ended.choices[0].finish_reason) == ("JKL", "stop")
    last = client.completions.create(model="tiny", prompt="zj", max_tokens=4)
    assert (last.choices[0].text, last.choices[0].finish_reason) == ("JKL", "stop")
    pieces = client.completions.create(model="tiny", prompt="ab", max_tokens=20, stop="fg", stream=True)
    assert [piece.choices[0].text for piece in pieces] == ["c", "d", "e", ""]
    released = client.completions.create(model="tiny", prompt="ab", max_tokens=4, stop="fz", stream=True)
    assert "".join(piece.choices[0].text for piece in released) == "cdef"


def test_ends_that_are_special_tokens(gateway: Running, tmp_path: Path, checkpoint: Path) -> None:  # noqa: F811
    """Not part of the text, yet a stop string; and a chat ends where its template ends the assistant's turn."""
    letters = write_letters(tmp_path / "special", checkpoint, special="g")
    with serving(gateway.deployment, gateway.toy, letters) as special:
        client = special.openai()

        def text(**options: Any) -> tuple[str, str, int]:
            found = client.completions.create(model="tiny", prompt="ab", max_tokens=7, **options)
            assert found.usage is not None
            return found.choices[0].text, found.choices[0].finish_reason, found.usage.completion_tokens

        assert text() == ("cdefhi", "length", 7)
        assert text(stop="g") == ("cdef", "stop", 5)
        assert text(stop=["fgh"]) == ("cde", "stop", 6)
        assert text(extra_body={"stop_token_ids": [5, 77]}) == ("cd", "stop", 3)
        with pytest.raises(openai.BadRequestError, match="stop_token_ids: must be a list of token ids"):
            text(extra_body={"stop_token_ids": "g"})
        chat = client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "ab"}], max_tokens=9)
        assert (chat.choices[0].message.content, chat.choices[0].finish_reason) == ("cdef", "stop")


def test_special_tokens_in_a_prompt(gateway: Running, tmp_path: Path, checkpoint: Path) -> None:  # noqa: F811
    """Written in a prompt or a message they are one token, as transformers reads them, and no longer text of the answer."""
    letters = write_letters(tmp_path / "special", checkpoint, special="<|im_end|>")
    oracle = AutoTokenizer.from_pretrained(letters)
    with serving(gateway.deployment, gateway.toy, letters) as special:
        client = special.openai()
        found = client.completions.create(model="tiny", prompt="a<|im_end|>b", max_tokens=3)
        assert found.usage is not None
        ids = oracle("a<|im_end|>b").input_ids
        assert (ids, found.usage.prompt_tokens) == ([1, 7, 2], 3)
        assert found.choices[0].text == answer("agb", 3) == "jkl"
        assert client.completions.create(model="tiny", prompt="e", max_tokens=4).choices[0].text == "efh"
        messages: Any = [{"role": "user", "content": "a<|im_end|>"}]
        chat = client.chat.completions.create(model="tiny", messages=messages, max_tokens=2)
        assert chat.usage is not None
        asked = oracle.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
        assert chat.usage.prompt_tokens == len(asked) == len("<ag>>")


def test_chat(gateway: Running) -> None:
    client = gateway.openai()
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages: Any = [{"role": "developer", "content": "1"}, {"role": "user", "content": parts}]
    found = client.chat.completions.create(model="tiny", messages=messages, max_completion_tokens=3)
    assert (found.object, found.choices[0].message.role) == ("chat.completion", "assistant")
    assert (found.choices[0].message.content, found.choices[0].finish_reason) == ("cde", "length")
    assert found.usage is not None
    assert found.usage.prompt_tokens == len("<1><ab>>")
    rest = client.chat.completions.create(model="tiny", messages=messages)
    assert rest.usage is not None
    assert rest.usage.completion_tokens == 32 - 8 + 1  # up to the end of the model's context


def test_chat_streams(gateway: Running) -> None:
    messages: Any = [{"role": "user", "content": "ab"}]
    wanted: dict[str, Any] = {"model": "tiny", "messages": messages, "max_tokens": 3, "stream": True}
    chunks = list(gateway.openai().chat.completions.create(**wanted, stream_options={"include_usage": True}))
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1
    deltas = [chunk.choices[0].delta for chunk in chunks[:-1]]
    assert [(delta.role, delta.content) for delta in deltas] == [
        ("assistant", ""),
        (None, "c"),
        (None, "d"),
        (None, "e"),
        (None, None),
    ]
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * 4 + ["length"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 3
    assert all(chunk.usage is None for chunk in chunks[:-1])
    without = list(gateway.openai().chat.completions.create(**wanted))
    assert without[-1].choices[0].finish_reason == "length"


def test_async_and_two_at_a_time(gateway: Running) -> None:
    met = threading.Barrier(2)

    def both(index: int, step: int, round: int) -> None:
        if step == 0 and index == 0:
            met.wait(30)

    gateway.toy.before_round = both

    async def one(prompt: str) -> str:
        async with gateway.async_openai() as client:
            stream = await client.completions.create(model="tiny", prompt=prompt, max_tokens=3, stream=True)
            return "".join([piece.choices[0].text async for piece in stream])

    async def pair() -> list[str]:
        return await asyncio.gather(one("ab"), one("h"))

    assert asyncio.run(pair()) == ["cde", "hij"]


def test_leaving_a_stream_frees_the_parties(gateway: Running) -> None:
    gateway.toy.before_round = slow(0.05)
    stream = gateway.openai().completions.create(model="tiny", prompt="a", max_tokens=30, stream=True)
    assert next(iter(stream)).choices[0].text == "a"
    assert gateway.gateway.running == 1
    stream.close()
    assert wait_until(lambda: gateway.sessions() == 0, 3)
    assert wait_until(lambda: gateway.gateway.running == 0, 3)
    gateway.toy.before_round = Toy().before_round
    assert gateway.openai().completions.create(model="tiny", prompt="ab", max_tokens=1).choices[0].text == "c"


def test_leaving_without_a_stream_frees_the_parties(gateway: Running) -> None:
    gateway.toy.before_round = slow(0.05)
    host, _, port = gateway.address.rpartition(":")
    body = json.dumps({"model": "tiny", "prompt": "a", "max_tokens": 30}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {gateway.address}\r\nContent-Type: application/json\r\n"
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
        assert wait_until(lambda: gateway.sessions() >= 3)
    assert wait_until(lambda: gateway.sessions() == 0 and gateway.gateway.running == 0, 3)


def test_a_token_arrives_as_soon_as_the_parties_produce_it(
    gateway: Running, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    produced: list[float] = []
    generate = gateway.gateway.client.generate

    def timed(*arguments: Any, on_token: Any, **options: Any) -> Any:
        def stamped(token: int) -> Any:
            produced.append(time.perf_counter())
            return on_token(token)

        return generate(*arguments, on_token=stamped, **options)

    monkeypatch.setattr(gateway.gateway.client, "generate", timed)
    gateway.toy.before_round = slow(0.01)
    first, all_of_them = [], []
    client = gateway.openai()
    for _ in range(5):
        produced.clear()
        arrived = []
        for piece in client.completions.create(model="tiny", prompt="a", max_tokens=4, stream=True):
            if piece.choices[0].text:
                arrived.append(time.perf_counter())
        assert len(arrived) == len(produced) == 4
        delays = [b - a for a, b in zip(produced, arrived, strict=True)]
        first.append(delays[0])
        all_of_them += delays
    with capsys.disabled():
        print(
            f"\nfrom the client's on_token to the package openai: first token {1e3 * statistics.median(first):.1f} ms, "
            f"any token {1e3 * statistics.median(all_of_them):.1f} ms (medians of {len(first)} and {len(all_of_them)})"
        )
    assert 0 < statistics.median(first) < 0.25
    assert statistics.median(all_of_them) < 0.25


def test_a_canary_reaches_no_log(
    gateway: Running,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    canary = "7351-4862"  # to the toy nine times token 0
    caplog.set_level(logging.DEBUG)

    def post(path: str, body: bytes, key: str = "") -> tuple[int, str]:
        import http.client

        connection = http.client.HTTPConnection(gateway.address, timeout=30)
        headers = {"Content-Type": "application/json", "Authorization": key}
        connection.request("POST", path, body, headers)
        answered = connection.getresponse()
        return answered.status, answered.read().decode()

    good = {"model": "tiny", "prompt": canary, "max_tokens": 2}
    chat = {"model": "tiny", "messages": [{"role": "user", "content": canary}], "max_tokens": 2}
    cases: list[tuple[str, bytes, int]] = [
        ("/v1/completions", json.dumps(good).encode(), 200),
        ("/v1/completions", json.dumps({**good, "stream": True}).encode(), 200),
        ("/v1/chat/completions", json.dumps(chat).encode(), 200),
        ("/v1/completions", b'{"prompt": "' + canary.encode(), 400),
        ("/v1/completions", json.dumps({**good, "max_tokens": canary}).encode(), 400),
        ("/v1/completions", json.dumps({**good, canary: 1}).encode(), 400),
        ("/v1/completions", json.dumps({**good, "model": canary}).encode(), 404),
        ("/v1/completions", json.dumps({**good, "prompt": canary * 5}).encode(), 400),
        (f"/v1/{canary}", b"{}", 404),
        ("/v1/chat/completions", json.dumps({**chat, "messages": [{"role": canary, "content": canary}]}).encode(), 400),
    ]
    for path, body, status in cases:
        found, text = post(path, body)
        assert found == status, text
        assert canary not in text

    def broken(*arguments: Any, **options: Any) -> Any:
        raise ValueError(canary)

    monkeypatch.setattr(gateway.gateway.client, "generate", broken)
    status, text = post("/v1/completions", json.dumps(good).encode())
    assert status == 500
    assert canary not in text
    assert json.loads(text)["error"]["code"] == "internal"
    said = caplog.text + "".join(capfd.readouterr())
    assert "gateway: cmpl-" in said
    assert "internal error ValueError" in said
    assert canary not in said
    assert "9 + 2 of 2 tokens" in said
