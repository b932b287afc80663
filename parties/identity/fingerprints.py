"""Fingerprints of public keys: what a person reads out, compares, and writes into a configuration as a peer's `fingerprint`.

A fingerprint is SHA-256 of the key's SubjectPublicKeyInfo (DER), as 32 pairs of hexadecimal digits. It stays the same when a
certificate is renewed for the same key, and no authority can make another key that has it.
"""

from __future__ import annotations

import hashlib
import re
from typing import Annotated, Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import BeforeValidator

from mpc.errors import ConfigurationError

DIGITS = re.compile(r"[0-9a-f]{64}")


def fingerprint(key: Any) -> str:
    """Of a public key."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return hashlib.sha256(key.public_bytes(serialization.Encoding.DER, form)).digest().hex(":")


def fingerprint_of(certificate: x509.Certificate) -> str:
    """Of a certificate's key. Raises `ConfigurationError` unless that is on an elliptic curve."""
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ConfigurationError("the certificate is not for an elliptic-curve key")
    return fingerprint(key)


def read_fingerprint(text: str) -> str:
    """The fingerprint that a person wrote, with or without colons. Raises `ValueError` when it cannot be one."""
    digits = text.strip().replace(":", "").lower()
    if not DIGITS.fullmatch(digits):
        raise ValueError(
            f"'{text[:100]}' is no fingerprint of a key: it has 32 pairs of hexadecimal digits; `mpcache certs fingerprint` "
            "prints it on the host of that role"
        )
    return bytes.fromhex(digits).hex(":")


def _listed(value: Any) -> Any:
    """One fingerprint or a list of them; none where nothing is written."""
    items = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(items, list | tuple) or not all(isinstance(item, str) for item in items):
        raise ValueError("write one fingerprint, or a list of them")
    return tuple(read_fingerprint(item) for item in items)


Fingerprints = Annotated[tuple[str, ...], BeforeValidator(_listed)]
