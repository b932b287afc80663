"""Several answers, what a gateway does that may see logits, the queue, what is dropped, log and numbers of responses."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch

from launch.serve.gateway.errors import ApiError
from launch.serve.gateway.logits import Adjustment
from launch.serve.gateway.places import Places
from mpc.errors import ConfigurationError
from parties.client.sampling import choose, seeded
from parties.client.sampling_params import SamplingParams
from tests.launch.serve.gateway_harness import Running, deployed, serving, wait_until
from tests.parties.conftest import checkpoint  # noqa: F401
from tests.parties.letters import LETTERS, answer
from tests.parties.toy import Toy, slow

LAST = LETTERS[-1]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Iterator[Any]:  # noqa: F811
    """A deployment whose parties grant this client logits."""
    with deployed(tmp_path_factory.mktemp("choices"), checkpoint) as made:
        yield made


@pytest.fixture(scope="module")
def gateway(parts: Any) -> Iterator[Running]:
    """A gateway that may see logits, with one place and a queue of one."""
    with serving(*parts, allow_logits=True, max_concurrent=1, max_queue=1) as running:
        yield running


def request(gateway: Running, path: str, body: Any = None) -> tuple[int, dict[str, str], bytes]:
    """One plain request: status, headers, body."""
    data = None if body is None else json.dumps(body).encode()
    asked = urllib.request.Request(f"http://{gateway.address}{path}", data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(asked, timeout=60) as found:
            return found.status, dict(found.headers), found.read()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read()


def test_several_answers(gateway: Running) -> None:
    client = gateway.openai()
    found = client.completions.create(model="tiny", prompt=["ab", "h"], max_tokens=3, n=2)
    assert [(c.index, c.text) for c in found.choices] == [(0, "cde"), (1, "cde"), (2, "hij"), (3, "hij")]
    assert found.usage is not None
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (3, 12)
    assert [c.text for c in client.completions.create(model="tiny", prompt=[[1, 2], [8]], max_tokens=1).choices] == [
        "c",
        "h",
    ]
    texts, ends = {0: "", 1: ""}, []
    for chunk in client.completions.create(model="tiny", prompt="ab", max_tokens=3, n=2, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            ends += [choice.index] if choice.finish_reason else []
    assert (texts, ends) == ({0: "cde", 1: "cde"}, [0, 1])
    messages: Any = [{"role": "user", "content": "ab"}]
    chat = client.chat.completions.create(model="tiny", messages=messages, max_tokens=2, n=2)
    assert [choice.message.content for choice in chat.choices] == ["cd", "cd"]


def test_bias_and_probabilities(gateway: Running) -> None:
    """The toy's logits of the first token are sum * (i + 1): the last letter is the likeliest."""
    client = gateway.openai()
    bias = {str(LETTERS.index("q")): 100}
    plain = client.completions.create(model="tiny", prompt="a", max_tokens=1, logit_bias={"3": 1})
    biased = client.completions.create(model="tiny", prompt="a", max_tokens=1, logit_bias=bias, logprobs=2)
    assert (plain.choices[0].text, biased.choices[0].text) == ("", "q")  # the last letter ends texts
    told = biased.choices[0].logprobs
    assert told is not None
    logits = torch.arange(1, 41, dtype=torch.float64)
    wanted = float(torch.log_softmax(logits, 0)[LETTERS.index("q")])
    assert told.tokens == ["q"]
    assert told.token_logprobs is not None
    assert math.isclose(told.token_logprobs[0] or 0, wanted, abs_tol=1e-6)
    assert told.top_logprobs is not None
    assert set(told.top_logprobs[0]) == {LAST, LETTERS[-2]}
    assert told.text_offset == [0]
    alone = client.completions.create(model="tiny", prompt="a", max_tokens=1, logit_bias=bias, logprobs=0).choices[0]
    assert alone.logprobs is not None
    assert (alone.logprobs.tokens, alone.logprobs.top_logprobs) == (["q"], [{}])
    messages: Any = [{"role": "user", "content": "a"}]
    chat = client.chat.completions.create(
        model="tiny", messages=messages, max_tokens=1, logit_bias=bias, logprobs=True, top_logprobs=1
    )
    said = chat.choices[0].logprobs
    assert said is not None
    assert said.content is not None
    assert [(token.token, len(token.top_logprobs)) for token in said.content] == [("q", 1)]
    with pytest.raises(openai.BadRequestError, match="logit_bias: token 40 lies outside the vocabulary, 0 to 39"):
        client.completions.create(model="tiny", prompt="a", max_tokens=1, logit_bias={"40": 1})


