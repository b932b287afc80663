"""A deployment's certificate authority and one identity per role, for mutual TLS.

A folder holds `authority.crt` (and, only where identities are issued, `authority.key`) and per role `NAME.crt` and
`NAME.key`. Keys are EC P-256, files of keys have mode 0600. An identity's name is its certificate's common name and its
first DNS name, and it has one role (`parties.identity.roles`). A certificate only introduces: who has the authority's key
can make one of any name. Which key a name has is written in the peers' configurations (`parties.identity.trust`).
`authority.crt` may hold several certificates, the old and the new one, while an authority is replaced.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mpc.errors import ConfigurationError
from parties.files import read_file, write_file
from parties.identity.fingerprints import fingerprint_of
from parties.identity.revocation import read_revoked
from parties.identity.roles import role_of, uri_of
from parties.names import AUTHORITY, Role, check_name, in_words

CLOCK_SKEW = timedelta(minutes=5)
REQUESTS = "requests"
_REMEDY = (
    "make it with `mpcache certs`, ask for it with `mpcache certs request`, or copy it from where the deployment's "
    "certificates were made"
)


@dataclass(frozen=True)
class Identity:
    """A checked identity. certificate, authority: PEM; key: PEM, secret (not in the representation).

    fingerprint: of the key; revoked: fingerprints of keys that this role trusts no more.
    """

    name: str
    certificate: bytes
    authority: bytes
    key: bytes
    role: Role
    fingerprint: str
    expires: datetime
    certificate_file: Path
    key_file: Path
    authority_file: Path
    revoked: frozenset[str] = frozenset()

    def __repr__(self) -> str:
        return f"Identity({self.name!r}, expires {self.expires:%Y-%m-%d})"


def pem_of_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a private key as unencrypted PEM. Secret."""
    plain = serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)


def _write_pair(
    directory: Path, name: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey
) -> tuple[Path, Path]:
    files = directory / f"{name}.crt", directory / f"{name}.key"
    write_file(files[1], pem_of_key(key), 0o600)
    write_file(files[0], certificate.public_bytes(serialization.Encoding.PEM), 0o644)
    return files


def _builder(subject: str, issuer: x509.Name, days: float, start: datetime | None) -> x509.CertificateBuilder:
    if not 0 < days <= 36500:
        raise ConfigurationError(f"days must be between 0 and 36500, got {days:g}")
    begin = start if start is not None else datetime.now(UTC) - CLOCK_SKEW
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
        .issuer_name(issuer)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + timedelta(days=days) + (CLOCK_SKEW if start is None else timedelta()))
    )


