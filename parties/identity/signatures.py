"""Signatures with a deployment's identities, for what is said today and read later, when nobody is connected.

ECDSA over P-256 with SHA-256, by the key of the identity's certificate; the signature covers a context string too, so that
what is signed for one purpose never counts for another. Who checks needs the deployment's authority, and the signer's
fingerprint.
"""

from __future__ import annotations

from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from mpc.errors import PermissionRefused
from parties.identity.certificates import MALFORMED, Identity, issuer_of, name_of
from parties.identity.trust import Peer, shown


def _message(context: str, data: bytes) -> bytes:
    label = context.encode()
    return len(label).to_bytes(8, "little") + label + data


def certificate_of(identity: Identity) -> bytes:
    """Return the identity's certificate, DER."""
    return x509.load_pem_x509_certificate(identity.certificate).public_bytes(serialization.Encoding.DER)


def sign(identity: Identity, context: str, data: bytes) -> bytes:
    """Return the identity's signature, DER."""
    key = serialization.load_pem_private_key(identity.key, password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key.sign(_message(context, data), ec.ECDSA(hashes.SHA256()))


def verify(own: Identity, signer: Peer, certificate: bytes, context: str, data: bytes, signature: bytes) -> None:
    """Check that `signer`, whose DER certificate is given, signed `data`; own: of who checks: authority, revoked keys.

    Raises `PermissionRefused`, saying what is wrong, unless the certificate is the signer's, of its role and for one of its
    keys, issued by the authority and valid now, and the signature is its key's.
    """
    try:
        found = x509.load_der_x509_certificate(certificate)
        issuer = issuer_of(found, x509.load_pem_x509_certificates(own.authority))
    except MALFORMED:
        issuer = None
    if issuer is None:
        raise PermissionRefused("the signer's certificate is not of this deployment's authority")
    name = signer.name
    if (said := name_of(found)) != name:
        raise PermissionRefused(f"it is signed by '{said[:64]}', not by '{name}'")
    signer.check(shown(found), own.revoked)
    if not found.not_valid_before_utc <= datetime.now(UTC) <= found.not_valid_after_utc:
        raise PermissionRefused(
            f"the certificate of '{name}' was valid until {found.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
        )
    key = found.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise PermissionRefused(f"the certificate of '{name}' holds no elliptic-curve key")
    try:
        key.verify(signature, _message(context, data), ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise PermissionRefused(f"the signature is not that of '{name}'") from None
