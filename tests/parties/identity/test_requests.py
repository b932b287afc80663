"""Getting a certificate without the key leaving its host: request, signature, installation, and what is refused."""

from __future__ import annotations

import shutil
import stat
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from mpc.errors import ConfigurationError
from parties.identity.authority import Member, Record, read_record, sign_request, write_record
from parties.identity.certificates import check, create_authority, create_deployment, issue
from parties.identity.fingerprints import fingerprint_of
from parties.identity.requests import create_request, install


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    """An authority that knows party0 and party1."""
    folder = tmp_path / "authority"
    create_authority(folder, days=100)
    members = [
        Member(name="party0", role="party", hosts=["10.0.0.10", "node.example"]),
        Member(name="party1", role="party", hosts=[]),
        Member(name="client", role="client"),
    ]
    write_record(folder, Record(members=members))
    return folder


@pytest.fixture
def role(tmp_path: Path, authority: Path) -> Path:
    """The certificate folder of party0 on its own host: so far it holds the authority's certificate."""
    folder = tmp_path / "host" / "certificates"
    folder.mkdir(parents=True)
    shutil.copy(authority / "authority.crt", folder)
    return folder


def test_request_sign_install(authority: Path, role: Path) -> None:
    request, mark = create_request(role, "party0")
    key = role / "requests" / "party0.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert b"PRIVATE" not in request.read_bytes()
    with pytest.raises(ConfigurationError, match=r"party0\.crt is not installed.*`mpcache certs install"):
        check(role, "party0")

    sent = authority / "party0.csr"
    shutil.copy(request, sent)
    answer, certificate = sign_request(authority, sent, mark, days=30)
    assert answer == authority / "party0.crt"
    assert fingerprint_of(certificate) == mark
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["party0", "localhost", "node.example"]
    assert ip_address("10.0.0.10") in names.get_values_for_type(x509.IPAddress)
    assert timedelta(days=29) < certificate.not_valid_after_utc - datetime.now(UTC) <= timedelta(days=30)
    assert [p.name for p in authority.glob("*.key")] == ["authority.key"]
    assert len(list((authority / "issued").glob("party0-*.crt"))) == 1

    identity = install(role, "party0", answer)
    assert check(role, "party0").certificate == identity.certificate == answer.read_bytes()
    assert stat.S_IMODE((role / "party0.key").stat().st_mode) == 0o600
    assert not key.exists()
    assert not request.exists()
    assert install(role, "party0", answer).key == identity.key


@pytest.mark.parametrize("keep_key", [True, False])
def test_renewal(authority: Path, role: Path, keep_key: bool) -> None:
    install(role, "party0", sign_request(authority, *create_request(role, "party0"))[0])
    first = check(role, "party0")
    request, mark = create_request(role, "party0", keep_key)
    assert check(role, "party0") == first, "a request changes nothing of what is in use"
    assert create_request(role, "party0", keep_key)[1] == mark, "asking again asks for the same key"
    second = install(role, "party0", sign_request(authority, request, mark)[0])
    assert (second.key == first.key) == keep_key
    assert second.certificate != first.certificate
    assert sorted(p.name for p in role.iterdir()) == ["authority.crt", "party0.crt", "party0.key", "requests"]


def test_keeping_the_key_while_a_new_one_waits(authority: Path, role: Path) -> None:
    install(role, "party0", sign_request(authority, *create_request(role, "party0"))[0])
    create_request(role, "party0")
    with pytest.raises(
        ConfigurationError, match=r"requests/party0\.key is a new key whose certificate is not installed yet"
    ):
        create_request(role, "party0", keep_key=True)


def test_validity_ends_with_the_authority(authority: Path, role: Path) -> None:
    _, certificate = sign_request(authority, *create_request(role, "party0"), days=5000)
    end = x509.load_pem_x509_certificate((authority / "authority.crt").read_bytes()).not_valid_after_utc
    assert end - timedelta(minutes=1) < certificate.not_valid_after_utc <= end
    with pytest.raises(ConfigurationError, match="days must be between 0 and 36500, got 0"):
        sign_request(authority, *create_request(role, "party0"), days=0)


def test_refused_by_the_authority(authority: Path, role: Path, tmp_path: Path) -> None:
    request, mark = create_request(role, "party0")
    other, theirs = create_request(tmp_path / "mallory", "mallory")
    with pytest.raises(
        ConfigurationError, match=r"is from 'mallory', who does not belong to the deployment \(party0, party1, client\)"
    ):
        sign_request(authority, other, theirs)
    with pytest.raises(ConfigurationError, match=r"is from 'party0', not from 'party1' as --name says"):
        sign_request(authority, request, mark, name="party1", role="party")
    with pytest.raises(ConfigurationError, match=rf"has fingerprint .*, not the expected {theirs}: it was exchanged"):
        sign_request(authority, request, theirs)
    with pytest.raises(ConfigurationError, match="host 'party1' of 'party0' is the name of another identity"):
        sign_request(authority, request, mark, hosts=["party1"])
    assert not (authority / "issued").exists()
    (authority / "deployment.yaml").unlink()
    with pytest.raises(ConfigurationError, match=r"has no deployment\.yaml .*: say with --name and --role whom"):
        sign_request(authority, request, mark)
    sign_request(authority, request, mark, name="party0", role="party")


