"""Whole sessions over real gRPC with TLS, with a toy program whose answer is known."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from mpc.errors import ConfigurationError, PermissionRefused
from mpc.ledger import Cost, Ledger
from mpc.turns import SESSIONS
from parties.client.model_reference import ModelReference
from parties.client.request import GenerationRequest
from parties.client.sampling_params import SamplingParams
from parties.errors import Busy
from parties.identity.certificates import create_identity
from parties.party import client_endpoint
from parties.party.store import ModelStore
from parties.transport.peer_stream import PeerStream
from parties.wire import wire_pb2 as wire
from protocols.registry import SuiteSpec
from protocols.suite import OutputShare
from tests.parties.conftest import VOCABULARY, Running
from tests.parties.deployment import Deployment
from tests.parties.relay import Relay
from tests.parties.toy import Toy, expected, slow

PROMPT = [3, 1, 4, 1, 5]


@pytest.mark.parametrize("which", ["two", "three"])
def test_greedy(which: str, request: pytest.FixtureRequest) -> None:
    running: Running = request.getfixturevalue(which)
    seen: list[int] = []
    stages: list[tuple[str, int, int]] = []
    result = running.deployment.client().ask(
        PROMPT, 4, on_token=seen.append, on_progress=lambda *stage: stages.append(stage), stop_ids=()
    )
    assert result.tokens == seen == expected(PROMPT, 4, VOCABULARY)
    assert sorted(result.costs) == running.deployment.names
    assert not result.stopped
    assert 0 < result.first_token_seconds <= result.seconds
    assert result.logits is None
    assert ("tokens", 4, 4) in stages
    assert str(result.tokens) not in repr(result)


@pytest.mark.parametrize("which", ["two", "three"])
def test_costs_are_told_while_they_grow(which: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """After single rounds too, never less than before, in the end what the ledgers say; the client's own bytes beside."""
    monkeypatch.setattr(client_endpoint, "SPENT_SECONDS", 0.0)
    monkeypatch.setattr(client_endpoint, "PROGRESS_SECONDS", 60.0)
    running: Running = request.getfixturevalue(which)
    told: dict[str, list[Cost]] = {}
    asked = GenerationRequest(PROMPT, SamplingParams(4, ignore_eos=True), SuiteSpec("crypten"))
    client = running.deployment.client()
    result = client.generate(asked, on_spent=lambda name, cost: told.setdefault(name, []).append(cost))
    assert {*told} == {*running.deployment.names, "client"}
    for name in running.deployment.names:
        assert asdict(told[name][-1]) == result.costs[name]["total"]
        assert len({cost.rounds for cost in told[name]}) > 8
    for costs in told.values():
        for field in ("rounds", "bytes_sent", "bytes_received", "offline_bytes"):
            grown = [getattr(cost, field) for cost in costs]
            assert grown == sorted(grown)
    assert told["client"][-1] == result.own
    prompt, parties = 8 * len(PROMPT), len(running.deployment.names)
    assert result.own.bytes_sent > prompt + 32 * (parties - 1)
    assert result.own.bytes_received > 8 * 4 * parties


def test_models_and_names(two: Running) -> None:
    client = two.deployment.client()
    (model,) = client.models()
    assert model == two.model
    assert (model.name, model.owner, model.parties) == ("tiny", "owner", ("party0", "party1"))
    assert client.find_model("tiny").id == client.find_model(model.id).id == model.id
    with pytest.raises(ConfigurationError, match=r"no model fits 'other'; all parties hold: tiny \("):
        client.find_model("other")


def test_a_session_alone_takes_turns_from_its_second_token_on(two: Running) -> None:
    """Dealers and prompts take none. One that computes for long may lose its turn, so some of its rounds count."""
    held: dict[tuple[int, bool], list[bool]] = {}

    def look(party: int, step: int, round: int) -> None:
        held.setdefault((party, step > 0), []).append(SESSIONS.held)

    two.toy.before_round = look
    two.deployment.client().ask(PROMPT, 4, stop_ids=())
    assert {where: any(found) for where, found in held.items()} == {
        (party, decoding): decoding and party >= 0 for party in (-1, 0, 1) for decoding in (False, True)
    }
    limit = time.monotonic() + 10
    while not SESSIONS.free and time.monotonic() < limit:
        time.sleep(0.01)
    assert SESSIONS.free


