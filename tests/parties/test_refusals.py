"""Who and what is refused at the door: certificates, identities, manifests, versions, malformed openings."""

from __future__ import annotations

import json
import re
import shutil
import socket
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from models import public_tables
from mpc.errors import ConfigurationError, ManifestMismatch, MpcacheError, PeerLost, PermissionRefused, RangeError, WireError
from parties.client.client import Client
from parties.identity.certificates import Identity, check, create_authority, create_identity
from parties.program import plan_of
from parties.transport.connection import connect
from parties.wire import generate_stubs
from parties.wire import wire_pb2 as wire
from parties.wire import wire_pb2_grpc as services
from parties.wire.error_codec import from_rpc
from parties.wire.manifest import PROTOCOL_VERSION, Manifest, architecture_hash, compare, new_id
from tests.parties.conftest import Running
from tests.parties.deployment import Deployment
from tests.parties.test_faults import idle, works
from tests.parties.toy import Toy

PROMPT = [3, 1]


def manifest(running: Running, **changes: Any) -> Manifest:
    values: dict[str, Any] = {
        "protocol": PROTOCOL_VERSION,
        "version": running.deployment.servers["party0"].version,
        "model": running.model.id,
        "architecture": architecture_hash(running.model.architecture),
        "suite": "crypten",
        "fraction_bits": 16,
        "options": {},
        "prefix_tokens": 0,
        "chunk_tokens": [],
        "chunk_again": 0,
        "chunk_slots": 0,
        "prompt_tokens": 2,
        "new_tokens": 2,
        "decoding": "greedy",
        "temperature": None,
        "policy": "full",
        "draft": 0,
        "tables": public_tables.digest(running.model.architecture),
        "parties": running.deployment.names,
    }
    return Manifest(**{**values, **changes})


def dial(running: Running, name: str, peer: str) -> grpc.Channel:
    """A channel with the identity `name` to a server."""
    identity = check(running.deployment.certificates, name)
    return connect(identity, running.deployment.peer(peer), 60)


def outcome(call: Iterator[Any], peer: str) -> MpcacheError:
    """The error that a call ends with."""
    with pytest.raises(grpc.RpcError) as caught:
        for _ in call:
            pass
    return from_rpc(caught.value, peer, "test")


# ---- certificates ------------------------------------------------------------------------------------------------------


def identity_elsewhere(folder: Path, running: Running, **issue: Any) -> Identity:
    """An identity 'client' as some wrong authority or clock made it, with the deployment's authority certificate."""
    create_authority(folder, 3650, start=datetime.now(UTC) - timedelta(days=100))
    files = create_identity(folder, "client", "client", **issue)
    own = check(running.deployment.certificates, "client")
    return shown_by(own, *files)


def shown_by(own: Identity, certificate: Path, key: Path) -> Identity:
    """An identity with these files, of which nothing was checked."""
    return replace(
        own, certificate=certificate.read_bytes(), key=key.read_bytes(), certificate_file=certificate, key_file=key
    )


def test_foreign_client_certificate(two: Running, tmp_path: Path) -> None:
    identity = identity_elsewhere(tmp_path, two)
    address = two.deployment.servers["party0"].address
    with pytest.raises(PeerLost, match=rf"{address} refuses the certificate .*client\.crt: .*signed by the same authority"):
        connect(identity, two.deployment.peer("party0"), 5)


def test_expired_client_certificate(two: Running, tmp_path: Path) -> None:
    for end in ("crt", "key"):
        shutil.copy(two.deployment.authority / f"authority.{end}", tmp_path)
    files = create_identity(tmp_path, "client", "client", 1, start=datetime.now(UTC) - timedelta(days=3))
    own = check(two.deployment.certificates, "client")
    identity = shown_by(own, *files)
    with pytest.raises(PeerLost, match=r"refuses the certificate .*client\.crt: it must be valid now"):
        connect(identity, two.deployment.peer("party0"), 5)
    with pytest.raises(ConfigurationError, match=r"client\.crt expired"):
        Client(two.deployment.config("client", "client", certificates=tmp_path))


def test_foreign_server_certificate(two: Running, tmp_path: Path) -> None:
    create_authority(tmp_path)
    create_identity(tmp_path, "client", "client")
    with pytest.raises(PeerLost, match=r"the certificate of .* is refused: .*signed by .*authority\.crt"):
        connect(check(tmp_path, "client"), two.deployment.peer("party0"), 5)