@pytest.mark.parametrize("stop", [None, "ax"])
def test_a_stream_tells_probabilities_as_a_whole_answer_does(gateway: Running, stop: str | None) -> None:
    """Each with its token, where its text waits (it may begin what ends the answer), too."""
    client = gateway.openai()
    asked: dict[str, Any] = {"model": "tiny", "max_tokens": 3, "logit_bias": {"1": 100}, "stop": stop}
    told_of = {**asked, "prompt": "a", "logprobs": 1}
    whole = client.completions.create(**told_of).choices[0]
    chunks = [chunk.choices[0] for chunk in client.completions.create(**told_of, stream=True)]
    assert "".join(chunk.text for chunk in chunks) == whole.text == "aaa"
    told = [chunk.logprobs for chunk in chunks if chunk.logprobs is not None]
    assert whole.logprobs is not None
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        assert [one for part in told for one in getattr(part, name)] == getattr(whole.logprobs, name)
    assert whole.logprobs.text_offset == [0, 1, 2]
    chat = {**asked, "messages": [{"role": "user", "content": "a"}], "logprobs": True, "top_logprobs": 2}
    said = client.chat.completions.create(**chat).choices[0].logprobs
    parts = [chunk.choices[0].logprobs for chunk in client.chat.completions.create(**chat, stream=True)]
    assert said is not None
    assert [one for part in parts if part is not None for one in part.content or []] == said.content
    assert said.content is not None
    assert len(said.content) == 3


def test_a_seed_repeats_a_sample(gateway: Running) -> None:
    client = gateway.openai()

    def text(seed: int) -> str:
        found = client.completions.create(model="tiny", prompt="a", max_tokens=4, temperature=2, top_p=0.9, seed=seed)
        return found.choices[0].text

    assert text(7) == text(7)
    drawn = [choose(torch.zeros(40), 1.0, prg=seeded(seed)) for seed in range(20)]
    assert len(set(drawn)) > 5
    assert drawn == [choose(torch.zeros(40), 1.0, prg=seeded(seed)) for seed in range(20)]
    with pytest.raises(ConfigurationError, match="seed needs decoding 'logits'"):
        SamplingParams(4, decoding="sample", seed=1)


def test_adjustment() -> None:
    logits = torch.tensor([1.0, -2.0, 3.0, 0.0])
    said = [0, 1, 2, 2]
    found = Adjustment(1, {3: 5.0}, presence=0.5, frequency=0.25)(logits, said)
    assert found.tolist() == [1.0, -2.75, 2.0, 5.0]
    assert Adjustment(4, repetition=2.0)(logits, said).tolist() == [0.5, -4.0, 1.5, 0.0]
    assert logits.tolist() == [1.0, -2.0, 3.0, 0.0]


def test_a_queue_and_when_to_come_again(gateway: Running) -> None:
    gateway.toy.before_round = slow(0.05)
    body = {"model": "tiny", "prompt": "ab", "max_tokens": 8}
    found: list[tuple[int, dict[str, str], bytes]] = []
    asking = [threading.Thread(target=lambda: found.append(request(gateway, "/v1/completions", body))) for _ in range(2)]
    places = gateway.gateway.places
    asking[0].start()
    assert wait_until(lambda: (places.running, places.waiting) == (1, 0))
    asking[1].start()
    assert wait_until(lambda: (places.running, places.waiting) == (1, 1))
    status, headers, said = request(gateway, "/v1/completions", body)
    assert (status, json.loads(said)["error"]["code"]) == (429, "busy")
    assert int(headers["retry-after"]) >= 1
    for thread in asking:
        thread.join(60)
    gateway.toy.before_round = Toy().before_round
    assert [(code, json.loads(text)["choices"][0]["text"]) for code, _, text in found] == [(200, answer("ab", 8))] * 2
    assert wait_until(lambda: gateway.gateway.running == 0)


def test_places() -> None:
    """In order, given up in the queue, and told by what requests took."""

    async def check() -> None:
        places, order = Places(2, 2), list[str]()

        async def one(name: str) -> None:
            await places.take()
            order.append(name)

        await one("a")
        await one("b")
        waiting = [asyncio.create_task(one(name)) for name in "cd"]
        await asyncio.sleep(0)
        with pytest.raises(ApiError) as caught:
            await places.take()
        assert caught.value.headers["Retry-After"] == "2"
        waiting[0].cancel()
        await asyncio.sleep(0)
        for _ in range(20):
            places._seconds += 0.3 * (10 - places._seconds)
        assert places.retry_seconds() == 10
        places.leave(10.0)
        await waiting[1]
        assert (order, places.running, places.waiting) == (["a", "b", "d"], 2, 0)
        places.leave(None)
        places.leave(None)
        assert places.running == 0

    asyncio.run(check())


