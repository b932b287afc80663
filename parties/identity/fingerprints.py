"""Fingerprints of public keys: what a person reads out, compares, and writes into a configuration as a peer's `fingerprint`.

A fingerprint is SHA-256 of the key's SubjectPublicKeyInfo (DER), as 32 pairs of hexadecimal digits. It stays the same when a
certificate is renewed for the same key, and no authority can make another key that has it.
"""

from __future__ import annotations

import hashlib
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from mpc.errors import ConfigurationError


def fingerprint(key: Any) -> str:
    """Return the fingerprint of a public key."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return hashlib.sha256(key.public_bytes(serialization.Encoding.DER, form)).digest().hex(":")


def fingerprint_of(certificate: x509.Certificate) -> str:
    """Return the fingerprint of a certificate's key. Raises `ConfigurationError` unless that is on an elliptic curve."""
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ConfigurationError("the certificate is not for an elliptic-curve key")
    return fingerprint(key)
