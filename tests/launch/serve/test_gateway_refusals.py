"""What the gateway refuses, as which exception of the package openai it arrives, and what of the wire it survives."""

from __future__ import annotations

import http.client
import json
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest

from launch.serve.gateway import requests
from launch.serve.gateway.catalogue import Words
from launch.serve.gateway.errors import ApiError
from launch.serve.gateway.parameters import ChatParameters, CompletionParameters, parse
from launch.serve.gateway.settings import KEY_FILE, GatewaySettings, check_listen, own_keys, read_keys
from mpc.errors import ConfigurationError
from parties.client.draft_text import parse_draft
from parties.party.client_endpoint import ClientEndpoint
from protocols.suite import OutputShare
from tests.launch.conftest import Command
from tests.launch.serve.gateway_harness import Running, deployed, serving, wait_until
from tests.parties.conftest import VOCABULARY, checkpoint  # noqa: F401
from tests.parties.letters import write_letters
from tests.parties.relay import Relay
from tests.parties.toy import Toy, slow

KEY = "correct-horse-battery-staple"


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Iterator[Any]:  # noqa: F811
    """A deployment for all gateways of this module."""
    with deployed(tmp_path_factory.mktemp("refusals"), checkpoint, connect_seconds=2, deadline_seconds=2) as made:
        yield made


@pytest.fixture(scope="module")
def gateway(parts: Any) -> Iterator[Running]:
    """A gateway with a key, one generation at a time and small bodies."""
    settings: dict[str, Any] = {
        "keys": (KEY.encode(),),
        "max_concurrent": 1,
        "max_queue": 0,
        "max_body_bytes": 4096,
        "body_seconds": 1.0,
    }
    with serving(*parts, **settings) as running:
        yield running


@pytest.fixture(autouse=True)
def _plain_toy(parts: Any) -> Iterator[None]:
    yield
    parts[1].before_round = Toy().before_round


def raw(gateway: Running, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, dict[str, Any]]:
    """One request without the package openai."""
    connection = http.client.HTTPConnection(gateway.address, timeout=30)
    names = {"content_type": "application/json", "authorization": f"Bearer {KEY}", **headers}
    connection.putrequest(method, path, skip_host=True)
    connection.putheader("Host", names.pop("host", gateway.address))
    for name, value in names.items():
        connection.putheader(name.replace("_", "-"), value)
    if "content_length" not in names:
        connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body or None)
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def test_keys(gateway: Running) -> None:
    assert gateway.openai(api_key=KEY).models.list().data[0].id == "tiny"
    with pytest.raises(openai.AuthenticationError) as caught:
        gateway.openai(api_key=KEY + "r").models.list()
    assert caught.value.code == "invalid_api_key"
    for given in ("", "Bearer", f"Basic {KEY}", KEY, "Bearer clé"):
        assert raw(gateway, "GET", "/v1/models", authorization=given.encode().decode("latin-1"))[0] == 401
    assert raw(gateway, "GET", "/health", authorization="") == (200, {"status": "ok"})
    assert raw(gateway, "GET", "/ready", authorization="")[0] == 401
    assert raw(gateway, "GET", "/ready")[1]["status"] == "ready"


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "localhost.evil.example", "", "127.0.0.1.evil.example"])
def test_another_host_is_refused(gateway: Running, host: str) -> None:
    status, body = raw(gateway, "GET", "/v1/models", host=host)
    assert (status, body["error"]["code"]) == (403, "wrong_host")
    assert raw(gateway, "GET", "/health", host=host)[0] == 403


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:80", "[::1]:8000", "[::1]", "localhost."])
def test_own_hosts(gateway: Running, host: str) -> None:
    assert raw(gateway, "GET", "/v1/models", host=host)[0] == 200


def test_bodies(gateway: Running) -> None:
    for body in (b"", b"{", b'{"temperature": NaN}', b"[1]", b'"x"', b"\xff\xfe", b"[" * 4000):
        status, said = raw(gateway, "POST", "/v1/completions", body)
        assert (status, said["error"]["type"]) == (400, "invalid_request_error"), body[:10]
    status, said = raw(gateway, "POST", "/v1/completions", b" " * 4097)
    assert (status, said["error"]["code"]) == (413, "request_too_large")
    assert raw(gateway, "POST", "/v1/completions", b"", content_length="99999999999")[0] == 413
    assert raw(gateway, "POST", "/v1/completions", b"{", content_length="100")[0] == 408
    assert raw(gateway, "POST", "/v1/completions", b"{}", content_type="text/plain")[0] == 415
    assert raw(gateway, "OPTIONS", "/v1/completions")[0] == 405
    assert raw(gateway, "GET", "/v1/completions")[0] == 405
    for asked in (("GET", "/v1/engines"), ("POST", "/v1/completions/")):
        status, said = raw(gateway, *asked)
        assert (status, "/v1/chat/completions" in said["error"]["message"]) == (404, True)