def test_loads_are_reused_and_not_shared_between_settings(two: Running) -> None:
    client = two.deployment.client()
    before = two.toy.loads
    for bits, loads in ((16, 1), (16, 1), (17, 2), (16, 2)):
        client.ask(PROMPT, 1, fraction_bits=bits, options={"crypten_own": False})
        assert two.toy.loads - before == loads
    held = two.deployment.servers["party1"].weight_cache  # type: ignore[union-attr]
    held._held.clear()
    client.ask(PROMPT, 1, options={"crypten_own": False})
    assert two.toy.loads - before == 3


def test_weights_survive_a_restart_without_the_owner(tmp_path: Path, checkpoint: Path) -> None:
    with Deployment(tmp_path, 2, Toy().program) as deployment:
        deployment.share(checkpoint)
        shares = [ModelStore(tmp_path / f"store-party{i}") for i in range(2)]
        for name in ("party0", "party1"):
            deployment.servers[name].stop()
            deployment.start_one(name)
        assert deployment.client().ask(PROMPT, 2, stop_ids=()).tokens == expected(PROMPT, 2, VOCABULARY)
    assert all(len(store.models()) == 1 for store in shares)


def test_two_sessions_at_once(two: Running) -> None:
    two.toy.before_round = slow(0.02)
    prompts = [[1, 2], [7]]
    results: dict[int, list[int]] = {}

    def one(i: int) -> None:
        results[i] = two.deployment.client().ask(prompts[i], 5, stop_ids=()).tokens

    threads = [threading.Thread(target=one, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert results == {i: expected(prompts[i], 5, VOCABULARY) for i in range(2)}


@pytest.mark.parametrize("which", ["two", "three"])
def test_early_finish(which: str, request: pytest.FixtureRequest) -> None:
    running: Running = request.getfixturevalue(which)
    running.toy.before_round = lambda party, step, round: slow(0.01 * (party + 1))(party, step, round)
    stop = expected(PROMPT, 3, VOCABULARY)[-1]
    result = running.deployment.client().ask(PROMPT, 20, stop_ids=[stop])
    assert result.tokens == expected(PROMPT, 3, VOCABULARY)
    assert result.stopped
    assert sorted(result.costs) == running.deployment.names
    asked = running.deployment.client().ask(PROMPT, 20, stop_ids=(), on_token=lambda token: token != stop)
    assert asked.tokens == result.tokens
    assert running.deployment.client().ask(PROMPT, 2, stop_ids=()).tokens == expected(PROMPT, 2, VOCABULARY)


def test_logits(two: Running) -> None:
    result = two.deployment.client().ask([0, 2], 3, decoding="logits", stop_ids=())
    assert result.tokens == [VOCABULARY - 1] * 3
    assert result.logits is not None
    assert result.logits.shape == (3, VOCABULARY)
    factor = torch.tensor([2.0, VOCABULARY - 1, VOCABULARY - 1], dtype=torch.float64)
    assert torch.equal(result.logits, factor[:, None] * (torch.arange(VOCABULARY) + 1))
    sampled = two.deployment.client().ask([0, 2], 3, decoding="logits", temperature=1e-2, top_k=3, stop_ids=())
    assert sampled.tokens == result.tokens


def test_prompt_shares_are_uniform_and_fresh(two: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[bytes] = []
    send = PeerStream.send_bulk

    def spy(self: PeerStream, message: Any) -> None:
        if isinstance(message, wire.ClientMessage):
            sent.append(message.chunk.payload)
        send(self, message)

    monkeypatch.setattr(PeerStream, "send_bulk", spy)
    for _ in range(10):
        two.deployment.client().ask([1] * 30, 1)
    assert [len(part) for part in sent] == [30 * 8] * 10
    everything = bytearray(b"".join(sent))
    words = torch.frombuffer(everything, dtype=torch.int64)
    assert words.unique().numel() == words.numel()
    counts = torch.bincount(torch.frombuffer(everything, dtype=torch.uint8).long(), minlength=256)
    statistic = float(((counts - counts.sum() / 256) ** 2 / (counts.sum() / 256)).sum())
    assert statistic < 255 + 6 * (2 * 255) ** 0.5


@pytest.mark.parametrize(
    ("prompt", "arguments", "message"),
    [
        ([], {}, "the prompt is empty"),
        ([1, VOCABULARY], {}, f"token number 2 lies outside the model's vocabulary of {VOCABULARY} tokens"),
        ([-1], {}, "token number 1 lies outside"),
        ([1] * 33, {}, "shorten the prompt to at most 31 tokens"),
        ([1] * 30, {"max_tokens": 4}, "ask for at most 3"),
        ([1], {"max_tokens": 0}, "max_tokens must be a positive integer, got 0"),
        ([1], {"decoding": "sample", "temperature": 0.0}, "temperature must be above 0"),
        ([1], {"decoding": "sample", "temperature": 100.5}, r"temperature must be above 0 and at most 100, got 100\.5"),
        ([1], {"temperature": 1.0}, "temperature needs decoding 'sample' or 'logits'"),
        ([1], {"decoding": "sample", "top_k": 3}, "top_k and top_p need decoding 'logits'"),
        ([1], {"decoding": "logits", "top_k": 3}, "top_k and top_p need a temperature"),
        ([1], {"decoding": "beam"}, "decoding = 'beam'; known: greedy, sample, logits"),
        ([1], {"suite": "quantum"}, "unknown suite 'quantum'"),
        ([1], {"model": "nothing"}, "no model fits 'nothing'"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_sent(
    two: Running, prompt: list[int], arguments: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(self: PeerStream, *_: Any) -> None:
        raise AssertionError("sent something")

    monkeypatch.setattr(PeerStream, "send", unreachable)
    with pytest.raises(ConfigurationError, match=message):
        two.deployment.client().ask(prompt, **{"max_tokens": 2, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"suite": "plain", "fraction_bits": 16}, "suite 'plain' keeps nothing secret"),
        ({"options": {"device": "cuda"}}, "suite 'crypten' has no option 'device'"),
        ({"options": {"no_such_option": 1}}, "suite 'crypten' .*no_such_option"),
        (
            {"fraction_bits": 9, "options": {"crypten_own": True}},
            "needs weights with 9 fraction bits, model tiny was shared with 16",
        ),
        ({"fraction_bits": 30}, "fraction_bits must be between 8 and 20, got 30"),
    ],
)
def test_parties_refuse_what_they_cannot_do(two: Running, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        two.deployment.client().ask(PROMPT, 2, **arguments)
    assert two.deployment.client().ask(PROMPT, 1).tokens == expected(PROMPT, 1, VOCABULARY)


def test_unknown_model(two: Running) -> None:
    model = ModelReference("0" * 32, "ghost", two.model.architecture, "owner", two.model.parties)
    with pytest.raises(ConfigurationError, match=r"party. holds no model 0{32}: its owner must share it first"):
        two.deployment.client().ask(PROMPT, 2, model=model)


def test_limits(tmp_path: Path, checkpoint: Path) -> None:
    toy = Toy()
    settings = {"limits": {"max_sessions": 1, "max_queued": 0, "max_prompt_tokens": 4, "max_new_tokens": 50}}
    with Deployment(tmp_path, 2, toy.program, **settings) as deployment:
        model = deployment.share(checkpoint)
        client = deployment.client()
        with pytest.raises(ConfigurationError, match=r"5 prompt and 2 new tokens exceed the limits of party.: 4 and 50"):
            client.ask(PROMPT, 2, model=model)
        begun, results = threading.Event(), []
        toy.before_round = slow(0.01)

        def first() -> None:
            results.append(client.ask([1], 20, model=model, stop_ids=(), on_token=lambda token: begun.set()).tokens)

        thread = threading.Thread(target=first)
        thread.start()
        assert begun.wait(10)
        with pytest.raises(Busy, match=r"party. is busy: it serves 1 sessions at a time; try again later"):
            deployment.client().ask([1], 1, model=model)
        thread.join(30)
        assert results == [expected([1], 20, VOCABULARY)]
        assert client.ask([2], 1, model=model).tokens == [2]


def test_only_clients_may_generate(two: Running) -> None:
    with pytest.raises(PermissionRefused, match=r"'stranger' may not generate at party."):
        two.deployment.client("stranger").ask(PROMPT, 1, model=two.model)
    with pytest.raises(PermissionRefused, match="'stranger' has no role in the deployment of party0"):
        two.deployment.client("stranger").models()


def test_only_owners_may_store(two: Running, checkpoint: Path) -> None:
    from parties.model_owner.model_owner import share_model

    two.deployment.add("other-owner", "model-owner")
    config = two.deployment.config("model-owner", "other-owner")
    with pytest.raises(PermissionRefused, match="'other-owner' may not store models at party1"):
        share_model(config, checkpoint)


def test_nothing_secret_is_logged(two: Running, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    def fail(party: int, share: OutputShare) -> OutputShare:
        raise ValueError(f"secret {share.share.tolist()}")

    two.toy.after_share = fail
    with pytest.raises(Exception, match=r"internal error in .*ValueError; its log says where") as caught:
        two.deployment.client().ask([11, 11], 1)
    assert "secret" not in caplog.text + str(caught.value)
    assert "in fail" in caplog.text


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str], list[int]]:
    """Payload bytes of every frame that is sent, by (sender, receiver)."""
    counts: dict[tuple[str, str], list[int]] = {}
    drain = PeerStream.drain

    def spy(self: PeerStream, outbox: Any) -> Iterator[Any]:
        for message in drain(self, outbox):
            if message.WhichOneof("content") == "frame":
                counts.setdefault((self.session.role, self.peer), []).append(len(message.frame.payload))
            yield message

    monkeypatch.setattr(PeerStream, "drain", spy)
    return counts


@pytest.mark.parametrize(("parties", "way"), [(2, "grpc"), (2, "tls"), (3, "tls")])
def test_ledger_equals_the_wire(
    parties: int, way: str, tmp_path: Path, checkpoint: Path, counted: dict[tuple[str, str], list[int]]
) -> None:
    toy = Toy(rounds=4, elements=20_000)
    deployment = Deployment(tmp_path, parties, toy.program, bulk="off" if way == "grpc" else "required")
    relay = Relay(deployment.addresses[0])
    near = deployment.values("party", "party1")["parties"]
    near[0] = {"name": "party0", "address": relay.address}
    try:
        for name in ("dealer", *deployment.names):
            deployment.start_one(name, **({"parties": near} if name == "party1" else {}))
        if way == "tls":
            lines = deployment.servers["party0"].lines
            lines.port, lines.local = relay.also(f"127.0.0.1:{lines.port}"), ""  # as on another host
        model = deployment.share(checkpoint)
        for new_tokens in (1, 3):  # the first also loads the weights
            counted.clear()
            forward, backward = relay.forward, relay.backward
            result = deployment.client().ask(PROMPT, new_tokens, model=model, stop_ids=())
            rounds = 4 * new_tokens + (len(model.architecture.weight_shapes()) if new_tokens == 1 else 0)
            for name, ledger in result.costs.items():
                total = ledger["total"]
                sent = [frame for (sender, _), frames in counted.items() if sender == name for frame in frames]
                got = [frame for (_, receiver), frames in counted.items() if receiver == name for frame in frames]
                assert total["rounds"] == rounds
                assert total["bytes_sent"] == sum(sent) > 0
                assert total["bytes_received"] == sum(got) == total["bytes_sent"]
                assert total["messages"] == len(sent) == rounds * (parties - 1)
            relayed = ["party1"] if way == "grpc" else deployment.names[1:]  # a line's port is the same for all peers
            payload = sum(sum(counted[name, "party0"]) for name in relayed)
            for raw in (relay.forward - forward, relay.backward - backward):
                assert payload < raw < 1.1 * payload + 20_000
    finally:
        deployment.stop()
        relay.close()


def test_identity_of_a_host_alias(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path)
    create_identity(deployment.authority, "third", "client", hosts=["third.example"])
    assert deployment.config("client", "third").name == "third"


def test_nothing_leaks(two: Running) -> None:
    def in_use() -> tuple[int, int]:
        return threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))

    others = threading.enumerate()  # of tests before, in this process
    client = two.deployment.client()
    client.ask(PROMPT, 1, stop_ids=())
    time.sleep(0.5)
    before = in_use()
    for i in range(6):
        if i % 2:
            with pytest.raises(ConfigurationError):
                client.ask(PROMPT, 1, options={"no_such_option": True})
        else:
            client.ask(PROMPT, 1, stop_ids=())
    limit = time.monotonic() + 60  # of a busy machine
    while (after := in_use())[0] > before[0] + 1 or after[1] > before[1] + 2:
        assert time.monotonic() < limit, f"threads and files: {before} before, {after} after"
        time.sleep(0.1)
    while any(server.heartbeats._streams for server in two.deployment.servers.values()):
        assert time.monotonic() < limit, "a stream is still watched"
        time.sleep(0.02)
    while reading := [t for t in threading.enumerate() if t.name.startswith("read ") and t not in others]:
        assert time.monotonic() < limit, f"streams that are over are still read: {reading}"
        time.sleep(0.02)


def test_long_ledgers_arrive(two: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    to_json = Ledger.to_json
    monkeypatch.setattr(Ledger, "to_json", lambda self: {**to_json(self), "stages": {str(i): {} for i in range(200_000)}})
    result = two.deployment.client().ask(PROMPT, 1)
    assert all(len(cost["stages"]) == 200_000 for cost in result.costs.values())
    monkeypatch.setattr(client_endpoint, "LEDGER_BYTES", 1000)
    result = two.deployment.client().ask(PROMPT, 1)
    assert all(cost["stages"] == {} and cost["total"]["rounds"] > 0 for cost in result.costs.values())
