"""The authority's side of a deployment: whom it may issue certificates to, and how it answers their requests.

The authority's folder holds `authority.crt` and `authority.key`, `deployment.yaml` (who is who, written by `mpcache init`)
and `issued/`, a copy of every certificate that was issued upon a request.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from mpc.errors import ConfigurationError
from parties.files import read_file, write_file
from parties.identity.certificates import MALFORMED, issue, name_of, read_certificates
from parties.identity.fingerprints import fingerprint, fingerprint_of
from parties.names import AUTHORITY, Role, check_name, in_words, read_fingerprint

RECORD = "deployment.yaml"
ISSUED = "issued"


class Member(BaseModel):
    """A role of the deployment. hosts: DNS names or addresses of its machine that its certificate names."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    role: Role
    hosts: list[str] = []


class Record(BaseModel):
    """Who belongs to a deployment, as its authority knows it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    members: list[Member]

    @model_validator(mode="after")
    def _one_role_each(self) -> Record:
        names = [member.name for member in self.members]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"'{twice}' is listed twice: every name has one role")
        return self

    def find(self, name: str) -> Member | None:
        """Return the member of this name."""
        return next((member for member in self.members if member.name == name), None)


def write_record(folder: Path, record: Record) -> None:
    """Write the record of a new authority."""
    head = "# Who belongs to this deployment: the authority issues certificates to these names, for these hosts.\n"
    text = head + yaml.safe_dump(record.model_dump(mode="json"), sort_keys=False)
    write_file(folder / RECORD, text.encode(), 0o644)


def read_record(folder: Path) -> Record | None:
    """Return the record in an authority's folder, None when there is none. Raises `ConfigurationError` for a broken one."""
    path = folder / RECORD
    if not path.exists():
        return None
    try:
        return Record.model_validate(yaml.safe_load(read_file(path, "restore it")))
    except (yaml.YAMLError, ValidationError, UnicodeDecodeError):
        raise ConfigurationError(f"{path} is damaged: it must be as `mpcache init` wrote it, with 'members'") from None


def sign_request(
    folder: Path,
    request: Path,
    expected: str,
    days: float = 365,
    hosts: list[str] | None = None,
    name: str | None = None,
    role: Role | None = None,
    out: Path | None = None,
) -> tuple[Path, x509.Certificate]:
    """Answer a certificate request; returns where the certificate lies, and the certificate.

    folder: the authority's. expected: the fingerprint that the request's owner has read out. name, role: whom the request
    must be from, and as what; needed where the folder has no `deployment.yaml`. hosts: instead of those that
    `deployment.yaml` names. out: where to put the certificate, by default beside the request. It ends no later than the
    authority's own.

    Raises `ConfigurationError` when the request is malformed, not signed by its own key, of another name or fingerprint, not
    of a member of the deployment, or for a key that another name has.
    """
    if not (folder / f"{AUTHORITY}.key").exists():
        raise ConfigurationError(
            f"{folder} is not an authority's folder, {AUTHORITY}.key is not in it: give the one that `mpcache init` wrote "
            f"as {AUTHORITY} into its --out folder"
        )
    authority = read_certificates(folder / f"{AUTHORITY}.crt")[0]
    left = (authority.not_valid_after_utc - datetime.now(UTC)).total_seconds() / 86400
    if left <= 0:
        raise ConfigurationError(f"{folder / AUTHORITY}.crt has expired: the deployment needs a new authority")
    found, key = _read_request(request)
    if name is not None and found != name:
        raise ConfigurationError(f"{request} is from '{found}', not from '{name}' as --name says")
    record = read_record(folder)
    member = _member(folder, request, record, found, role if name is not None else None)
    _check_key(folder, request, found, fingerprint(key), expected)
    wanted = member.hosts if hosts is None else hosts
    others = {m.name for m in record.members if m.name != found} if record is not None else set()
    if clash := others & set(wanted):
        raise ConfigurationError(f"host '{min(clash)}' of '{found}' is the name of another identity")
    certificate = issue(folder, found, member.role, key, min(days, left) if days > 0 else days, wanted)
    data = certificate.public_bytes(serialization.Encoding.PEM)
    target = out if out is not None else request.with_name(f"{found}.crt")
    (folder / ISSUED).mkdir(exist_ok=True, mode=0o700)
    write_file(folder / ISSUED / f"{found}-{certificate.serial_number:x}.crt", data, 0o644)
    write_file(target, data, 0o644)
    return target, certificate


def _member(folder: Path, request: Path, record: Record | None, found: str, role: Role | None) -> Member:
    """Return who asks, as the record says or else as the person who signs says. Raises `ConfigurationError`."""
    if record is None:
        if role is None:
            raise ConfigurationError(
                f"{folder} has no {RECORD} that says who belongs to the deployment: say with --name and --role whom "
                f"{request} must be from"
            )
        return Member(name=found, role=role)
    member = record.find(found)
    if member is None:
        names = ", ".join(m.name for m in record.members)
        raise ConfigurationError(
            f"{request} is from '{found}', who does not belong to the deployment ({names}): add it to {folder / RECORD} if "
            "it does"
        )
    if role is not None and role != member.role:
        raise ConfigurationError(
            f"'{found}' is {in_words(member.role)} in {folder / RECORD}, not {in_words(role)} as --role says: every name "
            "has one role"
        )
    return member


def _check_key(folder: Path, request: Path, name: str, actual: str, expected: str) -> None:
    """Raise `ConfigurationError` unless the key is the one that its owner has read out, and no other name's."""
    try:
        wanted = read_fingerprint(expected)
    except ValueError as error:
        raise ConfigurationError(f"--fingerprint: {error}") from None
    if wanted != actual:
        raise ConfigurationError(
            f"{request} has fingerprint {actual}, not the expected {wanted}: it was exchanged on its way, or is an old one; "
            "sign nothing before you know why"
        )
    for file in sorted((folder / ISSUED).glob("*.crt")):
        other = read_certificates(file)[0]
        if name_of(other) != name and fingerprint_of(other) == actual:
            raise ConfigurationError(
                f"{request} of '{name}' is for the key of '{name_of(other)}' ({file}): every name needs a key of its own"
            )


def name_in(request: Path) -> str:
    """Return whom a request is from. Raises `ConfigurationError` when it is malformed."""
    return _read_request(request)[0]


def _read_request(path: Path) -> tuple[str, ec.EllipticCurvePublicKey]:
    """Name and key of a request whose own signature holds."""
    remedy = "send the file NAME.csr that `mpcache certs request` writes"
    data = read_file(path, remedy)
    try:
        request = x509.load_pem_x509_csr(data)
        genuine = request.is_signature_valid
        key = request.public_key()
    except MALFORMED:
        raise ConfigurationError(f"{path} is not a certificate request: {remedy}") from None
    if not genuine:
        raise ConfigurationError(f"{path} is not signed by its own key: {remedy}")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ConfigurationError(f"{path} is not for a P-256 key: {remedy}")
    return check_name(name_of(request)), key