def test_chunked_body_without_a_length(gateway: Running) -> None:
    connection = http.client.HTTPConnection(gateway.address, timeout=30)
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    connection.request("POST", "/v1/completions", iter([b" " * 1000] * 10), headers, encode_chunked=True)
    assert connection.getresponse().status == 413


def test_no_cross_origin_header(gateway: Running) -> None:
    connection = http.client.HTTPConnection(gateway.address, timeout=30)
    connection.request("GET", "/v1/models", headers={"Origin": "https://evil.example", "Authorization": f"Bearer {KEY}"})
    answer = connection.getresponse()
    assert not [name for name, _ in answer.getheaders() if name.lower().startswith("access-control")]


@pytest.mark.parametrize(
    ("options", "param", "message"),
    [
        ({"n": 17}, "n", "n: 17 was given; input should be less than or equal to 16"),
        ({"logprobs": 1}, "logprobs", "start it with --allow-logits"),
        ({"best_of": 3}, "best_of", "needs their probabilities"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "start it with --allow-logits"),
        ({"logit_bias": {"five": 1}}, "logit_bias", "must give token ids a number"),
        ({"top_p": 0.9}, "top_p", "start it with --allow-logits"),
        ({"temperature": 1, "seed": 1}, "seed", "used once"),
        ({"temperature": 3}, "temperature", "3 was given; input should be less than or equal to 2"),
        ({"max_tokens": 0}, "max_tokens", "0 was given; input should be greater than or equal to 1"),
        ({"prompt": ["a"] * 17}, "prompt", "at most 16 answers"),
        ({"prompt": [1, 99]}, "prompt", "number 2 lies outside the model's vocabulary of 40"),
        ({"prompt": ""}, "prompt", "the prompt is empty"),
        ({"stop": list("abcde")}, "stop", "a list of at most 4 texts"),
        ({"prompt": {"a": 1}}, "prompt", "must be a text, a list of token ids, or"),
        ({"extra_body": {"mirostat": 1}}, None, "Unrecognized request argument supplied: mirostat"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "needs stream: true"),
    ],
)
def test_parameters(gateway: Running, options: dict[str, Any], param: str | None, message: str) -> None:
    wanted = {"model": "tiny", "prompt": "ab", "max_tokens": 2, **options}
    with pytest.raises(openai.BadRequestError, match=message) as caught:
        gateway.openai(api_key=KEY).completions.create(**wanted)
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ('{"model": "tiny", "prompt": "a\\ud83d"}', "prompt"),
        ('{"model": "tiny", "prompt": "a", "stop": ["\\ud83d"]}', "stop"),
        ('{"model": "tiny\\ud83d", "prompt": "a"}', "model"),
        ('{"model": "tiny", "prompt": "a", "user": {"\\ud83d": 1}}', "user"),
        ('{"model": "tiny", "prompt": "a", "\\ud83d": 1}', None),
    ],
)
def test_texts_that_are_none(gateway: Running, body: str, param: str | None) -> None:
    connection = http.client.HTTPConnection(gateway.address, timeout=20)
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    connection.request("POST", "/v1/completions", body, headers)
    answer = connection.getresponse()
    assert answer.status == 400
    error = json.loads(answer.read())["error"]
    assert error["param"] == param
    assert "half of a surrogate pair" in error["message"]


def test_chat_parameters(gateway: Running) -> None:
    chat = gateway.openai(api_key=KEY).chat.completions
    user: Any = [{"role": "user", "content": "a"}]
    for options, param in [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "a", "tool_call_id": "1"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"top_logprobs": 3}, "top_logprobs"),
    ]:
        with pytest.raises(openai.BadRequestError) as caught:
            chat.create(**{"model": "tiny", "messages": user, **options})  # type: ignore[call-overload]
        assert caught.value.param == param
    with pytest.raises(openai.NotFoundError):
        chat.create(model="huge", messages=user)
    with pytest.raises(openai.BadRequestError, match="maximum context length is 33 tokens") as caught:
        chat.create(model="tiny", messages=user, max_tokens=40)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as caught:
        chat.create(model="tiny", messages=[{"role": "user", "content": "a" * 60}])
    assert caught.value.code == "context_length_exceeded"


def test_a_checkpoint_without_chat_template(parts: Any, tmp_path: Path, checkpoint: Path) -> None:  # noqa: F811
    deployment, toy, _ = parts
    plain = write_letters(tmp_path / "plain", checkpoint, chat=False)
    with serving(deployment, toy, plain) as running:
        client = running.openai()
        with pytest.raises(openai.BadRequestError, match="this model cannot chat: no chat template") as caught:
            client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "a"}])
        assert caught.value.code == "no_chat_template"
        assert client.completions.create(model="tiny", prompt="ab", max_tokens=1).choices[0].text == "c"


