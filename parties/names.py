"""What a configuration says of identities: names, roles and fingerprints of keys. Nothing here reads a certificate.

One name has one role, and one key has one name: whoever were party and dealer, or party and client, would see what no single
role may see. A fingerprint is SHA-256 of a key's SubjectPublicKeyInfo, as 32 pairs of hexadecimal digits
(`parties.identity.fingerprints`).
"""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator

from mpc.errors import ConfigurationError

Role = Literal["party", "dealer", "client", "model-owner"]
ROLES: tuple[Role, ...] = get_args(Role)
ARTICLES = {"party": "compute party", "model-owner": "model owner"}
AUTHORITY = "authority"  # the name of the certificate authority's files
RESERVED = (AUTHORITY, "localhost")
NAME_PATTERN = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
FINGERPRINT_PATTERN = re.compile(r"[0-9a-f]{64}")


def in_words(role: Role) -> str:
    """Return the role as a person says it.

    >>> in_words("party"), in_words("model-owner")
    ('a compute party', 'a model owner')
    """
    return f"a {ARTICLES.get(role, role)}"


def check_name(name: str) -> str:
    """Return the name itself. Raises `ConfigurationError` unless it can be a DNS label that is not reserved."""
    if not NAME_PATTERN.fullmatch(name) or name in RESERVED:
        raise ConfigurationError(
            f"'{name}' cannot be an identity's name: use 1 to 63 lower-case letters, digits and inner hyphens, "
            f"and none of {', '.join(RESERVED)}"
        )
    return name


def read_fingerprint(text: str) -> str:
    """Return the fingerprint that a person wrote, with or without colons. Raises `ValueError` when it cannot be one.

    >>> read_fingerprint("0A1B" * 16)[:11]
    '0a:1b:0a:1b'
    """
    digits = text.strip().replace(":", "").lower()
    if not FINGERPRINT_PATTERN.fullmatch(digits):
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


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach the address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
