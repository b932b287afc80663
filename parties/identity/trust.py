"""Whom a role takes for whom: its peers' names, each with its role and the fingerprints of the keys that it may have.

The authority only introduces. It signs that a name has a key and a role; whoever holds its key can sign that of any key. So
each role lists its peers' fingerprints in its own configuration, and both ends of every connection compare:

* who is called reads the caller's certificate from the connection (`caller`), whose TLS handshake has proved the key;
* who calls takes from a handshake of its own the peer's certificate, compares its key, and then makes a channel that trusts
  that one certificate and nothing else (`parties.transport.connection.open_channel`). It does not matter who sent the
  certificate: to end the channel's handshake takes the private key of the fingerprint.

An authority that makes certificates of both names and relays between them ends neither handshake: at neither end does it
have the private key that is expected there, and TLS signs what each end has seen of the handshake.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from cryptography import x509

from mpc.errors import ConfigurationError, PermissionRefused
from parties.config.grants import ClientGrant, OwnerGrant
from parties.config.role_config import PeerAddress, RoleConfig
from parties.events import clean, log
from parties.identity.certificate_watcher import CertificateWatcher
from parties.identity.certificates import MALFORMED, Identity, name_of
from parties.identity.fingerprints import fingerprint, fingerprint_of
from parties.identity.roles import role_of
from parties.names import AUTHORITY, Role, in_words

INSECURE = (
    "insecure_trust_authority is set: whoever has the authority's key can take a peer's place and read what it may read; "
    "write each peer's fingerprint (`mpcache certs pin`) and take the setting away"
)


@dataclass(frozen=True)
class Peer:
    """A peer as this role knows it. address: where it is reached, empty for who only calls. pins: fingerprints of the keys
    that it may have; None: any that the authority certifies."""

    name: str
    role: Role
    address: str = ""
    pins: frozenset[str] | None = None

    def check(self, found: Shown, revoked: frozenset[str]) -> None:
        """Raise `PermissionRefused` unless this is the peer: its role, one of its keys, and none that was revoked."""
        if found.role != self.role:
            said = found.problem if found.role is None else f"it is {in_words(found.role)}'s"
            raise PermissionRefused(f"the certificate of '{self.name}' is not {in_words(self.role)}'s: {said}")
        if found.fingerprint in revoked:
            raise PermissionRefused(f"the key of '{self.name}' is revoked (fingerprint {found.fingerprint})")
        if self.pins is not None and found.fingerprint not in self.pins:
            raise PermissionRefused(
                f"the key of '{self.name}' is not the one that is expected: its certificate is for fingerprint "
                f"{found.fingerprint}; it has a new key, or somebody else got a certificate of that name"
            )


class Shown(NamedTuple):
    """What a certificate says. role: None when it says none, or several (problem: in words). fingerprint: of its key."""

    name: str
    role: Role | None
    fingerprint: str
    problem: str = ""


def shown(certificate: x509.Certificate) -> Shown:
    """Return what a certificate says, which a handshake has shown or an authority has signed."""
    key = fingerprint(certificate.public_key())
    try:
        return Shown(name_of(certificate), role_of(certificate), key)
    except ConfigurationError as error:
        return Shown(name_of(certificate), None, key, str(error))


@lru_cache(maxsize=1024)
def _shown_by(pem: bytes) -> Shown:
    return shown(x509.load_pem_x509_certificate(pem))


class Trust:
    """Who may call a server, by name. identity(): the server's own, with what is revoked there; its own name has its own key
    alone."""

    def __init__(self, peers: Mapping[str, Peer], identity: Callable[[], Identity]) -> None:
        self._peers = peers
        self._identity = identity

    def caller(self, context: Any) -> Shown:
        """Return who calls, from the certificate of the connection, whose handshake has proved its key.

        A name that is not listed is returned as it is: it has no rights. Raises `PermissionRefused` for a listed name with
        another role or key than it has, for a revoked key, and without a certificate.
        """
        pems = context.auth_context().get("x509_pem_cert", [])
        try:
            found = _shown_by(pems[0]) if len(pems) == 1 else None
        except MALFORMED:
            found = None
        if found is None or not found.name:
            raise PermissionRefused("the caller has no identity: it needs a certificate with a common name")
        own = self._identity()
        itself = Peer(own.name, own.role, pins=frozenset({own.fingerprint}))
        if (peer := itself if found.name == own.name else self._peers.get(found.name)) is not None:
            peer.check(found, own.revoked)
        elif found.fingerprint in own.revoked:
            raise PermissionRefused("the key of the caller is revoked")
        return found._replace(name=clean(found.name))


def parties_of(config: RoleConfig) -> list[Peer]:
    """Return the compute parties in order, this one included."""
    return _peers(config, "party", config.parties)


def dealer_of(config: RoleConfig) -> Peer | None:
    """Return the dealer, if this role knows one."""
    return None if config.dealer is None else _peers(config, "dealer", [config.dealer])[0]


def peers_of(config: RoleConfig) -> dict[str, Peer]:
    """Return, by name, everybody whom this role calls, and (at a server) who calls it."""
    serves = config.role in ("party", "dealer")
    callers = [
        *_peers(config, "client", config.clients if serves else []),
        *_peers(config, "model-owner", config.model_owners if serves else []),
    ]
    dealer = dealer_of(config)
    everybody = [*parties_of(config), *([] if dealer is None else [dealer]), *callers]
    return {peer.name: peer for peer in everybody if peer.name != config.name}


def _peers(config: RoleConfig, role: Role, listed: Iterable[PeerAddress | ClientGrant | OwnerGrant]) -> list[Peer]:
    """Return the peers that are listed; a fingerprint that is written counts even where the authority is trusted."""

    def pins(marks: tuple[str, ...]) -> frozenset[str] | None:
        return None if config.insecure_trust_authority and not marks else frozenset(marks)

    return [
        Peer(one.name, role, one.address if isinstance(one, PeerAddress) else "", pins(one.fingerprint)) for one in listed
    ]


def own_identity(config: RoleConfig) -> CertificateWatcher:
    """Return this role's identity, once it is clear whom it trusts; logs where that is the authority.

    Raises `ConfigurationError`, before anything is sent, for a peer without a fingerprint, for a key of the authority among
    the fingerprints or on this host, and as `certificates.check` does.
    """
    check_pins(config)
    identity = CertificateWatcher(config.certificates, config.name, config.role)
    if config.insecure_trust_authority:
        log.warning("%s: %s", config.name, INSECURE)
        return identity
    if (config.certificates / f"{AUTHORITY}.key").exists():
        raise ConfigurationError(
            f"{config.certificates / AUTHORITY}.key lies on the host of '{config.name}': the authority has no other role; "
            "move its folder to a host of its own"
        )
    marks = {fingerprint_of(one) for one in x509.load_pem_x509_certificates(identity.current.authority)}
    for peer in peers_of(config).values():
        if marks & (peer.pins or frozenset()):
            raise ConfigurationError(
                f"the fingerprint of '{peer.name}' is the authority's own: the authority has no other role; write the one "
                "that `mpcache certs fingerprint` prints there"
            )
    return identity


def check_pins(config: RoleConfig) -> list[Peer]:
    """Return the peers, each with its fingerprints, or none where the authority is trusted.

    Raises `ConfigurationError`, with the commands that help, for a peer without a fingerprint.
    """
    peers = [peer for peer in peers_of(config).values() if peer.pins is not None and not peer.pins]
    if not peers:
        return list(peers_of(config).values())
    names = ", ".join(f"'{peer.name}' ({peer.role})" for peer in peers)
    raise ConfigurationError(
        f"{config.name} knows no fingerprint of {names}, so anybody whom the authority certifies could take that place: run "
        f"`mpcache certs fingerprint --config {peers[0].name}.yaml` on the host of {peers[0].name} and `mpcache certs pin "
        f"--config {config.name}.yaml {peers[0].name}=FINGERPRINT` here{', likewise for the others' if peers[1:] else ''}; "
        "or set insecure_trust_authority: true"
    )
