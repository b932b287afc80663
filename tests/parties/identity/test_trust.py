"""Who is taken for whom: pinned keys, roles in certificates, revoked keys; and what an authority cannot do."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from mpc.errors import ConfigurationError, PeerLost, PermissionRefused, TapeError
from parties.client.client import Client
from parties.config.role_config import make_config
from parties.files import write_file
from parties.identity.certificate_watcher import CertificateWatcher
from parties.identity.certificates import check, create_identity, issue, read_certificates, read_key
from parties.identity.fingerprints import fingerprint_of
from parties.identity.revocation import read_revoked, revoke
from parties.identity.roles import role_of, uri_of
from parties.identity.trust import Peer, own_identity, parties_of
from parties.names import read_fingerprint
from parties.status.status import ask
from parties.transport import connection
from parties.transport.channel_pool import ChannelPool
from parties.transport.connection import connect, key_of, look, open_channel
from tests.parties import tape_folders as tapes
from tests.parties.conftest import VOCABULARY, Running, run
from tests.parties.deployment import Deployment
from tests.parties.toy import Toy, expected
from tests.tools.attack.contract import Attack
from tests.tools.attack.minted_client import MintedClient
from tests.tools.attack.minted_party import MintedParty
from tests.tools.attack.minted_relay import RelayWithMintedCertificates
from tests.tools.attack.minting import mint
from tests.tools.attack.overlapping_roles import OverlappingRoles
from tests.tools.attack.revoked_client import RevokedClient

ATTACKS: list[Attack] = [MintedParty(), MintedClient(), RelayWithMintedCertificates(), OverlappingRoles(), RevokedClient()]
WRONG = ":".join(["5a"] * 32)


@pytest.mark.parametrize("attack", ATTACKS, ids=[attack.name for attack in ATTACKS])
def test_attacks(attack: Attack, tmp_path: Path) -> None:
    verdict = attack.run(tmp_path)
    assert verdict.caught, f"{verdict.shown}: {verdict.detail}"


def works(client: Client, running: Running) -> None:
    assert client.ask([3, 1], 2, model=running.model, stop_ids=()).tokens == expected([3, 1], 2, VOCABULARY)


def reissued(deployment: Deployment, name: str) -> x509.Certificate:
    """The next certificate of `name`, for the same key, put in place; the one before it."""
    folder = deployment.certificates
    before, key = read_certificates(folder / f"{name}.crt")[0], read_key(folder / f"{name}.key")
    role = check(folder, name).role
    after = issue(deployment.authority, name, role, key.public_key(), 2)
    write_file(folder / f"{name}.crt", after.public_bytes(serialization.Encoding.PEM), 0o644)
    return before


def pinned(deployment: Deployment, role: str, name: str, **marks: Any) -> dict[str, Any]:
    """A role's lists of peers with other fingerprints for some names."""
    with patch.dict(deployment.fingerprints, marks):
        values = deployment.values(role, name)
    return {key: values[key] for key in ("parties", "dealer", "clients", "model_owners")}


@pytest.fixture
def own(tmp_path: Path, checkpoint: Path) -> Iterator[Running]:
    """A deployment of one test."""
    yield from run(tmp_path / "own", checkpoint, 2)


# ---- keys --------------------------------------------------------------------------------------------------------------
def test_a_renewed_certificate_of_the_same_key(own: Running) -> None:
    """New connections, kept ones that are made again, and the dealer's: nobody needs a new fingerprint."""
    deployment = own.deployment
    kept = deployment.client(keep_connections=True, connect_seconds=5)
    works(kept, own)
    for name in ("party0", "party1", "dealer", "client"):
        before = reissued(deployment, name)
        if name != "client":
            shown = look(check(deployment.certificates, "client"), deployment.peer(name))
            assert isinstance(shown, x509.Certificate)
            assert shown.serial_number != before.serial_number
    works(deployment.client(), own)
    deployment.servers["party0"].stop()
    deployment.start_one("party0")
    works(kept, own)
    kept.close()


