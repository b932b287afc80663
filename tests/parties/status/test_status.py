"""What a role learns by asking its peers, and the words that a person reads when something is wrong."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import grpc
import pytest
from cryptography import x509

from launch.local.ports import free_ports
from mpc.errors import ConfigurationError, PermissionRefused, WireError
from parties.identity.certificates import check, create_deployment, create_identity
from parties.identity.trust import Trust
from parties.status import probing
from parties.status.peer_watch import PeerWatch
from parties.status.settings import Settings
from parties.status.status import PeerStatus, ask
from parties.transport.connection import open_channel
from parties.wire import wire_pb2 as wire
from parties.wire import wire_pb2_grpc as services
from parties.wire.error_codec import from_rpc
from parties.wire.manifest import PROTOCOL_VERSION, package_version
from tests.parties.conftest import Running
from tests.parties.deployment import Deployment
from tests.parties.toy import Toy

BYTES = 1 << 19


def asked(running: Running, role: str, name: str, size: int = 0, **changes: Any) -> dict[str, PeerStatus]:
    """Every peer's answer to `name`."""
    config = running.deployment.config(role, name, **changes)
    return {s.name: s for s in ask(config, check(config.certificates, name), size)}


def words(found: PeerStatus) -> str:
    return "\n".join(str(trouble) for trouble in found.troubles)


@pytest.mark.parametrize(
    ("role", "name", "peers"),
    [
        ("client", "client", ["party0", "party1", "dealer"]),
        ("party", "party1", ["party0", "dealer"]),
        ("dealer", "dealer", ["party0", "party1"]),
        ("model-owner", "owner", ["party0", "party1", "dealer"]),
    ],
)
def test_all_is_well(two: Running, role: str, name: str, peers: list[str]) -> None:
    found = asked(two, role, name, BYTES)
    assert list(found) == peers
    for peer, said in found.items():
        assert said.troubles == [], words(said)
        assert (said.version, said.protocol) == (package_version(), PROTOCOL_VERSION)
        own = x509.load_pem_x509_certificate(check(two.deployment.certificates, peer).certificate)
        assert said.expires == own.not_valid_after_utc  # its authority's may end a second earlier
        assert said.skew is not None
        assert abs(said.skew) < 5
        assert said.round_trip is not None
        assert 0 < said.round_trip < 5
        assert said.upload is not None
        assert said.upload > 1e5
        assert said.download is not None
        assert said.download > 1e5
        assert said.models == ({two.model.id: "tiny"} if said.role == "party" and role != "dealer" else {})
        assert said.settings == Settings.of(two.deployment.servers[peer].config)


def test_a_peer_that_is_down(two: Running) -> None:
    port = free_ports(1)[0]
    parties = two.deployment.values("client", "client")["parties"]
    found = asked(two, "client", "client", parties=[parties[0], {"name": "party1", "address": f"127.0.0.1:{port}"}])
    assert found["party0"].troubles == []
    assert not found["party1"].answers
    assert words(found["party1"]) == f"nothing listens at 127.0.0.1:{port}: start party1, or correct its address"


def test_wrong_name_behind_an_address(two: Running) -> None:
    a, b = two.deployment.values("client", "client")["parties"]
    swapped = [{"name": "party0", "address": b["address"]}, {"name": "party1", "address": a["address"]}]
    found = asked(two, "client", "client", parties=swapped)
    assert (
        words(found["party0"]) == f"{b['address']} is 'party1', not 'party0': correct address or name in the configuration"
    )


def test_wrong_authority(two: Running, tmp_path: Path) -> None:
    create_deployment(tmp_path / "foreign", {"client": "client"})
    found = asked(two, "client", "client", certificates=tmp_path / "foreign")
    for said in found.values():
        assert f"the certificate of {said.address} is refused" in words(said)
        assert f"signed by {tmp_path / 'foreign' / 'authority.crt'}" in words(said)
    shutil.copy(two.deployment.certificates / "authority.crt", tmp_path / "foreign" / "both.crt")
    mixed = tmp_path / "foreign" / "authority.crt"
    mixed.write_bytes(mixed.read_bytes() + (tmp_path / "foreign" / "both.crt").read_bytes())
    for said in asked(two, "client", "client", certificates=tmp_path / "foreign").values():
        assert "refuses the certificate" in words(said)
        assert "it must be valid now and signed by the same authority" in words(said)