def test_malformed_requests(authority: Path, tmp_path: Path) -> None:
    def refused(data: bytes, message: str) -> None:
        path = tmp_path / "x.csr"
        path.write_bytes(data)
        with pytest.raises(ConfigurationError, match=message):
            sign_request(authority, path, "00" * 32)

    def request(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, name: str) -> bytes:
        builder = x509.CertificateSigningRequestBuilder().subject_name(
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        )
        return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)

    def pem(der: bytes) -> bytes:
        return x509.load_der_x509_csr(der).public_bytes(serialization.Encoding.PEM)

    refused(b"hello", r"x\.csr is not a certificate request: send the file NAME\.csr")
    refused(b"x" * (1 << 20), r"is larger than \d+ bytes")
    refused(pem(request(ec.generate_private_key(ec.SECP384R1()), "party0")), "is not for a P-256 key")
    refused(pem(request(rsa.generate_private_key(65537, 2048), "party0")), "is not for a P-256 key")
    refused(pem(request(ec.generate_private_key(ec.SECP256R1()), "../party0")), "cannot be an identity's name")
    good = request(ec.generate_private_key(ec.SECP256R1()), "party0")
    assert good.count(b"party0") == 1
    refused(pem(good.replace(b"party0", b"party1")), "is not signed by its own key")


def test_damaged_record(authority: Path) -> None:
    (authority / "deployment.yaml").write_text("members: 3")
    with pytest.raises(ConfigurationError, match=r"deployment\.yaml is damaged"):
        read_record(authority)


def test_refused_by_the_role(authority: Path, role: Path, tmp_path: Path) -> None:
    answer, _ = sign_request(authority, *create_request(role, "party0"))
    before = sorted(role.rglob("*"))

    create_deployment(tmp_path / "foreign", {"party0": "party"})
    with pytest.raises(
        ConfigurationError, match=r"was signed by another authority than .*authority\.crt: ask the authority"
    ):
        install(role, "party0", tmp_path / "foreign" / "party0.crt")
    theirs, _ = sign_request(authority, *create_request(tmp_path / "party1", "party1"))
    with pytest.raises(ConfigurationError, match=r"party1\.crt is not for .*party0\.key: it answers an older request"):
        install(role, "party0", theirs)
    key = check_key(role)
    wrong = tmp_path / "wrong.crt"
    write(wrong, issue(authority, "party1", "party", key, 3))
    with pytest.raises(ConfigurationError, match=r"wrong\.crt belongs to 'party1', not to 'party0'"):
        install(role, "party0", wrong)
    write(wrong, issue(authority, "party0", "party", key, 3, start=datetime.now(UTC) - timedelta(days=9)))
    with pytest.raises(ConfigurationError, match=r"wrong\.crt expired on .* UTC"):
        install(role, "party0", wrong)
    write(wrong, issue(authority, "party0", "party", key, 3, start=datetime.now(UTC) + timedelta(days=9)))
    with pytest.raises(ConfigurationError, match=r"wrong\.crt is not valid before .* set the clock, or wait"):
        install(role, "party0", wrong)
    assert sorted(p for p in role.rglob("*") if p != answer) == [p for p in before if p != answer]
    with pytest.raises(ConfigurationError, match="a certificate of a compute party, and 'party0' is configured as"):
        install(role, "party0", answer, role="client")
    install(role, "party0", answer, role="party")
    (role / "party0.key").unlink()
    with pytest.raises(ConfigurationError, match="has no key of 'party0': make one with `mpcache certs request`"):
        install(role, "party0", answer)


def check_key(role: Path) -> ec.EllipticCurvePublicKey:
    key = serialization.load_pem_private_key((role / "requests" / "party0.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key.public_key()


def write(path: Path, certificate: x509.Certificate) -> None:
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def test_a_new_authority(authority: Path, role: Path, tmp_path: Path) -> None:
    """While an authority is replaced, roles trust both: each can get its new certificate in its own time."""
    install(role, "party0", sign_request(authority, *create_request(role, "party0"))[0])
    create_authority(tmp_path / "new")
    both = tmp_path / "both.crt"
    both.write_bytes((tmp_path / "new" / "authority.crt").read_bytes() + (authority / "authority.crt").read_bytes())
    install(role, "party0", role / "party0.crt", both)
    answer, _ = sign_request(tmp_path / "new", *create_request(role, "party0"), name="party0", role="party")
    assert install(role, "party0", answer).authority == both.read_bytes()