def test_a_wrong_fingerprint_at_either_side(own: Running) -> None:
    deployment = own.deployment
    client = deployment.client(**pinned(deployment, "client", "client", party1=WRONG))
    with pytest.raises(
        PeerLost, match=r"party1: the key of 'party1' is not the one that is expected: .* `mpcache certs fing"
    ):
        client.models()
    deployment.servers["party1"].stop()
    deployment.start_one("party1", **pinned(deployment, "party", "party1", client=WRONG))
    with pytest.raises(PermissionRefused, match="the key of 'client' is not the one that is expected"):
        deployment.client().models()
    deployment.servers["party1"].stop()
    deployment.start_one("party1", **pinned(deployment, "party", "party1", party0=WRONG))
    with pytest.raises(PeerLost, match="the key of 'party0' is not the one that is expected"):
        deployment.client().ask([3], 1, model=own.model, suite="crypten")


def test_nobody_calls_a_server_in_its_own_name(two: Running, tmp_path: Path) -> None:
    """A minted certificate of the very party, which lists no fingerprint of itself; its own key may ask."""
    deployment = two.deployment
    for name, role in (("party0", "party"), ("dealer", "dealer")):
        minted = mint(deployment, tmp_path, name, role)
        for identity, code in ((minted, grpc.StatusCode.PERMISSION_DENIED), (check(deployment.certificates, name), None)):
            with connect(identity, deployment.peer(name), 5) as channel:
                service = "Dealer" if name == "dealer" else "ComputeParty"
                call = channel.unary_unary(f"/mpcache.{service}/Describe").future(b"", timeout=5)
                error = call.exception()
                assert (None if error is None else error.code()) == code


def test_several_fingerprints_while_a_key_changes(own: Running) -> None:
    """Peers that list both keys take the old one and then the new one; those that list the old one alone do not."""
    deployment = own.deployment
    both = {"client": [deployment.fingerprints["client"], WRONG]}
    for file in create_identity(deployment.authority, "client", "client", 1):
        file.replace(file.with_name(f"next-{file.name}"))
    new = read_certificates(deployment.authority / "next-client.crt")[0]
    both["client"][1] = fingerprint_of(new)
    for name in deployment.names:
        deployment.servers[name].stop()
        deployment.start_one(name, **pinned(deployment, "party", name, **both))
    works(deployment.client(), own)
    for end in ("key", "crt"):
        (deployment.authority / f"next-client.{end}").replace(deployment.certificates / f"client.{end}")
    works(deployment.client(), own)
    deployment.servers["party1"].stop()
    deployment.start_one("party1", **pinned(deployment, "party", "party1", client=both["client"][0]))
    with pytest.raises(PermissionRefused, match="the key of 'client' is not the one that is expected"):
        deployment.client().models()


def test_without_fingerprints_nothing_starts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    deployment = Deployment(tmp_path, 2, Toy().program)
    deployment.fingerprints.clear()
    for role, name, missing in (
        ("client", "client", r"'party0' \(party\), 'party1' \(party\), 'dealer' \(dealer\)"),
        ("party", "party1", r"'party0' \(party\), 'dealer' \(dealer\), 'client' \(client\), 'owner' \(model-owner\)"),
    ):
        config = make_config(deployment.values(role, name))
        with pytest.raises(
            ConfigurationError, match=rf"{name} knows no fingerprint of {missing}, so anybody .* run"
        ) as caught:
            own_identity(config)
        assert (
            f"`mpcache certs fingerprint --config {'dealer' if name == '' else 'party0'}.yaml` on the host of party0"
            in str(caught.value)
        )
        insecure = make_config({**deployment.values(role, name), "insecure_trust_authority": True})
        assert own_identity(insecure).current.name == name
    assert caplog.text.count("insecure_trust_authority is set: whoever has the authority's key can take a peer's place") == 2


