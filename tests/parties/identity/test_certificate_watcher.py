"""Certificates that are renewed while servers run: new connections get them, sessions go on, broken ones are refused."""

from __future__ import annotations

import logging
import shutil
import ssl
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from mpc.errors import PeerLost
from parties.files import write_file
from parties.identity import certificate_watcher as certificate_watcher
from parties.identity.certificate_watcher import CertificateWatcher
from parties.identity.certificates import check, create_authority, create_deployment, create_identity, issue
from parties.transport.connection import connect
from tests.parties.conftest import VOCABULARY, Running, run
from tests.parties.toy import expected


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    create_deployment(tmp_path / "c", {"party0": "party", "party1": "party"}, days=100)
    return tmp_path / "c"


def renewed(folder: Path, days: float, **issue: Any) -> None:
    """A new key and certificate of party0 lie in the folder."""
    for file in create_identity(folder / "authority", "party0", "party", days, **issue):
        file.replace(folder / file.name)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that the certificate watcher reads, in seconds."""
    now = [1000.0]
    monkeypatch.setattr(certificate_watcher.time, "monotonic", lambda: now[0])
    return now


def test_new_files_are_taken_up(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mpcache")
    live = CertificateWatcher(folder, "party0")
    first = live.current
    assert live.current is first
    renewed(folder, 50)
    second = live.current
    assert second.certificate != first.certificate
    assert second == check(folder, "party0")
    assert "party0: uses the new certificate, valid until" in caplog.text


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda c: (c / "party0.crt").write_text("rubbish"), "party0.crt is not a PEM certificate"),
        (lambda c: (c / "party0.crt").unlink(), "party0.crt is missing"),
        (lambda c: shutil.copy(c / "party1.key", c / "party0.key"), "party0.key is not the key of"),
        (lambda c: [shutil.copy(c / f"party1.{e}", c / f"party0.{e}") for e in ("crt", "key")], "belongs to 'party1'"),
        (lambda c: renewed(c, 1, start=datetime.now(UTC) - timedelta(days=3)), "party0.crt expired on"),
        (lambda c: renewed(c, 1, start=datetime.now(UTC) + timedelta(days=3)), "is not valid before"),
        (lambda c: (c / "party0.key").chmod(0o644) or (c / "party0.key").touch(), "others may read"),
    ],
)
def test_unfit_files_are_logged_once_and_the_old_ones_stay(
    folder: Path, clock: list[float], caplog: pytest.LogCaptureFixture, spoil: Callable[[Path], object], message: str
) -> None:
    live = CertificateWatcher(folder, "party0")
    first = live.current
    spoil(folder)
    assert live.current is first
    assert caplog.text == "", "files come one after the other: not at once"
    for _ in range(3):
        clock[0] += 6
        assert live.current is first
    assert caplog.text.count("party0: the new certificate is not used, the one before it stays") == 1
    assert message in caplog.text
    (folder / "party0.key").chmod(0o600)
    renewed(folder, 50)
    assert live.current.certificate == (folder / "party0.crt").read_bytes()


def test_foreign_authority_is_refused(
    folder: Path, tmp_path: Path, clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    live = CertificateWatcher(folder, "party0")
    first = live.current
    create_deployment(tmp_path / "foreign", {"party0": "party"})
    for end in ("crt", "key"):
        shutil.copy(tmp_path / "foreign" / f"party0.{end}", folder)
    for _ in range(2):
        clock[0] += 6
        assert live.current is first
    assert "was signed by another authority" in caplog.text


def test_a_certificate_that_becomes_valid_is_taken_up(
    folder: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    live = CertificateWatcher(folder, "party0")
    first = live.current
    renewed(folder, 9, start=datetime.now(UTC) + timedelta(hours=1))
    for _ in range(3):
        clock[0] += 6
        assert live.current is first
    monkeypatch.setattr("parties.identity.certificates._check_time", lambda certificate, path: None)
    clock[0] += 6
    assert live.current is not first


def test_warnings_before_the_end(folder: Path) -> None:
    live = CertificateWatcher(folder, "party0")
    end = live.current.expires
    assert live.expiry_warning(end - timedelta(days=14, minutes=1)) is None
    said = live.expiry_warning(end - timedelta(days=13, hours=23))
    assert said is not None
    assert f"expires on {end:%Y-%m-%d %H:%M} UTC, in 13 days; renew it with `mpcache certs renew`" in said
    assert live.expiry_warning(end - timedelta(days=13, hours=20)) is None, "once a day"
    assert "in 30 hours" in str(live.expiry_warning(end - timedelta(hours=30)))
    assert "expired on" in str(live.expiry_warning(end + timedelta(hours=1)))
    renewed(folder, 1)
    assert live.expiry_warning() is None, "a certificate for a day is not about to end when it begins"


def served(address: str) -> x509.Certificate:
    """The certificate that a server shows to a new connection."""
    host, _, port = address.rpartition(":")
    return x509.load_pem_x509_certificate(ssl.get_server_certificate((host, int(port))).encode())


def test_renewal_while_a_session_runs(tmp_path: Path, checkpoint: Path) -> None:
    """All certificates and the authority are replaced in the middle of a session, which goes on. The keys stay."""
    for running in run(tmp_path / "d", checkpoint, 2):
        _replace_all(running, tmp_path)


def _replace_all(running: Running, tmp_path: Path) -> None:
    deployment, toy = running.deployment, running.toy
    folder, servers = deployment.certificates, deployment.servers
    names = [*deployment.names, "dealer", "client", "owner"]
    client = deployment.client()
    before = {name: served(servers[name].address) for name in servers}
    stale = check(folder, "client")
    inside, go_on = threading.Event(), threading.Event()

    def stop_here(party: int, step: int, round: int) -> None:
        if (party, step, round) == (0, 1, 1):
            inside.set()
            assert go_on.wait(60)

    toy.before_round = stop_here
    results: list[list[int]] = []
    session = threading.Thread(target=lambda: results.append(client.ask([3, 1], 3).tokens))
    session.start()
    assert inside.wait(60)
    create_authority(tmp_path / "new", 10)
    for name in names:
        identity = check(folder, name)
        key = x509.load_pem_x509_certificate(identity.certificate).public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        certificate = issue(tmp_path / "new", name, identity.role, key, 10)
        write_file(folder / f"{name}.crt", certificate.public_bytes(serialization.Encoding.PEM), 0o644)
    shutil.copy(tmp_path / "new" / "authority.crt", folder)
    for name in servers:
        now = served(servers[name].address)
        assert now.serial_number != before[name].serial_number
        assert now == x509.load_pem_x509_certificate((folder / f"{name}.crt").read_bytes())
    go_on.set()
    session.join(60)
    assert results == [expected([3, 1], 3, VOCABULARY)], "the session that ran is undisturbed"
    toy.before_round = lambda party, step, round: None
    assert client.ask([3, 1], 2).tokens == expected([3, 1], 2, VOCABULARY), "everybody dials with the new ones"
    with pytest.raises(PeerLost, match=r"the certificate of .* is refused"):
        connect(stale, deployment.peer("party0"), 5)