def create_authority(directory: Path, days: float = 3650, start: datetime | None = None) -> None:
    """Make `authority.crt` and `authority.key` in `directory`. Raises `ConfigurationError` when there is one already."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    if (directory / f"{AUTHORITY}.key").exists() or (directory / f"{AUTHORITY}.crt").exists():
        raise ConfigurationError(f"{directory / AUTHORITY}.crt exists already: choose an empty folder or remove it first")
    key = ec.generate_private_key(ec.SECP256R1())
    subject = f"mpcache authority {x509.random_serial_number():x}"[:60]
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)])
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        _builder(subject, issuer, days, start)
        .public_key(key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    _write_pair(directory, AUTHORITY, certificate, key)


def create_identity(
    directory: Path,
    name: str,
    role: Role,
    days: float = 365,
    hosts: Sequence[str] = (),
    start: datetime | None = None,
) -> tuple[Path, Path]:
    """Make `NAME.crt` and `NAME.key`, signed by the authority in `directory`; returns both paths.

    hosts: further DNS names or addresses of the machine. A host that is some identity's name is refused, since dialers
    recognise an identity by the names in its certificate.
    """
    check_name(name)
    for host in hosts:
        if host != name and (directory / f"{host}.crt").exists():
            raise ConfigurationError(f"host '{host}' of identity '{name}' is the name of another identity in {directory}")
    key = ec.generate_private_key(ec.SECP256R1())
    return _write_pair(directory, name, issue(directory, name, role, key.public_key(), days, hosts, start), key)


def issue(
    directory: Path,
    name: str,
    role: Role,
    public_key: ec.EllipticCurvePublicKey,
    days: float,
    hosts: Sequence[str] = (),
    start: datetime | None = None,
) -> x509.Certificate:
    """Return a certificate for `name`, its role and its public key by the authority in `directory`. Nothing is written.

    Raises `ConfigurationError` when the key is the authority's own: the authority has no other role.
    """
    check_name(name)
    authority = read_certificates(directory / f"{AUTHORITY}.crt")[0]
    signer = read_key(directory / f"{AUTHORITY}.key")
    if public_key == signer.public_key():
        raise ConfigurationError(
            f"the key of '{name}' is the authority's own: make a key for it with `mpcache certs request`"
        )
    names: list[x509.GeneralName] = [x509.DNSName(name)]
    for host in dict.fromkeys(["localhost", "127.0.0.1", *hosts]):
        try:
            names.append(x509.IPAddress(ip_address(host)))
        except ValueError:
            if host != name:
                names.append(x509.DNSName(host))
    names.append(uri_of(role))
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    return (
        _builder(name, authority.subject, days, start)
        .public_key(public_key)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .sign(signer, hashes.SHA256())
    )


def create_deployment(
    directory: Path, members: Mapping[str, Role], days: float = 365, hosts: Sequence[str] = ()
) -> dict[str, str]:
    """Make an authority in `directory/authority`, and for every name of `members` an identity of its role in `directory`.

    `directory` (mode 0700) holds the authority's certificate too, but not its key. Returns each name's fingerprint.
    """
    for name in members:
        check_name(name)
    clash = set(hosts) & set(members)
    if clash:
        raise ConfigurationError(f"host '{min(clash)}' is also an identity's name; give the identity another name")
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    authority = directory / AUTHORITY
    create_authority(authority, days)
    write_file(directory / f"{AUTHORITY}.crt", (authority / f"{AUTHORITY}.crt").read_bytes(), 0o644)
    for name, role in members.items():
        for file in create_identity(authority, name, role, days, hosts):
            file.replace(directory / file.name)
    return {name: fingerprint_of(read_certificates(directory / f"{name}.crt")[0]) for name in members}


# what the package cryptography raises for bytes that are no certificate or request, or one with parts that it does not read
MALFORMED = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)


def _parse_certificates(data: bytes, path: Path, remedy: str) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(data)
    except MALFORMED:
        raise ConfigurationError(f"{path} is not a PEM certificate: {remedy}") from None


def read_certificates(path: Path) -> list[x509.Certificate]:
    """Return the certificates of a PEM file, at least one."""
    return _parse_certificates(read_file(path, _REMEDY), path, _REMEDY)


def read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Return a private key that nobody else may read."""
    return _parse_key(read_file(path, _REMEDY), path)


def _parse_key(data: bytes, path: Path) -> ec.EllipticCurvePrivateKey:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise ConfigurationError(f"{path} is a private key that others may read (mode {mode:04o}): run `chmod 600 {path}`")
    try:
        key = serialization.load_pem_private_key(data, password=None)
    except MALFORMED:
        raise ConfigurationError(f"{path} is not an unencrypted PEM private key: {_REMEDY}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigurationError(f"{path} is not an elliptic-curve key: {_REMEDY}")
    return key


def _check_time(certificate: x509.Certificate, path: Path) -> None:
    now = datetime.now(UTC)
    if now > certificate.not_valid_after_utc:
        remedy = "replace it (docs/deployment.md)" if path.stem == AUTHORITY else "renew it with `mpcache certs renew`"
        raise ConfigurationError(f"{path} expired on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC: {remedy}")
    if now < certificate.not_valid_before_utc:
        raise ConfigurationError(
            f"{path} is not valid before {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC, and this machine's clock "
            f"says {now:%Y-%m-%d %H:%M} UTC: set the clock, or wait"
        )


def issuer_of(certificate: x509.Certificate, authorities: Sequence[x509.Certificate]) -> x509.Certificate | None:
    """Return the authority that signed the certificate, None if none of these did."""
    for authority in authorities:
        try:
            certificate.verify_directly_issued_by(authority)
        except (*MALFORMED, InvalidSignature):
            continue
        return authority
    return None


def name_of(certificate: x509.Certificate | x509.CertificateSigningRequest) -> str:
    """Return the common name; several are joined, which no identity's name can equal."""
    return ", ".join(str(item.value) for item in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME))