def test_trusting_the_authority(tmp_path: Path, checkpoint: Path) -> None:
    """As before there were fingerprints: sessions work, a minted client is served. Only then, and `status` says so."""
    deployment = Deployment(tmp_path / "d", 2, Toy().program, insecure_trust_authority=True)
    deployment.fingerprints.clear()
    with deployment:
        model = deployment.share(checkpoint)
        mint(deployment, tmp_path / "minted", "client", "client")
        for folder in (deployment.certificates, tmp_path / "minted"):
            assert deployment.client(certificates=folder).ask([3], 1, model=model).tokens == [3]
        config = deployment.config("client", "client")
        for said in ask(config, check(config.certificates, "client"), 0):
            assert [trouble.minor for trouble in said.troubles] == [True]
            assert "client knows no fingerprint of its key: run `mpcache certs fing" in str(said.troubles[0])


def test_a_fingerprint_counts_even_where_the_authority_is_trusted(two: Running) -> None:
    lists = pinned(two.deployment, "client", "client", party0=WRONG)
    with pytest.raises(PeerLost, match="the key of 'party0' is not the one that is expected"):
        two.deployment.client(**lists, insecure_trust_authority=True).models()


def test_a_minted_dealer_signs_no_tape(tmp_path: Path, checkpoint: Path) -> None:
    deployment = Deployment(tmp_path / "d", 2)
    mint(deployment, tmp_path / "minted", "dealer", "dealer")
    config = deployment.config("dealer", "dealer", certificates=tmp_path / "minted")
    deal = tapes.deal_toy(deployment, checkpoint, tmp_path / "out", sessions=1, config=config)
    folder = tmp_path / "out" / "party1" / deal.load
    with pytest.raises(TapeError, match="the key of 'dealer' is not the one that is expected"):
        tapes.tape_file(deployment, folder, tapes.session_tapes(folder)[0])


def test_the_channel_trusts_one_certificate(two: Running, tmp_path: Path) -> None:
    """gRPC's own handshake, not only the look before it, refuses another certificate of the same authority and name."""
    deployment = two.deployment
    false_party = Deployment(tmp_path / "d", 2, Toy().program)
    for name in ("party0", "party1", "dealer", "client", "owner"):
        mint(deployment, tmp_path / "minted", name, check(deployment.certificates, name).role)
    server = false_party.start_one("party0", certificates=tmp_path / "minted", insecure_trust_authority=True)
    identity = check(deployment.certificates, "client")
    genuine = read_certificates(deployment.certificates / "party0.crt")[0]
    peer = deployment.peer("party0", server.address)
    try:
        from parties.transport import connection

        connection._looked_at[peer, identity.authority] = genuine
        with open_channel(identity, peer) as channel, pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(connection.PING)(b"", timeout=5)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert "handshake failed" in str(caught.value.details())
    finally:
        false_party.stop()


# ---- roles -------------------------------------------------------------------------------------------------------------
def test_a_certificate_says_one_role(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path)
    made = read_certificates(deployment.certificates / "party0.crt")[0]
    assert role_of(made) == "party"
    key = read_key(deployment.authority / "authority.key")
    for names in ([], [uri_of("party"), uri_of("client")], [x509.UniformResourceIdentifier("mpcache:role:boss")]):
        builder = (
            x509.CertificateBuilder()
            .subject_name(made.subject)
            .issuer_name(made.issuer)
            .public_key(made.public_key())
            .serial_number(5)
            .not_valid_before(datetime.now(UTC) - timedelta(hours=1))
            .not_valid_after(datetime.now(UTC) + timedelta(hours=1))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("party0"), *names]), critical=False)
        )
        data = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        write_file(deployment.certificates / "party0.crt", data, 0o644)
        with pytest.raises(ConfigurationError, match=r"party0\.crt: the certificate must say exactly one role of"):
            check(deployment.certificates, "party0")


@pytest.mark.parametrize("role", ["dealer", "party", "model-owner"])
def test_another_role_at_an_address(two: Running, role: Any) -> None:
    peer = Peer("client", role, two.deployment.addresses[0], None)
    with pytest.raises(PermissionRefused, match=r"the certificate of 'client' is not a .*'s: it is a client's"):
        peer.check(_shown(two, "client"), frozenset())


