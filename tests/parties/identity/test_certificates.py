from __future__ import annotations

import shutil
import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from mpc.errors import ConfigurationError
from parties.identity.certificates import check, create_authority, create_deployment, create_identity


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    create_deployment(tmp_path / "c", {"party0": "party", "party1": "party"}, days=2, hosts=["node.example", "10.1.2.3"])
    return tmp_path / "c"


def test_identity_is_complete_and_private(folder: Path) -> None:
    identity = check(folder, "party0")
    assert identity.name == "party0"
    left = identity.expires - datetime.now(UTC)
    assert timedelta(days=1, hours=23) < left <= timedelta(days=2, minutes=5)
    for key in folder.glob("*.key"):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert identity.key.decode() not in repr(identity)


def test_authority_is_not_overwritten(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"authority\.crt exists already"):
        create_authority(folder / "authority")


@pytest.mark.parametrize("name", ["", "Party", "a_b", "-a", "a" * 64, "authority", "localhost", "a/b", "a.b"])
def test_bad_names(folder: Path, name: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot be an identity's name"):
        create_identity(folder / "authority", name, "client")


def test_host_that_is_an_identity(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="host 'party1' of identity 'party2' is the name of another"):
        create_identity(folder, "party2", "party", hosts=["party1"])
    with pytest.raises(ConfigurationError, match="host 'a' is also an identity's name"):
        create_deployment(tmp_path / "d", {"a": "client", "b": "client"}, hosts=["a"])


@pytest.mark.parametrize("days", [0, -1, 36501])
def test_bad_days(folder: Path, days: float) -> None:
    with pytest.raises(ConfigurationError, match="days must be between"):
        create_identity(folder / "authority", "party2", "party", days)


@pytest.mark.parametrize("file", ["authority.crt", "party0.crt", "party0.key"])
def test_missing_file(folder: Path, file: str) -> None:
    (folder / file).unlink()
    with pytest.raises(ConfigurationError, match=rf"{file} is missing: make it with `mpcache certs`"):
        check(folder, "party0")


@pytest.mark.parametrize("file", ["authority.crt", "party0.crt"])
def test_certificate_of_a_version_that_nobody_reads(folder: Path, file: str) -> None:
    """Well-formed otherwise; the package cryptography has an error of its own for it."""
    pem = (folder / file).read_bytes()
    der = ssl.PEM_cert_to_DER_cert(pem.decode())
    version = bytes.fromhex("a003020102")  # v3 is written as 2
    assert der.count(version) == 1
    (folder / file).write_text(ssl.DER_cert_to_PEM_cert(der.replace(version, bytes.fromhex("a003020103"))))
    with pytest.raises(ConfigurationError, match=rf"{file} is not a PEM certificate"):
        check(folder, "party0")


@pytest.mark.parametrize("file", ["authority.crt", "party0.crt", "party0.key"])
def test_garbage_file(folder: Path, file: str) -> None:
    (folder / file).write_text("-----BEGIN NOTHING-----")
    with pytest.raises(ConfigurationError, match=rf"{file} is not (a PEM certificate|an unencrypted PEM private key)"):
        check(folder, "party0")


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"folder .*nowhere is missing: make it with `mpcache certs`"):
        check(tmp_path / "nowhere", "party0")


def test_foreign_certificate(folder: Path, tmp_path: Path) -> None:
    create_deployment(tmp_path / "other", {"party0": "party"})
    for end in ("crt", "key"):
        shutil.copy(tmp_path / "other" / f"party0.{end}", folder)
    with pytest.raises(ConfigurationError, match=r"party0\.crt was signed by another authority than .*authority\.crt"):
        check(folder, "party0")


def issued(folder: Path, name: str, start: datetime) -> None:
    for file in create_identity(folder / "authority", name, "client", days=1, start=start):
        file.replace(folder / file.name)


def test_expired_and_not_yet_valid(folder: Path) -> None:
    now = datetime.now(UTC)
    issued(folder, "old", now - timedelta(days=3))
    with pytest.raises(ConfigurationError, match=r"old\.crt expired on .* UTC: renew it with `mpcache certs renew`"):
        check(folder, "old")
    issued(folder, "new", now + timedelta(days=3))
    with pytest.raises(ConfigurationError, match=r"new\.crt is not valid before .* set the clock, or wait"):
        check(folder, "new")


def test_key_of_another_certificate(folder: Path) -> None:
    shutil.copy(folder / "party1.key", folder / "party0.key")
    with pytest.raises(ConfigurationError, match=r"party0\.key is not the key of .*party0\.crt"):
        check(folder, "party0")


def test_certificate_of_another_name(folder: Path) -> None:
    for end in ("crt", "key"):
        shutil.copy(folder / f"party1.{end}", folder / f"party0.{end}")
    with pytest.raises(ConfigurationError, match=r"party0\.crt belongs to 'party1', not to 'party0'"):
        check(folder, "party0")


def test_readable_key(folder: Path) -> None:
    (folder / "party0.key").chmod(0o640)
    with pytest.raises(ConfigurationError, match=r"others may read \(mode 0640\): run `chmod 600 .*party0\.key`"):
        check(folder, "party0")
