"""Who may generate, with which models, suites and lengths; who may store, replace and remove; what a stranger learns."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import grpc
import pytest

from mpc.errors import ConfigurationError, ManifestMismatch, MpcacheError, PermissionRefused
from parties.client.model_reference import ModelReference
from parties.config.grants import fits
from parties.identity.certificates import check
from parties.model_owner.model_owner import _header, owned_models, remove_models, share_model
from parties.party.compute_party import ComputePartyServer
from parties.party.store import Incoming, ModelStore, StoredModel
from parties.transport.connection import connect
from parties.wire import wire_pb2 as wire
from parties.wire import wire_pb2_grpc as services
from parties.wire.error_codec import from_rpc
from parties.wire.manifest import new_id
from tests.parties.conftest import VOCABULARY, Running
from tests.parties.deployment import Deployment
from tests.parties.test_faults import idle
from tests.parties.test_refusals import manifest
from tests.parties.toy import Toy, expected

GRANTS: dict[str, Any] = {
    "deadline_seconds": 60,
    "connect_seconds": 120,
    "clients": [
        "client",
        {"name": "alice", "max_prompt_tokens": 2, "max_new_tokens": 3, "models": ["tiny"], "suites": ["crypten"]},
        {"name": "bob", "models": ["other-*"], "suites": ["masked"]},
    ],
    "model_owners": ["owner", {"name": "acme", "models": ["acme-*"]}],
}


@pytest.fixture(scope="module")
def granted(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Iterator[Running]:
    toy = Toy()
    deployment = Deployment(tmp_path_factory.mktemp("granted"), 2, toy.program, **GRANTS)
    deployment.add("alice", "client")
    deployment.add("bob", "client")
    deployment.add("acme", "model-owner")
    with deployment:
        yield Running(deployment, toy, deployment.share(checkpoint))


def test_a_grant_within_its_limits(granted: Running) -> None:
    alice = granted.deployment.client("alice")
    assert alice.ask([1, 2], 3, model="tiny", stop_ids=()).tokens == expected([1, 2], 3, VOCABULARY)
    assert granted.deployment.client().ask([1, 2, 3], 4, stop_ids=()).tokens == expected([1, 2, 3], 4, VOCABULARY)


@pytest.mark.parametrize(("prompt", "tokens"), [([1, 2, 3], 1), ([1], 4)])
def test_lengths_of_one_client(granted: Running, prompt: list[int], tokens: int) -> None:
    with pytest.raises(ConfigurationError, match=r"exceed the limits of party. for alice: 2 and 3"):
        granted.deployment.client("alice").ask(prompt, tokens, model=granted.model)


def test_tokens_of_chunks_that_are_computed_again_count(granted: Running) -> None:
    permissions = granted.deployment.servers["party0"].permissions
    one = manifest(granted).model_copy(update={"prompt_tokens": 1, "new_tokens": 1, "chunk_tokens": [1, 9]})
    permissions.check_lengths(one.model_copy(update={"chunk_again": 0}), "alice")
    with pytest.raises(
        ConfigurationError, match=r"3 prompt and 1 new tokens exceed the limits of party0 for alice: 2 and 3"
    ):
        permissions.check_lengths(one.model_copy(update={"chunk_again": 1}), "alice")
    with pytest.raises(ConfigurationError, match=r"^10 prompt and"):
        permissions.check_lengths(one.model_copy(update={"chunk_again": 8}), "alice")


def test_suites_of_one_client_and_of_a_server(granted: Running) -> None:
    with pytest.raises(PermissionRefused, match=r"'alice' may not use suite 'masked' at party.; allowed: crypten"):
        granted.deployment.client("alice").ask([1], 1, model=granted.model, suite="masked")


@pytest.mark.parametrize("name", ["party1", "dealer"])
def test_suites_of_a_server(tmp_path: Path, checkpoint: Path, name: str) -> None:
    toy = Toy()
    deployment = Deployment(tmp_path, 2, toy.program)
    try:
        for one in ("dealer", "party0", "party1"):
            deployment.start_one(one, **({"suites": ["masked"]} if one == name else {}))
        model = deployment.share(checkpoint)
        with pytest.raises(PermissionRefused, match=rf"nobody may use suite 'crypten' at {name}; allowed: masked"):
            deployment.client().ask([1], 1, model=model)
    finally:
        deployment.stop()


def test_a_model_that_a_client_may_not_use_is_as_unknown(granted: Running) -> None:
    bob = granted.deployment.client("bob")
    assert bob.models() == []
    messages = []
    for model in (granted.model.id, new_id()):
        reference = ModelReference(model, "x", granted.model.architecture, "owner", granted.model.parties)
        with pytest.raises(ConfigurationError) as caught:
            bob.ask([1], 1, model=reference, suite="masked")
        messages.append(str(caught.value).replace(model, "MODEL").replace("party1", "party0"))
    assert messages[0] == messages[1]
    assert "party0 holds no model MODEL: its owner must share it first" in messages[0]


def refusals(granted: Running, name: str, model: str) -> list[MpcacheError]:
    """What `name` is told by every call of a party, when it asks about `model`."""
    running = granted.deployment
    identity = check(running.certificates, name)
    opening = wire.Open(session=new_id(), manifest=manifest(granted, model=model).canonical())
    header = wire.ModelHeader(model=model, name="tiny")
    found = []
    with connect(identity, running.peer("party0"), 60) as channel:
        stub = services.ComputePartyStub(channel)
        calls = [
            lambda: list(stub.Generate(iter([wire.ClientMessage(open=opening)]))),
            lambda: list(stub.Exchange(iter([]))),
            lambda: list(stub.StoreModel(iter([wire.ModelMessage(header=header)]))),
            lambda: stub.RemoveModel(wire.RemoveRequest(model=model)),
            lambda: stub.Describe(wire.DescribeRequest()),
        ]
        for call in calls:
            with pytest.raises(grpc.RpcError) as caught:
                call()
            assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED
            found.append(from_rpc(caught.value, "party0", "test"))
    return found


def test_a_stranger_learns_nothing(granted: Running) -> None:
    held, unknown = (refusals(granted, "stranger", model) for model in (granted.model.id, new_id()))
    assert [str(error) for error in held] == [str(error) for error in unknown]
    secrets = [granted.model.id, "tiny", "owner'", granted.deployment.servers["party0"].version, "0.1"]
    for error in held:
        assert isinstance(error, PermissionRefused)
        assert not any(secret in str(error) for secret in secrets)
    idle(granted.deployment)


def test_two_owners_at_once_do_not_get_one_name(granted: Running, checkpoint: Path) -> None:
    """Both are told that the name is free, and then send their shares."""
    turns: defaultdict[Path, threading.Barrier] = defaultdict(lambda: threading.Barrier(2))
    begin = ModelStore.begin

    def together(store: ModelStore, facts: StoredModel) -> Incoming:
        with suppress(threading.BrokenBarrierError):  # the other is refused already
            turns[store.root].wait(1)
        return begin(store, facts)

    def share(owner: str) -> str:
        try:
            share_model(granted.deployment.config("model-owner", owner), checkpoint, "acme-2")
        except PermissionRefused as error:
            return str(error)
        return ""

    with patch.object(ModelStore, "begin", together), ThreadPoolExecutor(2) as pool:
        said = list(pool.map(share, ["acme", "owner"]))
    assert sum("may not store a model of that name" in text for text in said) >= 1, said
    for name in granted.deployment.names:
        server = granted.deployment.servers[name]
        assert isinstance(server, ComputePartyServer)
        found = [m for m in server.store.models() if m.name == "acme-2"]
        assert len(found) == 1, found
        server.store.remove(found[0])


def test_an_owner_stores_only_its_names(granted: Running, checkpoint: Path) -> None:
    acme = granted.deployment.config("model-owner", "acme")
    with pytest.raises(PermissionRefused, match="'acme' may not store a model of that name at party1: choose another name"):
        share_model(acme, checkpoint, "beta")
    owner = granted.deployment.config("model-owner", "owner")
    first = share_model(acme, checkpoint, "acme-1")
    with pytest.raises(PermissionRefused, match="'owner' may not store a model of that name at party1"):
        share_model(owner, checkpoint, "acme-1")
    assert owned_models(acme, "acme-1") == {first.id: ["party0", "party1"]}
    assert owned_models(owner, "acme-1") == {}
    remove_models(acme, [first.id])


def test_an_owner_removes_and_replaces_only_its_own(granted: Running, checkpoint: Path) -> None:
    running = granted.deployment
    acme = running.config("model-owner", "acme")
    model = share_model(acme, checkpoint, "acme-2")
    client = running.client()
    assert client.ask([2], 1, model="acme-2").tokens == [2]
    identity = check(running.certificates, "owner")
    told = []
    with connect(identity, running.peer("party0"), 60) as channel:
        for id in (model.id, new_id()):
            with pytest.raises(grpc.RpcError) as caught:
                services.ComputePartyStub(channel).RemoveModel(wire.RemoveRequest(model=id))
            told.append(str(from_rpc(caught.value, "party0", "test")).replace(id, "MODEL"))
    assert told == ["'owner' has no model MODEL at party0 that it may remove"] * 2
    later = share_model(acme, checkpoint, "acme-2")
    remove_models(acme, [model.id])
    assert client.find_model("acme-2").id == later.id
    assert client.ask([3], 1, model="acme-2").tokens == [3]
    remove_models(acme, [later.id])
    with pytest.raises(ConfigurationError, match="holds no model"):
        client.ask([3], 1, model=later)
    for name in running.names:
        server: Any = running.servers[name]
        assert not (server.store.root / model.id).exists()
        assert not any(key[0] in (model.id, later.id) for key, _ in server.weight_cache._held.values())


def test_parts_of_different_storings_do_not_mix(granted: Running, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An owner that stores a model anew at one party alone is told of by both."""
    running = granted.deployment
    acme = running.config("model-owner", "acme")
    model = share_model(acme, checkpoint, "acme-3")
    assert running.client().ask([2], 1, model=model).tokens == [2]
    identity = check(running.certificates, "acme")
    with connect(identity, running.peer("party0"), 60) as channel:
        stub = services.ComputePartyStub(channel)
        stub.RemoveModel(wire.RemoveRequest(model=model.id))
        header = _header(model, 16, bytes(32))
        (receipt,) = [
            m for m in stub.StoreModel(iter([wire.ModelMessage(header=header)])) if m.WhichOneof("content") != "heartbeat"
        ]
    assert receipt.receipt.model == model.id
    with pytest.raises(
        ManifestMismatch, match=f"party0 holds another storing of model {model.id} than the one that its first"
    ):
        running.client().ask([2], 1, model=model)
    remove_models(acme, [model.id])


def test_patterns() -> None:
    assert fits(None, "x")
    assert fits(["acme-*"], "acme-1")
    assert fits(["a", "b"], "id", "b")
    assert not fits([], "x")
    assert not fits(["acme-*"], "Acme-1", "xacme-1")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clients": [{"name": "a", "max_token": 3}]}, r"unknown key 'clients\.0\.max_token': did you mean"),
        ({"clients": ["a", {"name": "a"}]}, "clients: 'a' is listed twice"),
        ({"clients": [{"name": "A b"}]}, "'A b' cannot be an identity's name"),
        ({"clients": [{"name": "a", "suites": ["plain"]}]}, "unknown suite 'plain'; known:"),
        ({"clients": [{"name": "a", "max_sessions": 0}]}, "greater than or equal to 1"),
        ({"model_owners": [{"name": "a", "model": ["x"]}]}, r"unknown key 'model_owners\.0\.model': did you mean 'models'"),
        ({"suites": ["nonesuch"]}, "unknown suite 'nonesuch'"),
    ],
)
def test_bad_grants(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    deployment = Deployment(tmp_path, 2)
    with pytest.raises(ConfigurationError, match=message):
        deployment.config("party", "party0", **changes)