def check(directory: Path, name: str, role: Role | None = None, revoked: frozenset[str] | None = None) -> Identity:
    """Read and check the identity `name` of `directory`.

    role: which it must have; None for any. revoked: keys that are trusted no more, by default those that `directory` lists.
    Raises `ConfigurationError`, naming file and remedy, when something is missing,
    unreadable, expired, not yet valid, signed by another authority, of another name or role, or when key and certificate do
    not belong together.
    """
    check_name(name)
    if not directory.is_dir():
        raise ConfigurationError(
            f"certificate folder {directory} is missing: make it with `mpcache certs`, or ask for the identity with "
            "`mpcache certs request`"
        )
    files = directory / f"{name}.crt", directory / f"{name}.key", directory / f"{AUTHORITY}.crt"
    request = directory / REQUESTS / f"{name}.csr"
    if not files[0].exists() and request.exists():
        raise ConfigurationError(
            f"{files[0]} is not installed: the authority answers {request} (`mpcache certs sign`), and `mpcache certs "
            f"install --config {name}.yaml {name}.crt` puts its answer in place"
        )
    identity = replace(check_files(name, *files), revoked=read_revoked(directory) if revoked is None else revoked)
    check_role(identity, role)
    return identity


def check_role(identity: Identity, role: Role | None) -> None:
    """Raise `ConfigurationError` unless the certificate is for this role; None for any."""
    if role is not None and identity.role != role:
        raise ConfigurationError(
            f"{identity.certificate_file} is a certificate of {in_words(identity.role)}, and '{identity.name}' is "
            f"configured as {in_words(role)}: every name has one role; ask the authority for a certificate of the right one"
        )


def check_files(name: str, certificate_file: Path, key_file: Path, authority_file: Path) -> Identity:
    """Read and check an identity as `check` does, from three files. Each file is read once."""
    authority_data = read_file(authority_file, _REMEDY)
    certificate_data = read_file(certificate_file, _REMEDY)
    key_data = read_file(key_file, _REMEDY)
    authorities = _parse_certificates(authority_data, authority_file, _REMEDY)
    certificate = _parse_certificates(certificate_data, certificate_file, _REMEDY)[0]
    key = _parse_key(key_data, key_file)
    issuer = issuer_of(certificate, authorities)
    _check_time(issuer or authorities[0], authority_file)
    _check_time(certificate, certificate_file)
    if issuer is None:
        raise ConfigurationError(
            f"{certificate_file} was signed by another authority than {authority_file}: all roles of a deployment need "
            "certificates of the same authority; copy both files from the same place, or make new ones with `mpcache certs`"
        )
    if certificate.public_key() != key.public_key():
        raise ConfigurationError(
            f"{key_file} is not the key of {certificate_file}: copy both files from the same place, or make new ones with "
            "`mpcache certs`"
        )
    if (found := name_of(certificate)) != name:
        raise ConfigurationError(f"{certificate_file} belongs to '{found}', not to '{name}': copy the right file")
    if any(certificate.public_key() == one.public_key() for one in authorities):
        raise ConfigurationError(f"{key_file} is the authority's own key: the authority has no other role; make a new key")
    try:
        role = role_of(certificate)
    except ConfigurationError as error:
        raise ConfigurationError(f"{certificate_file}: {error}") from None
    return Identity(
        name=name,
        certificate=certificate_data,
        authority=authority_data,
        key=key_data,
        role=role,
        fingerprint=fingerprint_of(certificate),
        expires=min(certificate.not_valid_after_utc, issuer.not_valid_after_utc),
        certificate_file=certificate_file,
        key_file=key_file,
        authority_file=authority_file,
    )