def _shown(two: Running, name: str) -> Any:
    from parties.identity.trust import shown

    return shown(read_certificates(two.deployment.certificates / f"{name}.crt")[0])


# ---- revoked keys ------------------------------------------------------------------------------------------------------
def test_the_list_is_read_without_a_restart(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mpcache")
    deployment = Deployment(tmp_path)
    folder = deployment.certificates
    live = CertificateWatcher(folder, "party0")
    assert live.current.revoked == frozenset()
    assert revoke(folder, WRONG, "stolen\nwith a laptop")
    assert not revoke(folder, WRONG)
    assert live.current.revoked == frozenset({WRONG})
    assert f"{WRONG}  # stolen with a laptop\n" in (folder / "revoked.txt").read_text()
    (folder / "revoked.txt").write_text(f"{WRONG}\nrubbish\n")
    (folder / "party0.crt").write_text("rubbish")
    for _ in range(2):
        assert live.current.revoked == frozenset({WRONG}), "a broken list takes nothing back"
    assert caplog.text.count(r"revoked.txt, line 2: 'rubbish' is no fingerprint of a key") == 1
    other = ":".join(["00"] * 32)
    (folder / "revoked.txt").write_text(f"# mine\n\n{WRONG.upper()}\n{other.replace(':', '')} # no colons\n")
    assert live.current.revoked == read_revoked(folder) == {WRONG, other}, "whatever is wrong with the certificate"
    (folder / "revoked.txt").write_text("x")
    with pytest.raises(ConfigurationError, match=r"revoked\.txt, line 1: 'x' is no fingerprint of a key"):
        CertificateWatcher(folder, "party1")


def test_a_revoked_party_is_neither_called_nor_answered(own: Running, tmp_path: Path) -> None:
    """The client's own list, and a party's: each role decides for itself."""
    deployment = own.deployment
    own_folder = tmp_path / "mine"
    shutil.copytree(deployment.certificates, own_folder)
    kept = deployment.client(keep_connections=True, certificates=own_folder)
    works(kept, own)
    revoke(own_folder, deployment.fingerprints["party1"])
    for client in (kept, deployment.client(certificates=own_folder)):
        with pytest.raises((PermissionRefused, PeerLost), match="the key of 'party1' is revoked"):
            client.models()
    kept.close()
    works(deployment.client(), own)
    revoke(deployment.certificates, deployment.fingerprints["dealer"])
    identity = check(own_folder, "dealer")
    with connect(identity, deployment.peer("party0"), 5) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/mpcache.ComputeParty/Describe")(b"", timeout=5)
    assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED
    with pytest.raises(PermissionRefused, match="the key of 'dealer' is revoked"):
        deployment.client().ask([3], 1, model=own.model)


def test_a_channel_is_of_the_key_that_it_was_made_with(own: Running, tmp_path: Path) -> None:
    """A peer that shows a new key meanwhile does not keep alive what goes on with its old one."""
    deployment = own.deployment
    folder = tmp_path / "mine"
    shutil.copytree(deployment.certificates, folder)
    kept = ChannelPool(deployment.config("client", "client", certificates=folder), lambda: check(folder, "client"))
    with kept.lend() as channels:
        first = channels[0]
    pin = deployment.fingerprints["party0"]
    assert key_of(first) == pin
    peer = next(p for p in parties_of(deployment.config("client", "client")) if p.name == "party0")
    assert kept._take(peer) is not None
    revoke(folder, pin)
    connection._looked_at.clear()  # as if another key was shown since
    assert kept._take(peer) is None
    assert key_of(first) == pin
    kept.close()


def test_fingerprints_as_people_write_them() -> None:
    assert read_fingerprint(f" {WRONG.upper()} ") == read_fingerprint("5A" * 32) == WRONG
    for text in ("", "5a" * 31, "5g" * 32, "party0"):
        with pytest.raises(ValueError, match="is no fingerprint of a key: it has 32 pairs of hexadecimal digits"):
            read_fingerprint(text)