def test_what_is_dropped(parts: Any) -> None:
    with serving(*parts, drop_unsupported=True) as running:
        unmet = {"top_p": 0.5, "presence_penalty": 1, "tools": [{"type": "function"}], "mirostat": 2, "min_p": 0.1}
        body = {"model": "tiny", "prompt": "ab", "max_tokens": 2, "temperature": 0, **unmet}
        status, headers, text = request(running, "/v1/completions", body)
        assert (status, json.loads(text)["choices"][0]["text"]) == (200, "cd")
        assert headers["x-dropped-parameters"] == "tools, mirostat, min_p, presence_penalty"
        status, headers, text = request(running, "/v1/completions", {"model": "tiny", "prompt": "ab", "max_tokens": 0})
        assert status == 400  # what is wrong is still said


def test_a_prompt_too_short_for_the_policy(parts: Any) -> None:
    """It is served as a whole; one that is long enough is not, and what no length mends is refused."""
    asked: dict[str, Any] = {"model": "tiny", "max_tokens": 1}
    with serving(*parts, policy="streaming-llm:budget=0.5,sinks=4") as running:
        for prompt, wanted in (("ab", "full"), ("·" * 20, None)):
            status, headers, _ = request(running, "/v1/completions", {**asked, "prompt": prompt})
            assert (status, headers.get("x-cache-policy")) == (200, wanted)
        both = {**asked, "prompt": ["ab", "·" * 20]}
        assert request(running, "/v1/completions", both)[1]["x-cache-policy"] == "full"
    with serving(*parts, policy="mpcache:static=1,dynamic=0.5,sharing=3") as running:
        status, _, text = request(running, "/v1/completions", {**asked, "prompt": "ab"})
        assert status == 400
        assert b"needs 5 layers, the model has 1" in text


def test_what_answers_carry_comes_back(gateway: Running) -> None:
    """Histories made of `message.model_dump()`."""
    messages: Any = [{"role": "user", "content": "a"}]
    client = gateway.openai().chat.completions
    said = client.create(model="tiny", messages=messages, max_tokens=1, logit_bias={"2": 100}).choices[0].message
    empty: dict[str, Any] = {"tool_calls": [], "reasoning_content": None, "annotations": []}
    history = [*messages, {**said.model_dump(), **empty}, {"role": "user", "content": "c"}]
    assert client.create(model="tiny", messages=history, max_tokens=1).choices[0].finish_reason in ("length", "stop")
    history[1]["tool_calls"] = [{"id": "1"}]
    with pytest.raises(openai.BadRequestError, match="messages number 2: tool_calls must be empty"):
        client.create(model="tiny", messages=history, max_tokens=1)


def test_what_is_hidden_from_parties_reaches_no_log(parts: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Neither a padded prompt's length nor where an answer of fixed length ended."""
    caplog.set_level(logging.INFO)
    lines = []
    with serving(*parts, prompt_buckets=(8, 16), fixed_length=True) as running:
        for prompt, stop in (("a", None), ("aaa", ["n"])):
            caplog.clear()
            asked = {"model": "tiny", "prompt": prompt, "max_tokens": 4, "stop": stop}
            status, _, text = request(running, "/v1/completions", asked)
            assert status == 200
            told = json.loads(text)
            assert told["usage"]["prompt_tokens"] == len(prompt)
            assert told["choices"][0]["finish_reason"] == ("stop" if stop else "length")
            said = [r for r in caplog.records if getattr(r, "event", "") == "answer"]
            lines.append({k: v for k, v in said[0].facts.items() if k not in ("request", "seconds", "session")})  # type: ignore[attr-defined]
        counted = request(running, "/metrics")[2].decode()
    assert lines[0] == lines[1]
    assert (lines[0]["prompt_tokens"], lines[0]["tokens"], lines[0]["outcome"]) == (8, 4, "complete")
    assert "mpcache_gateway_prompt_tokens_total 16.0" in counted
    assert "mpcache_gateway_tokens_total 8.0" in counted


def test_every_response_is_counted_and_logged(gateway: Running, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for path, body, wanted in [
        ("/health", None, 200),
        ("/secret", None, 404),
        ("/v1/completions", {"model": "tiny", "prompt": "ab", "max_tokens": 0}, 400),
        ("/v1/completions", {"model": "tiny", "prompt": "ab", "max_tokens": 1}, 200),
    ]:
        assert request(gateway, path, body)[0] == wanted
    for _ in range(100):  # the last answer's place is free a moment after its end
        status, headers, text = request(gateway, "/metrics")
        if b"running 0.0" in text:
            break
        time.sleep(0.05)
    assert (status, headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert 'mpcache_gateway_responses_total{path="other",status="404"} 1.0' in text.decode()
    assert "mpcache_gateway_running 0.0" in text.decode()
    assert "mpcache_gateway_tokens_total" in text.decode()
    for line in ("GET other 404", "POST /v1/completions 400", "POST /v1/completions 200", "GET /health 200"):
        assert f"gateway: {line}" in caplog.text
    assert "secret" not in caplog.text