def test_wrong_identity_behind_an_address(two: Running) -> None:
    parties = two.deployment.values("client", "client")["parties"]
    swapped = [{"name": "party0", "address": parties[1]["address"]}, {"name": "party1", "address": parties[0]["address"]}]
    with pytest.raises(PeerLost, match="is 'party1', not 'party0': correct address or name in the configuration"):
        two.deployment.client(parties=swapped).ask(PROMPT, 1)


def test_missing_client_certificate(two: Running) -> None:
    credentials = grpc.ssl_channel_credentials((two.deployment.certificates / "authority.crt").read_bytes())
    options = [("grpc.ssl_target_name_override", "party0")]
    with grpc.secure_channel(two.deployment.servers["party0"].address, credentials, options=options) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            services.ComputePartyStub(channel).Describe(wire.DescribeRequest(), timeout=5)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    with grpc.insecure_channel(two.deployment.servers["party0"].address) as channel, pytest.raises(grpc.RpcError):
        services.ComputePartyStub(channel).Describe(wire.DescribeRequest(), timeout=5)


def test_not_a_grpc_server(two: Running) -> None:
    identity = check(two.deployment.certificates, "client")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(PeerLost, match=r"party0: .* (accepts connections but does not answer|does not answer)"):
            connect(identity, two.deployment.peer("party0", address), 1)
    with pytest.raises(PeerLost, match=r"host 'no\.such\.invalid' has no address"):
        connect(identity, two.deployment.peer("party0", "no.such.invalid:7000"), 0.5)


# ---- who may -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "peer", "call", "message"),
    [
        ("client", "party0", "Exchange", "'client' may not compute with party0: it is not listed in its 'parties'"),
        ("dealer", "party0", "Exchange", "'dealer' may not compute with party0"),
        ("party0", "party0", "Exchange", "'party0' may not compute with party0"),
        ("party1", "party0", "Generate", "'party1' may not generate at party0"),
        ("party1", "party0", "StoreModel", "'party1' may not store models at party0"),
        ("client", "dealer", "Tape", "'client' may not have a tape of dealer"),
        ("stranger", "dealer", "Describe", "'stranger' has no role in the deployment of dealer"),
    ],
)
def test_only_roles_may_call(two: Running, name: str, peer: str, call: str, message: str) -> None:
    with dial(two, name, peer) as channel:
        stub = services.DealerStub(channel) if peer == "dealer" else services.ComputePartyStub(channel)
        if call == "Describe":
            with pytest.raises(grpc.RpcError) as caught:
                stub.Describe(wire.DescribeRequest())
            error = from_rpc(caught.value, peer, "test")
        else:
            error = outcome(getattr(stub, call)(iter([])), peer)
        assert isinstance(error, PermissionRefused)
        assert message in str(error)


def test_another_role_or_version_of_the_service(two: Running) -> None:
    with dial(two, "client", "dealer") as channel:
        error = outcome(services.ComputePartyStub(channel).Generate(iter([])), "dealer")
        assert isinstance(error, ManifestMismatch)
        assert "dealer does not know this call" in str(error)


# ---- manifests -----------------------------------------------------------------------------------------------------------


def generate_raw(running: Running, openings: list[wire.Open]) -> list[MpcacheError]:
    """Open a session at every party with its own opening; the errors they answer with."""
    channels = [dial(running, "client", name) for name in running.deployment.names]
    try:
        calls = [
            services.ComputePartyStub(channel).Generate(iter([wire.ClientMessage(open=opening)]))
            for channel, opening in zip(channels, openings, strict=True)
        ]
        return [outcome(call, name) for call, name in zip(calls, running.deployment.names, strict=True)]
    finally:
        for channel in channels:
            channel.close()


def test_parties_with_different_manifests(two: Running) -> None:
    session = new_id()
    texts = [manifest(two, new_tokens=n).canonical() for n in (2, 3)]
    errors = generate_raw(two, [wire.Open(session=session, manifest=text) for text in texts])
    for error in errors:
        assert isinstance(error, ManifestMismatch)
        assert "party0" in str(error)
        assert "party1" in str(error)
        assert "new_tokens (party0: 2, party1: 3)" in str(error) or "new_tokens (party1: 3, party0: 2)" in str(error)
    idle(two.deployment)
    works(two.deployment)