def test_busy(gateway: Running) -> None:
    gateway.toy.before_round = slow(0.05)
    client = gateway.openai(api_key=KEY)
    stream = client.completions.create(model="tiny", prompt="a", max_tokens=30, stream=True)
    next(iter(stream))
    with pytest.raises(openai.RateLimitError, match="1 generations at a time") as caught:
        client.completions.create(model="tiny", prompt="a", max_tokens=1)
    assert caught.value.response.headers["retry-after"] == "1"
    stream.close()
    patient = gateway.openai(api_key=KEY, max_retries=5)
    gateway.toy.before_round = Toy().before_round
    assert patient.completions.create(model="tiny", prompt="ab", max_tokens=1).choices[0].text == "c"


def test_nobody_asks_again_after_wrong_shares(gateway: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """A party that shifts its share of an output must not learn from a second session that the token left the vocabulary."""
    emit, sessions = ClientEndpoint.emit, set()

    def shifted(self: ClientEndpoint, step: int, share: OutputShare) -> bool:
        sessions.add(self.session.id)
        return emit(self, step, replace(share, share=share.share + (VOCABULARY if self.session.role == "party1" else 0)))

    monkeypatch.setattr(ClientEndpoint, "emit", shifted)
    with pytest.raises(openai.APIStatusError, match="do not add up to a token") as caught:
        gateway.openai(api_key=KEY, max_retries=3).completions.create(model="tiny", prompt="ab", max_tokens=2)
    assert (caught.value.status_code, caught.value.code) == (424, "wrong_output")
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert len(sessions) == 1


def test_a_busy_party(gateway: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    admission = gateway.deployment.servers["party1"].admission
    monkeypatch.setattr(admission, "_room", replace(admission._room, slots=0, queued=0))
    with pytest.raises(openai.RateLimitError, match="party1 is busy"):
        gateway.openai(api_key=KEY).completions.create(model="tiny", prompt="a", max_tokens=1, stream=True)


def test_a_lost_party_is_named_and_used_again(gateway: Running) -> None:
    client = gateway.openai(api_key=KEY)
    gateway.deployment.servers["party1"].stop()
    with pytest.raises(openai.InternalServerError, match="party1: nothing listens at") as caught:
        client.completions.create(model="tiny", prompt="ab", max_tokens=1)
    assert (caught.value.status_code, caught.value.code) == (503, "peer_lost")
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["peer"] == "party1"
    gateway.deployment.start_one("party1")
    assert client.completions.create(model="tiny", prompt="ab", max_tokens=1).choices[0].text == "c"


@pytest.mark.parametrize("stream", [False, True])
def test_a_silent_party(parts: Any, stream: bool) -> None:
    deployment, toy, letters = parts
    relay = Relay(deployment.addresses[0])
    near = deployment.values("client", "client")["parties"]
    near[0] = {"name": "party0", "address": relay.address}

    def hold(party: int, step: int, round: int) -> None:
        if party == 0 and step == 2:
            relay.open.clear()

    toy.before_round = hold
    with serving(deployment, toy, letters, {"parties": near, "deadline_seconds": 1}) as running:
        client = running.openai()
        if not stream:
            with pytest.raises(openai.InternalServerError, match="party0: sent nothing for 1 s") as caught:
                client.completions.create(model="tiny", prompt="a", max_tokens=20)
            assert (caught.value.status_code, caught.value.code) == (504, "peer_silent")
        else:
            pieces = client.completions.create(model="tiny", prompt="a", max_tokens=20, stream=True)
            said: list[str] = []
            with pytest.raises(openai.APIError, match="party0: sent nothing for 1 s"):
                said.extend(piece.choices[0].text for piece in pieces)
            assert "".join(said) in ("", "a", "ab")
        relay.open.set()
        assert wait_until(lambda: running.sessions() == 0 and running.gateway.running == 0)
    relay.close()


# ---- without a deployment -----------------------------------------------------------------------------------------------
def choice(body: dict[str, Any], served: Any, **settings: Any) -> tuple[Any, ...]:
    parameters = parse(CompletionParameters, json.dumps({"model": "m", "prompt": "ab", **body}).encode())
    found = requests.completion(parameters, served, GatewaySettings(**settings))[0].request.params
    return found.decoding, found.temperature, found.top_k, found.top_p


def test_that_samples_go_without_a_draft(parts: Any) -> None:
    deployment, _, letters = parts
    from launch.serve.gateway.catalogue import Served

    served, drafting = Served(deployment.client().find_model(), Words.load(letters), 0), parse_draft("ngram:tokens=2")
    for temperature, wanted in ((0, drafting), (0.5, None)):
        body = json.dumps({"model": "m", "prompt": "ab", "temperature": temperature}).encode()
        asked = requests.completion(parse(CompletionParameters, body), served, GatewaySettings(draft=drafting))
        assert asked[0].request.draft is wanted


def test_choice_of_decoding(parts: Any) -> None:
    deployment, _, letters = parts
    from launch.serve.gateway.catalogue import Served

    served = Served(deployment.client().find_model(), Words.load(letters), 0)
    assert choice({}, served) == ("greedy", None, None, None)
    assert choice({}, served, default_temperature=0.7) == ("sample", 0.7, None, None)
    assert choice({"temperature": 0.5, "top_p": 1, "top_k": -1}, served) == ("sample", 0.5, None, None)
    assert choice({"temperature": 0, "top_p": 0.5, "seed": 3}, served) == ("greedy", None, None, None)
    assert choice({"top_p": 0}, served) == choice({"top_k": 1, "temperature": 2}, served) == ("greedy", None, None, None)
    allowed = {"allow_logits": True}
    assert choice({"top_p": 0.5}, served, **allowed) == ("logits", 1.0, None, 0.5)
    assert choice({"top_k": 5, "temperature": 0.2}, served, **allowed) == ("logits", 0.2, 5, None)
    assert choice({"temperature": 0.2}, served, **allowed) == ("sample", 0.2, None, None)
    with pytest.raises(ApiError, match="top_k needs the model's logits"):
        choice({"top_k": 5}, served)


def test_values_never_come_back() -> None:
    for body in (
        {"model": "m", "messages": [{"role": "user", "content": {"secret": 1}}]},
        {"model": "m", "messages": [{"role": "user", "content": "x", "secret": 1}]},
        {"model": "m", "messages": [{"role": "secret", "content": "x"}]},
        {"model": "m", "messages": "secret"},
        {"model": "m", "messages": [{"role": "user", "content": "x"}], "temperature": "secret"},
        {"model": "m", "messages": [{"role": "user", "content": "x"}], "secret value": 1},
        {"model": "m", "messages": [{"role": "user", "content": "x"}], "response_format": {"secret": 1}},
    ):
        with pytest.raises(ApiError) as caught:
            parse(ChatParameters, json.dumps(body).encode())
        assert caught.value.status == 400
        assert "secret" not in json.dumps(caught.value.body())


def test_addresses_and_keys(tmp_path: Path) -> None:
    check_listen("127.0.0.1", False, False)
    check_listen("::1", False, False)
    check_listen("0.0.0.0", False, True)
    check_listen("10.0.0.1", True, False)
    with pytest.raises(ConfigurationError, match="add --tls-certificate with --tls-key, listen at"):
        check_listen("0.0.0.0", False, False)
    file = tmp_path / "keys"
    file.write_text(f"# mine\n{KEY}\n\n")
    file.chmod(0o600)
    assert read_keys(file) == (KEY.encode(),)
    file.chmod(0o644)
    with pytest.raises(ConfigurationError, match="others may read it"):
        read_keys(file)
    for text, message in (("# none\n", "holds no key"), ("short\n", "at least 16")):
        file.chmod(0o600)
        file.write_text(text)
        with pytest.raises(ConfigurationError, match=message):
            read_keys(file)


def test_the_key_of_its_own(tmp_path: Path) -> None:
    """Made once, for this user alone; it is told when it is made, and read from then on."""
    file = tmp_path / KEY_FILE
    keys, made = own_keys(file)
    assert made is not None
    assert keys == (made.encode(),)
    assert len(made) == 64
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert own_keys(file) == (keys, None)
    assert [p.name for p in tmp_path.iterdir()] == [KEY_FILE]
    file.chmod(0o640)
    with pytest.raises(ConfigurationError, match="others may read it"):
        own_keys(file)
    with pytest.raises(ConfigurationError, match=r"cannot be written .*give --api-key-file"):
        own_keys(tmp_path / "none" / KEY_FILE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--listen", "0.0.0.0:8000"], "--insecure-listen"),
        (["--listen", "8000"], "'8000' is not an address"),
        (["--api-key-file", "/none"], "--api-key-file /none cannot be read"),
        (["--tls-key", "x"], "belong together"),
        (["--insecure-no-key", "--api-key-file", "/none"], "were both given"),
        (["--suite", "plain"], "keeps nothing secret"),
        ([], "none.yaml cannot be read"),
    ],
)
def test_command(command: Command, tmp_path: Path, arguments: list[str], message: str) -> None:
    found = command("serve", "--config", tmp_path / "none.yaml", "--tokenizer", tmp_path, *arguments)
    assert (found.code, found.out) == (2, "")
    assert message in found.err
    assert len(found.err.strip().splitlines()) == 1
