"""A role's side of getting a certificate: the private key is made on the role's host, and only a request leaves it.

`certificates/requests/` holds a pending `NAME.key` (mode 0600) and `NAME.csr`. The authority answers with a certificate;
`install` checks it against key, name and authority, and only then puts key and certificate in place. Running servers pick
them up from there. A first certificate and a renewed one are got in the same way.
"""

from __future__ import annotations

from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from mpc.errors import ConfigurationError
from parties.files import write_file
from parties.identity.certificates import (
    REQUESTS,
    Identity,
    check_files,
    check_role,
    issuer_of,
    pem_of_key,
    read_certificates,
    read_key,
)
from parties.identity.fingerprints import fingerprint
from parties.names import AUTHORITY, Role, check_name


def create_request(directory: Path, name: str, keep_key: bool = False) -> tuple[Path, str]:
    """Make a request for a certificate of `name`; returns its file and its key's fingerprint.

    directory: the role's certificate folder, made if need be. keep_key: ask for the key that is in use. Otherwise for a new
    one, which waits in `requests/` until the answer is installed; asking again before that asks for the same key.
    """
    check_name(name)
    folder = directory / REQUESTS
    pending = folder / f"{name}.key"
    for path in (directory, folder):
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    if keep_key and pending.exists():
        raise ConfigurationError(
            f"{pending} is a new key whose certificate is not installed yet: install it with `mpcache certs install`, or "
            "remove that file to keep the old key"
        )
    if keep_key:
        key = read_key(directory / f"{name}.key")
    elif pending.exists():
        key = read_key(pending)
    else:
        key = ec.generate_private_key(ec.SECP256R1())
        write_file(pending, pem_of_key(key), 0o600)
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    file = folder / f"{name}.csr"
    write_file(file, request.public_bytes(serialization.Encoding.PEM), 0o644)
    return file, fingerprint(key.public_key())


def install(
    directory: Path, name: str, certificate: Path, authority: Path | None = None, role: Role | None = None
) -> Identity:
    """Put the authority's answer, and the key that it is for, in place; returns the identity. May be repeated.

    authority: the file of a new authority, or of the old and the new one together; by default the one that is there. role:
    which the certificate must be for; None for any.
    Raises `ConfigurationError`, and changes nothing, unless all files belong together and are valid now.
    """
    check_name(name)
    pending, current = directory / REQUESTS / f"{name}.key", directory / f"{name}.key"
    trusted = authority if authority is not None else directory / f"{AUTHORITY}.crt"
    found = read_certificates(certificate)[0]
    if issuer_of(found, read_certificates(trusted)) is None:
        raise ConfigurationError(
            f"{certificate} was signed by another authority than {trusted}: ask the authority of this deployment, or give "
            "its new authority.crt with --authority"
        )
    keys = [path for path in (pending, current) if path.exists()]
    if not keys:
        raise ConfigurationError(f"{directory} has no key of '{name}': make one with `mpcache certs request`")
    key = next((path for path in keys if read_key(path).public_key() == found.public_key()), None)
    if key is None:
        raise ConfigurationError(
            f"{certificate} is not for {' nor for '.join(str(path) for path in keys)}: it answers an older request, or is "
            "another role's; send the newest request to the authority"
        )
    checked = check_files(name, certificate, key, trusted)
    check_role(checked, role)
    if authority is not None:
        write_file(directory / f"{AUTHORITY}.crt", checked.authority, 0o644)
    if key == pending:
        write_file(current, checked.key, 0o600)
    write_file(directory / f"{name}.crt", checked.certificate, 0o644)
    if key == pending:
        pending.unlink()
    (directory / REQUESTS / f"{name}.csr").unlink(missing_ok=True)
    return check_files(name, directory / f"{name}.crt", current, directory / f"{AUTHORITY}.crt")


def fingerprints(directory: Path, name: str) -> dict[str, str]:
    """Return fingerprint -> "in use" or "waits for its certificate", of the keys of `name`; none where there is no key."""
    files = {"in use": directory / f"{name}.key", "waits for its certificate": directory / REQUESTS / f"{name}.key"}
    return {fingerprint(read_key(path).public_key()): state for state, path in files.items() if path.exists()}