@pytest.mark.parametrize(
    ("tokens", "clients", "message"),
    [
        ((2, 3), ("client", "client"), "new_tokens"),
        (
            (2, 2),
            ("client", "other"),
            r"of client '\w+' at party\d and of client '\w+' at party\d: a session is one client's",
        ),
    ],
)
def test_dealer_compares_itself(two: Running, tokens: tuple[int, int], clients: tuple[str, str], message: str) -> None:
    session = new_id()
    text = two.model.architecture.to_json()
    errors = []
    channels = [dial(two, name, "dealer") for name in two.deployment.names]
    calls = []
    for channel, count, client in zip(channels, tokens, clients, strict=True):
        asked = manifest(two, new_tokens=count).canonical()
        opening = wire.TapeOpen(session=session, manifest=asked, architecture=text, client=client)
        calls.append(services.DealerStub(channel).Tape(iter([wire.TapeRequest(open=opening)])))
    errors = [outcome(call, "dealer") for call in calls]
    for channel in channels:
        channel.close()
    for error in errors:
        assert isinstance(error, ManifestMismatch)
        assert re.search(message, str(error))
    idle(two.deployment)


def test_dealer_names_the_missing_party(tmp_path: Path, checkpoint: Path) -> None:
    toy = Toy()
    with Deployment(tmp_path, 2, toy.program, connect_seconds=1.0) as deployment:
        running = Running(deployment, toy, deployment.share(checkpoint))
        opening = wire.TapeOpen(
            session=new_id(),
            manifest=manifest(running).canonical(),
            architecture=running.model.architecture.to_json(),
            client="client",
        )
        with dial(running, "party0", "dealer") as channel:
            error = outcome(services.DealerStub(channel).Tape(iter([wire.TapeRequest(open=opening)])), "dealer")
        assert isinstance(error, PeerLost)
        assert error.peer == "party1"
        assert "did not ask dealer for its tape within 1 s" in str(error)


def test_other_version(two: Running) -> None:
    dealer = two.deployment.servers["dealer"]
    for server in [*two.deployment.servers.values()]:
        before, server.version = server.version, "9.9.9"
        with pytest.raises(ManifestMismatch, match=f"runs version {before}', {server.name} runs version 9.9.9: install|'"):
            two.deployment.client().ask(PROMPT, 2)
        server.version = before
        idle(two.deployment)
    assert dealer.version == before
    works(two.deployment)


def test_other_public_tables(two: Running) -> None:
    """The client's are not the first party's; a party's not the client's."""
    other = manifest(two, tables="0" * 64).canonical()
    words = re.compile(r"client and party[01] make different public tables \(0{12} and [0-9a-f]{12}\), by which")
    for error in generate_raw(two, [wire.Open(session=new_id(), manifest=other)] * 2):
        assert isinstance(error, ManifestMismatch)
        assert words.match(str(error))
    idle(two.deployment)


def test_other_protocol(two: Running) -> None:
    text = manifest(two).canonical()
    other = json.dumps(
        {**json.loads(text), "protocol": PROTOCOL_VERSION + 1}, sort_keys=True, separators=(",", ":")
    ).encode()
    for error in generate_raw(two, [wire.Open(session=new_id(), manifest=other)] * 2):
        assert isinstance(error, ManifestMismatch)
        assert f"client speaks protocol {PROTOCOL_VERSION + 1}" in str(error)
        assert "install the same version everywhere" in str(error)


@pytest.mark.parametrize(
    ("opening", "message"),
    [
        ({"session": "short"}, "client sent a session id of 5 characters, expected 32 hexadecimal digits"),
        ({"session": "../" * 10 + "ab"}, "client sent a session id of 32 characters"),
        ({"manifest": b"\xff"}, "client sent a manifest that is not JSON"),
        ({"manifest": b"[]"}, "client sent a manifest whose field ''"),
        ({"manifest": b"{" + b" " * 70_000 + b"}"}, "client sent a manifest of 70002 bytes, at most 65536"),
    ],
)
def test_malformed_openings(two: Running, opening: dict[str, Any], message: str) -> None:
    values = {"session": new_id(), "manifest": manifest(two).canonical(), **opening}
    for error in generate_raw(two, [wire.Open(**values)] * 2):
        assert isinstance(error, WireError)
        assert message in str(error)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"new_tokens": 0}, "field 'new_tokens' is wrong"),
        ({"new_tokens": "2"}, "field 'new_tokens' is wrong"),
        ({"model": "../../etc/passwd"}, "field 'model' is wrong"),
        ({"more": 1}, "field 'more' is wrong"),
        ({"options": {"a": [1]}}, r"field 'options"),
        ({"decoding": "beam"}, "field 'decoding' is wrong"),
    ],
)
def test_malformed_manifests(two: Running, change: dict[str, Any], message: str) -> None:
    values = {**json.loads(manifest(two).canonical()), **change}
    text = json.dumps(values, sort_keys=True, separators=(",", ":")).encode()
    with pytest.raises(WireError, match=message):
        Manifest.parse(text, "client")