def test_other_version_and_other_settings(two: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(two.deployment.servers["party1"], "version", "9.9")
    found = asked(two, "client", "client")
    assert found["party0"].troubles == []
    assert f"party1 runs version 9.9 (protocol {PROTOCOL_VERSION}), client runs version" in words(found["party1"])
    assert "install the same version everywhere" in words(found["party1"])


def test_parties_in_another_order(two: Running) -> None:
    parties = two.deployment.values("client", "client")["parties"]
    found = asked(two, "client", "client", parties=parties[::-1])
    expected = (
        "client has parties party1, party0, party0 has party0, party1: write the same in both files, in the same order"
    )
    assert words(found["party0"]) == expected
    found = asked(two, "party", "party0", deadline_seconds=17)
    trouble = found["party1"].troubles[0]
    assert trouble.minor
    assert str(trouble).startswith("party0 has deadline_seconds 17.0, party1 has 5.0: write the same in both files")


def test_a_clock_that_is_off(two: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(two.deployment.servers["party0"].prober, "clock", lambda: time.time() - 300)
    found = asked(two, "client", "client")
    assert "the clock of party0 is 300 s behind the one here: set both by NTP" in words(found["party0"])
    assert found["party1"].troubles == []


def test_a_model_that_one_party_lacks(two: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    server: Any = two.deployment.servers["party1"]
    monkeypatch.setattr(server.store, "models", lambda: [])
    found = asked(two, "client", "client")
    assert found["party1"].troubles[0].minor
    assert "party1 does not hold model 'tiny'" in words(found["party1"])


def test_unlisted_identity_learns_nothing(two: Running) -> None:
    found = asked(two, "client", "stranger")
    for said in found.values():
        assert not said.answers
        assert said.models == {}
        assert (said.version, said.protocol, said.settings, said.expires) == (None, None, None, None)
        assert f"'stranger' has no role in the deployment of {said.name}" in words(said)
    with pytest.raises(PermissionRefused):
        probe(two, "stranger", [wire.ProbeRequest(ping=1)])


# ---- the probe's bounds ------------------------------------------------------------------------------------------------
def probe(running: Running, name: str, requests: list[wire.ProbeRequest]) -> list[wire.ProbeReply]:
    identity = check(running.deployment.certificates, name)
    with open_channel(identity, running.deployment.peer("party0")) as channel:
        try:
            return list(services.ComputePartyStub(channel).Probe(iter(requests), timeout=20))
        except grpc.RpcError as error:
            raise from_rpc(error, "party0", "test") from None


def test_never_more_back_than_was_sent(two: Running) -> None:
    piece = wire.ProbeRequest(payload=b"x" * 1000)
    back = wire.ProbeRequest(back=1)
    replies = probe(two, "client", [back, piece, piece, back, back])
    received = [r.received for r in replies if r.WhichOneof("content") == "received"]
    assert received == [0, 2000, 0]
    assert sum(len(r.payload) for r in replies) == 2000


@pytest.mark.parametrize(
    ("requests", "message"),
    [
        ([wire.ProbeRequest(payload=bytes(1 << 20))] * 17, "client sent more than 16777216 bytes in one probe"),
        ([wire.ProbeRequest(ping=1)] * 1025, "client sent more than 1024 messages in one probe"),
        ([wire.ProbeRequest()], "client sent a probe without content"),
    ],
)
def test_bounds(two: Running, requests: list[wire.ProbeRequest], message: str) -> None:
    with pytest.raises(WireError, match=message):
        probe(two, "client", requests)
    assert two.deployment.servers["party0"].prober._callers == set()


class _Context:
    """As much of a call as the prober needs, by a caller of its choice."""

    def __init__(self, folder: Path, name: str) -> None:
        self.pem = create_identity(folder, name, "client")[0].read_bytes()
        self.error = ""

    def auth_context(self) -> dict[str, list[bytes]]:
        return {"x509_pem_cert": [self.pem]}

    def is_active(self) -> bool:
        return True

    def cancel(self) -> None:
        self.error = "cancelled"

    def set_trailing_metadata(self, metadata: Any) -> None: ...

    def abort(self, code: grpc.StatusCode, details: str) -> None:
        self.error = details
        raise _Aborted


class _Aborted(Exception): ...


def test_few_probes_at_a_time(two: Running) -> None:
    folder = two.deployment.authority
    identity = check(two.deployment.certificates, "party0")
    prober = probing.Prober("party0", Trust({}, lambda: identity))
    ping = [wire.ProbeRequest(ping=1)] * 2
    running: list[Iterator[wire.ProbeReply]] = []
    for number in range(probing.PROBES):
        running.append(prober.answer(iter(ping), _Context(folder, f"c{number}"), lambda name: None))
        next(running[-1])
    for name, message in (("c0", "answers a probe of 'c0' already"), ("c9", "answers 4 probes at a time; try again later")):
        context = _Context(folder, name)
        with pytest.raises(_Aborted):
            next(prober.answer(iter(ping), context, lambda name: None))
        assert message in context.error
    for one in running:
        assert len(list(one)) == 1
    assert next(prober.answer(iter(ping), _Context(folder, "c0"), lambda name: None)).clock > 0


def test_slow_sender_is_cut_off(two: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "PROBE_SECONDS", 0.2)
    never: SimpleQueue[wire.ProbeRequest | None] = SimpleQueue()
    identity = check(two.deployment.certificates, "client")
    with open_channel(identity, two.deployment.peer("party0")) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            list(services.ComputePartyStub(channel).Probe(iter(never.get, None), timeout=30))
        assert caught.value.code() == grpc.StatusCode.CANCELLED
        never.put(None)


def test_too_large_a_probe_is_refused_here(two: Running) -> None:
    with pytest.raises(ConfigurationError, match=r"a probe may send 0 to \d+ bytes, got 999999999"):
        asked(two, "client", "client", 999999999)


# ---- at the start ------------------------------------------------------------------------------------------------------
def test_waiting_for_peers_in_any_order(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mpcache")
    deployment = Deployment(tmp_path, 2, Toy().program)
    try:
        server = deployment.start_one("party0")
        watch = PeerWatch(server.config, lambda: server.identity, first_pause=0.1)
        watch.start()
        address = deployment.addresses[1]
        wait_for(caplog, f"party0: waiting for party1: nothing listens at {address}: start party1", 3)
        deployment.start_one("party1")
        wait_for(caplog, f"party0: party1 is there (version {package_version()})")
        assert "all peers are there" not in caplog.text
        wait_for(caplog, "party0: waiting for dealer: nothing listens at")
        deployment.start_one("dealer")
        wait_for(caplog, "party0: all peers are there")
        assert caplog.text.count("party1 is there") == 1
        watch._thread.join(10)
        assert not watch._thread.is_alive()
    finally:
        deployment.stop()


def test_waiting_ends_at_once(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path, 2, Toy().program)
    identity = check(deployment.certificates, "party0")
    with PeerWatch(deployment.config("party", "party0"), lambda: identity, first_pause=1000) as watch:
        pass
    watch._thread.join(20)
    assert not watch._thread.is_alive()


def wait_for(caplog: pytest.LogCaptureFixture, text: str, times: int = 1) -> None:
    """Until the log has the text so often."""
    limit = time.monotonic() + 60
    while caplog.text.count(text) < times:
        assert time.monotonic() < limit, f"not in the log: {text}"
        time.sleep(0.02)
