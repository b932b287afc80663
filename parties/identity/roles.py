"""How a certificate says the role of its name: exactly one, as the URI `mpcache:role:ROLE` among its alternative names."""

from __future__ import annotations

from cryptography import x509

from mpc.errors import ConfigurationError
from parties.names import ROLES, Role

PREFIX = "mpcache:role:"


def uri_of(role: Role) -> x509.UniformResourceIdentifier:
    """Return how a certificate says the role."""
    return x509.UniformResourceIdentifier(f"{PREFIX}{role}")


def role_of(certificate: x509.Certificate) -> Role:
    """Return the role of a certificate's name. Raises `ConfigurationError` unless it says exactly one that is known."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        said = [uri for uri in names.get_values_for_type(x509.UniformResourceIdentifier) if uri.startswith(PREFIX)]
    except x509.ExtensionNotFound:
        said = []
    found = [role for role in ROLES for uri in said if uri == f"{PREFIX}{role}"]
    if len(said) != 1 or len(found) != 1:
        listed = ", ".join(uri.removeprefix(PREFIX)[:40] for uri in said[:4]) or "none"
        raise ConfigurationError(
            f"the certificate must say exactly one role of {', '.join(ROLES)}, it says {listed}: ask the authority for "
            "a new one with `mpcache certs renew --keep-key`"
        )
    return found[0]