def test_manifest_form(two: Running) -> None:
    whole = manifest(two)
    assert Manifest.parse(whole.canonical(), "x") == whole
    with pytest.raises(WireError, match="x sent a manifest that is not in canonical form"):
        Manifest.parse(whole.canonical() + b" ", "x")
    compare("a", whole, "b", manifest(two))
    with pytest.raises(ManifestMismatch, match=r"a and b hold different manifests: suite \(a: 'crypten', b: 'masked'\)"):
        compare("a", whole, "b", manifest(two, suite="masked"))


def test_session_ids_are_used_once(two: Running) -> None:
    client = two.deployment.client()
    done = client.ask(PROMPT, 1).session
    idle(two.deployment)
    opening = wire.Open(session=done, manifest=manifest(two).canonical())
    for error in generate_raw(two, [opening] * 2):
        assert isinstance(error, WireError)
        assert "was opened at party" in str(error)


@pytest.mark.parametrize(
    ("share", "message"),
    [
        ({"name": "noise"}, r"client sent share 'noise' of step 0, shape \[2\] in Z_2\^64, expected 'prompt'"),
        ({"shape": [2, 41]}, r"shape \[2, 41\] in Z_2\^64, expected 'prompt' of step 0, shape \[2\]"),
        ({"bits": 32}, r"in Z_2\^32, expected"),
        ({"step": 5}, "of step 5"),
        ({"seed": b"short", "size": 12}, "a seed of 5 bytes, expected 32|announced 12 bytes for share 'prompt'"),
        ({"size": 1 << 62}, "announced 4611686018427387904 bytes for share 'prompt'"),
    ],
)
def test_wrong_shares(two: Running, share: dict[str, Any], message: str) -> None:
    header = {"name": "prompt", "shape": [2], "bits": 64, "seed": bytes(32), "size": 16, **share}
    opening = wire.Open(session=new_id(), manifest=manifest(two).canonical())
    channels = [dial(two, "client", name) for name in two.deployment.names]
    messages = [wire.ClientMessage(open=opening), wire.ClientMessage(share=wire.ShareHeader(**header))]
    calls = [services.ComputePartyStub(channel).Generate(iter(messages)) for channel in channels]
    errors = [outcome(call, "party") for call in calls]
    for channel in channels:
        channel.close()
    assert any(isinstance(error, WireError) and re.search(message, str(error)) for error in errors), errors
    idle(two.deployment)


def test_garbage_instead_of_a_message(two: Running) -> None:
    with dial(two, "client", "party0") as channel:
        raw = channel.stream_stream(
            "/mpcache.ComputeParty/Generate", request_serializer=bytes, response_deserializer=wire.PartyMessage.FromString
        )
        error = outcome(raw(iter([b"\xff\xff\xff garbage"])), "party0")
        assert isinstance(error, MpcacheError)
    idle(two.deployment)
    works(two.deployment)


def test_stubs_are_those_of_the_definition() -> None:
    assert generate_stubs.different() == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"suite": "plain"}, "suite 'plain' keeps nothing secret"),
        ({"suite": "quantum"}, "unknown suite 'quantum'"),
        ({"options": {"device": "cuda"}}, "suite 'crypten' has no option 'device'"),
        ({"options": {"residual": 19}}, "residual = 19 must be a whole number from 4 to 18"),
        ({"fraction_bits": 30}, "fraction_bits must be between 8 and 20, got 30"),
    ],
)
def test_servers_check_the_suite_of_a_manifest(two: Running, changes: dict[str, Any], message: str) -> None:
    """Whoever made it: a client of this package would have refused it itself."""
    with pytest.raises((ConfigurationError, RangeError), match=message):
        plan_of(manifest(two, **changes), two.model.architecture)
